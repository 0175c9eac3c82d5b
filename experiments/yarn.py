"""YaRN: can a model trained at 64 tokens read 128, 256 and 512?"""

from functools import partial

from experiments.small import BASE, STEPS, Arm, Experiment, lengths, train_once
from gptoss_lite.config import ModelConfig, YarnConfig
from gptoss_lite.model import Transformer

TRAINED = 64
TUNING = {"steps": 40, "length": 256, "batch_size": 8, "peak_lr": 1e-3}
READING = {"steps": 0, "length": 256}  # nothing is learned


def start_trained(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Give the weights of plain RoPE, trained at 64 tokens, to a model with another rotation."""
    plain = config.but(yarn=None, context=TRAINED)
    settings = {"steps": steps} if steps == STEPS else {"steps": steps, "batch_size": 2}
    model = Transformer(config)
    model.load_state_dict(train_once(plain, seed, settings).model.state_dict())
    return model


def arm(name: str, label: str, factor: float | None, settings: dict, **more: str) -> Arm:
    """Describe an arm: stretched by a factor or not, tuned for a moment or not."""
    return Arm(
        name,
        label,
        {"yarn": YarnConfig(factor, TRAINED) if factor else None},
        settings,
        note="starts from plain RoPE trained 400 steps at 64 tokens",
        start=start_trained,
        measure=partial(lengths, of=(64, 128, 256, 512)),
        **more,
    )


EXPERIMENT = Experiment(
    id="YARN",
    chapter="04",
    title="YaRN after training at 64 tokens",
    question="Does YaRN let the model read four times further, with and without tuning?",
    note="Loss at 256 tokens, four times the trained length; `lengths` holds the others. Tuning "
    "is 40 steps of 8 windows of 256 at a third of the learning rate.",
    base=BASE.but(context=512),
    arms=(
        arm("plain", "RoPE as trained", None, READING),
        arm("yarn 4", "YaRN factor 4", 4.0, READING, against="plain", expect="lower"),
        arm("yarn 8", "YaRN factor 8", 8.0, READING, against="plain", expect="lower"),
        arm("plain, tuned", "RoPE, tuned at 256", None, TUNING, against="plain", expect="lower"),
        arm(
            "yarn 4, tuned",
            "YaRN factor 4, tuned at 256",
            4.0,
            TUNING,
            against="plain, tuned",
            expect="lower",
        ),
    ),
)
