"""What all small experiments share: an arm, an experiment, and how one run is done and written.

An experiment is data: a base model and arms that change it. Each arm may name the arm it is
compared with and the sign that was expected before the run; the record says whether the sign
came out so in every seed.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

import gptoss_lite as gl
from gptoss_lite import corpus
from gptoss_lite.config import ModelConfig, MoEConfig
from gptoss_lite.model import Transformer
from gptoss_lite.train import Recipe, Result, build, evaluate, learned_blocks, train

SCHEMA = 1
SEEDS = (0, 1, 2)
STEPS = 400

# The ladder's rung "RoPE" at two layers and the length it is trained at.
BASE = gl.LADDER[2].config.but(n_layers=2, context=64)


@dataclass(frozen=True)
class Arm:
    """One way to train, repeated over the seeds."""

    name: str  # the key in the record
    label: str  # what a figure says
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the base config
    settings: dict[str, Any] = field(default_factory=dict)  # fields of `Recipe`
    note: str = ""  # what is done outside config and recipe
    against: str | None = None  # arm to subtract, seed by seed
    expect: str | None = None  # sign of that difference: "lower", "higher" or "none"
    seeds: tuple[int, ...] = SEEDS  # one seed is a demonstration only
    start: Callable[[ModelConfig, int, int], Transformer] | None = None  # config, seed, steps
    frozen: int = 0  # parameters that are never learned, so not counted
    measure: Callable[[Result], dict[str, Any]] | None = None  # more numbers for the record


@dataclass(frozen=True)
class Experiment:
    """A question, and the arms that answer it."""

    id: str
    chapter: str
    title: str
    question: str
    arms: tuple[Arm, ...]
    base: ModelConfig = BASE
    note: str = ""
    unit: str = "nats per byte on held-out text"
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=STEPS))
    # config, settings, seed -> the row's numbers; in place of training on the plays
    trial: Callable[[ModelConfig, dict[str, Any], int], dict[str, Any]] | None = None


# --- one run -------------------------------------------------------------------------------------


def run_arm(experiment: Experiment, arm: Arm, seed: int, smoke: bool = False) -> dict[str, Any]:
    """Train one arm with one seed and return its row of the record."""
    config, settings = arm_config(experiment, arm), {"steps": STEPS, **arm.settings}
    if experiment.trial is not None:
        settings["steps"] = 2 if smoke else experiment.recipe.steps
        return _rounded({"seed": seed, **experiment.trial(config, settings, seed)})
    if smoke:
        config, settings = shrink(config, settings)
    if arm.start is None:
        result = train_once(config, seed, settings)
    else:
        model = arm.start(config, seed, 2 if smoke else STEPS)
        result = train(model, seed=seed, **settings)
    own = learned_blocks(result.recipe)[: result.recipe.n_validation]
    last = result.recipe.steps
    every = settings.get("validate_every", last) or 1
    checkpoints = [step for step in result.validation if step % every == 0 or step == last]
    curve = {step: result.validation[step] for step in checkpoints}
    row = {
        "seed": seed,
        "loss": result.loss,
        "best": min(curve.values()),
        "own_loss": evaluate(result.model, result.recipe.length, own),
        "curve": [[step, loss] for step, loss in curve.items()],
        "train_curve": _thinned(result.losses),
        **(arm.measure(result) if arm.measure else {}),
    }
    return _rounded(row)


_trained: dict[tuple[Any, ...], Result] = {}


def train_once(config: ModelConfig, seed: int, settings: dict[str, Any]) -> Result:
    """Train, or return the same run if another experiment of this process has done it.

    Neither the context of a rotated model nor the checkpoints change what is learned.
    """
    kept = {key: value for key, value in settings.items() if key != "validate_every"}
    same = config.but(context=64) if config.positions == "rope" else config
    key = (same, seed, *sorted(kept.items()))
    if key not in _trained:
        _trained[key] = train(build(config, seed), seed=seed, **settings)
    return _trained[key]


def arm_config(experiment: Experiment, arm: Arm) -> ModelConfig:
    """Return the model of an arm."""
    return experiment.base.but(**arm.changes)


def shrink(config: ModelConfig, settings: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
    """Make a run so small that it only shows that everything works."""
    steps = min(2, settings["steps"])
    moe = MoEConfig(4, 2) if config.moe else None
    config = config.but(n_layers=1, d_model=8, head_dim=2, d_ff=8, moe=moe)
    small = {"steps": steps, "batch_size": 2, "n_validation": 2}
    return config, {**settings, **small}


def lengths(result: Result, of: Iterable[int]) -> dict[str, Any]:
    """Measure the validation loss in windows of several lengths."""
    held_out = corpus.load().validation[: result.recipe.n_validation]
    return {"lengths": {str(n): evaluate(result.model, n, held_out) for n in of}}


def _thinned(losses: list[float], size: int = 20) -> list[list[float]]:
    """Average the training losses over spans of `size` steps."""
    spans = [(i, losses[i : i + size]) for i in range(0, len(losses), size)]
    return [[i + len(span), sum(span) / len(span)] for i, span in spans]


def _rounded(value: Any) -> Any:
    """Keep five digits after the point: seeds differ in the second."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


# --- the record ----------------------------------------------------------------------------------


def describe(experiment: Experiment, seeds: Iterable[int]) -> dict[str, Any]:
    """Return the record without runs: question, settings, machine, versions."""
    return {
        "schema": SCHEMA,
        "id": experiment.id,
        "chapter": experiment.chapter,
        "title": experiment.title,
        "question": experiment.question,
        "note": experiment.note,
        "unit": experiment.unit,
        "made_by": f"python -m experiments.run {experiment.id}",
        "date": datetime.date.today().isoformat(),
        "device": f"CPU, one thread, {processor()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "gptoss_lite": gl.__version__,
        },
        "corpus_sha256": None if experiment.trial else hashlib.sha256(corpus.text()).hexdigest(),
        "seeds": list(seeds),
        "base": asdict(experiment.base),
        "recipe": asdict(experiment.recipe),
        "arms": [describe_arm(experiment, arm) for arm in experiment.arms],
    }


def describe_arm(experiment: Experiment, arm: Arm) -> dict[str, Any]:
    """Return an arm's part of the record, still without runs."""
    config = arm_config(experiment, arm)
    plain = {key: _plain(value) for key, value in arm.changes.items()}
    return {
        "name": arm.name,
        "label": arm.label,
        "changes": plain,
        "settings": arm.settings,
        "note": arm.note,
        "parameters": gl.account.parameters(config) - arm.frozen,
        "active_parameters": gl.account.parameters(config, active=True),
        "against": arm.against,
        "expect": arm.expect,
        "runs": [],
    }


def _plain(value: Any) -> Any:
    return asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


@functools.cache
def processor() -> str:
    """Name the processor as well as the system lets us."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def judge(record: dict[str, Any]) -> dict[str, Any]:
    """Add to each arm its paired differences, and to the record a sentence for each."""
    by_name = {arm["name"]: arm for arm in record["arms"]}
    sentences = []
    for arm in record["arms"]:
        arm["runs"].sort(key=lambda run: run["seed"])
        if arm["against"] is None:
            continue
        other = by_name[arm["against"]]
        arm["differences"] = paired(arm, other)
        if arm["differences"]:
            arm["sign"] = sign(arm["differences"])
            arm["agrees"] = None if arm["expect"] is None else arm["sign"] == arm["expect"]
            sentences.append(_sentence(arm, other))
    record["finding"] = " ".join(sentences)
    return record


def paired(arm: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Subtract the other arm's loss from this one's, for each seed that both have."""
    theirs = {run["seed"]: run["loss"] for run in other["runs"]}
    mine = [run for run in arm["runs"] if run["seed"] in theirs]
    return [round(run["loss"] - theirs[run["seed"]], 5) for run in mine]


def sign(differences: list[float]) -> str:
    """Say "lower" or "higher" if all seeds agree, else "none"."""
    if all(d < 0 for d in differences):
        return "lower"
    return "higher" if all(d > 0 for d in differences) else "none"


def _sentence(arm: dict[str, Any], other: dict[str, Any]) -> str:
    found = arm["differences"]
    spread = f"{min(found):+.3f} to {max(found):+.3f}" if len(found) > 1 else f"{found[0]:+.3f}"
    what = {"none": "no common sign"}.get(arm["sign"], arm["sign"] + " in every seed")
    if len(found) == 1:
        what = "lower" if found[0] < 0 else "higher"
    text = f"{arm['label']} against {other['label']}: {what} ({spread}, {len(found)} seed"
    text += "s)" if len(found) > 1 else ")"
    if arm["agrees"] is not None:
        text += ", as expected" if arm["agrees"] else f", expected: {arm['expect']}"
    return text + "."


def save(record: dict[str, Any], path: Path) -> None:
    """Write a record in one atomic move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
