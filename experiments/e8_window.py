"""E8: what does a window in every other layer cost? A trap: short training says it helps."""

from experiments.small import STEPS, Arm, Experiment

LONGER = {"steps": 3 * STEPS}


def window(keys: int) -> dict[str, int | str]:
    """Let the first of two layers slide; the second still sees everything."""
    return {"sliding_window": keys, "layer_pattern": "SF"}


EXPERIMENT = Experiment(
    id="E8",
    chapter="08",
    title="A window in the first of two layers",
    question="Does a window cost loss, and does the answer hold when training is longer?",
    note="Layer 0 slides and layer 1 sees all 64 tokens, unless the arm says both. No arm has more "
    "parameters than another. The last two arms train three times as long: their cosine ends later "
    "and they see the text a little more than twice.",
    arms=(
        Arm("full", "full attention"),
        Arm("window 16", "window 16", window(16), against="full", expect="lower"),
        Arm("window 4", "window 4", window(4), against="full", expect="lower"),
        Arm(
            "window 4, both layers",
            "window 4 in both layers",
            {**window(4), "layer_pattern": "S"},
            against="full",
            expect="higher",
        ),
        Arm("full, longer", "full, 3 x the steps", settings=LONGER, seeds=(0,)),
        Arm(
            "window 4, longer",
            "window 4, 3 x the steps",
            window(4),
            LONGER,
            against="full, longer",
            expect="lower",
            seeds=(0,),
        ),
    ),
)
