"""E3: where does a head look when it has no work, with and without a learned sink?"""

from typing import Any

from experiments.small import Arm, Experiment
from gptoss_lite import backcopy
from gptoss_lite.config import ModelConfig

SINK = {"sinks": True}
OWN_RATE = 20.0  # times everybody else's
HELD_OUT_SEED = 1_000


def trial(config: ModelConfig, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train on the made-up language, and measure the head; the loss is that after a trigger."""
    steps, bos = settings["steps"], settings.get("bos", True)
    learned = backcopy.rows(32 * steps, seed, bos)
    held_out = backcopy.rows(512, HELD_OUT_SEED, bos)
    sink_rate = settings.get("sink_rate", 1.0)
    result = backcopy.train(
        config, learned, seed, steps=steps, sink_rate=sink_rate, watch=held_out[:64]
    )
    found = backcopy.measure(result.model, held_out)
    loss = round(found.pop("loss_at_triggers"), 5)
    own = backcopy.measure(result.model, learned[-512:])
    sinks = result.model.blocks[0].attn.sinks
    return {
        "loss": loss,
        "best": loss,
        "own_loss": own["loss_at_triggers"],
        "curve": [[steps, loss]],
        **found,
        "sink": None if sinks is None else sinks.item(),
        "first_mass_curve": [[step, mass] for step, mass in result.first_mass.items()],
    }


def arm(name: str, label: str, changes: dict, settings: dict, against: str | None = None) -> Arm:
    """Describe an arm; one with a sink was expected to lose a little at triggers."""
    expect = "higher" if against and settings.get("sink_rate") == OWN_RATE else None
    return Arm(name, label, changes, settings, against=against, expect=expect)


def arms(bos: bool) -> tuple[Arm, ...]:
    """Describe the four softmaxes, for rows with or without a constant first token."""
    prefix, what = ("BOS", "") if bos else ("no BOS", ", no BOS")
    base = f"{prefix}, plain"
    rates = {
        "learned sink": OWN_RATE,
        "learned sink, common rate": 1.0,
        "off by one": 0.0,
    }
    labels = {"learned sink": "learned sink, 20x rate"}
    found = [arm(base, f"plain softmax{what}", {}, {"bos": bos})]
    for name, rate in rates.items():
        settings = {"bos": bos, "sink_rate": rate}
        label = labels.get(name, name) + what
        found.append(arm(f"{prefix}, {name}", label, SINK, settings, against=base))
    return tuple(found)


EXPERIMENT = Experiment(
    id="E3",
    chapter="10",
    title="One head that is wanted now and then, with and without a sink",
    question="Does the first token collect the attention that nobody needs, and does a sink "
    "logit take it over?",
    note="After Guo et al. 2024: a token after a trigger repeats the one before the trigger, all "
    "others follow a table. `loss` is that after a trigger, where the head is needed; "
    "`loss_elsewhere` that after the other tokens from the fifth on. `off by one` is a sink logit "
    "that stays at 0. With its own rate the sink learns 20 times faster than the rest.",
    base=backcopy.CONFIG,
    unit="nats per token after a trigger",
    recipe=backcopy.RECIPE,
    trial=trial,
    arms=(*arms(bos=True), *arms(bos=False)),
)
