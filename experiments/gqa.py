"""GQA: what do fewer key/value heads cost in loss?"""

from experiments.small import Arm, Experiment

EXPERIMENT = Experiment(
    id="GQA",
    chapter="07",
    title="Key/value heads",
    question="What does sharing keys and values among four query heads cost?",
    note="Fewer key/value heads are fewer parameters. The last arm gives what one head saves "
    "back to the MLP, so that it has as many parameters as the first.",
    arms=(
        Arm("4 kv heads", "4 (multi-head)"),
        Arm("2 kv heads", "2 (grouped)", {"n_kv_heads": 2}, against="4 kv heads"),
        Arm("1 kv head", "1 (multi-query)", {"n_kv_heads": 1}, against="4 kv heads"),
        Arm(
            "1 kv head, wider MLP",
            "1, wider MLP",
            {"n_kv_heads": 1, "d_ff": 304},
            against="4 kv heads",
        ),
    ),
)
