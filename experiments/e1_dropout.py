"""E1: does dropout help or harm, when text is seen once and when it is seen again and again?"""

from experiments.small import Arm, Experiment

ONCE: dict[str, int] = {"validate_every": 100}
AGAIN: dict[str, int] = {"validate_every": 100, "n_blocks": 16}  # 16 KiB, 50 times

EXPERIMENT = Experiment(
    id="E1",
    chapter="02",
    title="Dropout, and how often the text is seen",
    question="Does dropout lower the loss on new text?",
    note="Less than one pass over 1.1 MB, or 50 passes over 16 KiB of it, in the same steps. "
    "Dropout acts where GPT-2 has it: embedding, attention weights, both branches.",
    arms=(
        Arm("once, p=0", "one pass, p = 0", {"dropout": 0.0}, ONCE),
        Arm(
            "once, p=0.1",
            "one pass, p = 0.1",
            {"dropout": 0.1},
            ONCE,
            against="once, p=0",
            expect="higher",
        ),
        Arm("again, p=0", "50 passes, p = 0", {"dropout": 0.0}, AGAIN),
        Arm(
            "again, p=0.1",
            "50 passes, p = 0.1",
            {"dropout": 0.1},
            AGAIN,
            against="again, p=0",
            expect="lower",
        ),
        Arm(
            "once, p=0.2",
            "one pass, p = 0.2",
            {"dropout": 0.2},
            ONCE,
            against="once, p=0",
            expect="higher",
        ),
        Arm(
            "again, p=0.2",
            "50 passes, p = 0.2",
            {"dropout": 0.2},
            AGAIN,
            against="again, p=0",
            expect="lower",
        ),
    ),
)
