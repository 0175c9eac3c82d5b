"""Parity: every rung of the ladder against the logits of a published class.

The files in `data/references` hold tiny models in which every mistake shows, the logits that a
class of the transformers library computed from the same weights, and how the two were made to
meet. Reading them needs nothing but this package; `tools/make_references.py` writes them.
"""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.ladder import LADDER
from gptoss_lite.model import Transformer
from gptoss_lite.mxfp4 import PackedExpertLinear

TOLERANCE = 1e-5  # largest difference between logits of order 1, in float32
FOLDER = Path(__file__).with_name("data") / "references"

_WIDTH = 96
_RUNGS = {rung.name: rung for rung in LADDER}
# Fields that say which parts a model has; the others are sizes, and a tiny model has its own.
_SWITCHES = (
    "norm",
    "norm_eps",
    "positions",
    "ffn",
    "swiglu_alpha",
    "attn_bias",
    "ffn_bias",
    "qk_norm",
    "sinks",
    "layer_pattern",
    "tied",
    "dropout",
    "expert_dtype",
)


@dataclass(frozen=True)
class Reference:
    """One stored comparison: a tiny model, its input, and a published class's answer."""

    rung: str  # its name in the ladder, or of a model beside it
    published: str  # the class of the transformers library
    config: ModelConfig
    weights: Mapping[str, Tensor]  # by the names of `Transformer.state_dict()`
    tokens: Int[Tensor, "B T"]
    logits: Float[Tensor, "B T V"]
    training: bool  # whether both ran in training mode, where dropout would act
    setup: str  # what was done to the published class so that the two can meet
    why: str  # why the comparison tests the rung's idea
    made_by: str


@dataclass(frozen=True)
class Row:
    """What one comparison found."""

    rung: str
    published: str
    positions: str  # sequences x tokens
    logits_std: float
    difference: float  # the largest, over all positions and the whole vocabulary
    notes: tuple[str, ...]  # lines: what was held equal, and why that still tests the rung

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        verdict = "OK" if self.ok else "FAIL"
        return (
            f"{self.rung:<24} {self.published:<22} {self.positions:>9} {self.logits_std:>10.2f} "
            f"{self.difference:>14.1e}  {verdict}"
        )


_HEADER = f"{'rung':<24} {'published class':<22} {'positions':>9} {'logits std':>10} " + (
    f"{'max difference':>14}"
)


def show(rung: str) -> None:
    """Print how far one rung's logits are from those of the published classes it is checked with.

    Args:
        rung: a name in `LADDER`, or "Qwen3-MoE".

    Raises:
        ConfigError: a name with no stored reference.

    Example:
        >>> show("RoPE")
        rung                     published class        positions logits std max difference
        RoPE                     Starcoder2ForCausalLM       2x72       1... ...  OK
          every switch as on the rung
          GPT-2's blocks with rotated queries and keys
    """
    print(report(check(rung)))


def table() -> None:
    """Print one row for each stored comparison, from GPT-2 to gpt-oss."""
    print(report(check()))


def report(rows: Sequence[Row]) -> str:
    """Return rows as an aligned table, what was held equal beneath each."""
    lines = [_HEADER]
    for row in rows:
        lines += [str(row), *row.notes]
    return "\n".join(lines)


def check(rung: str | None = None) -> list[Row]:
    """Run the stored comparisons: all of them, or those of one rung.

    Args:
        rung: a name in `LADDER`, or "Qwen3-MoE"; None means all.

    Raises:
        ConfigError: a name with no stored reference.
    """
    found = [r for r in references() if rung is None or r.rung.lower() == rung.lower()]
    if not found:
        names = list(dict.fromkeys(r.rung for r in references()))
        raise ConfigError(f"No reference is stored for {rung!r}. Use one of {names}.")
    return [compare(reference) for reference in found]


@cache
def references() -> tuple[Reference, ...]:
    """Return what is stored, in the ladder's order; the least changed comparison comes first."""
    order = {name: place for place, name in enumerate(_RUNGS)}
    stored = [read_reference(path) for path in sorted(FOLDER.glob("*.safetensors"))]
    return tuple(sorted(stored, key=lambda r: (order.get(r.rung, len(order)), len(changed(r)))))


def read_reference(path: Path) -> Reference:
    """Read one stored comparison.

    Args:
        path: a safetensors file: tensors by state-dict name, `tokens`, `logits`, and the rest as
            JSON under the metadata key `about`.
    """
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Reference(
        config=_config(about.pop("config")),
        tokens=tensors.pop("tokens"),
        logits=tensors.pop("logits"),
        weights=tensors,
        **about,
    )


def _config(raw: dict[str, Any]) -> ModelConfig:
    yarn, moe = raw.pop("yarn"), raw.pop("moe")
    return ModelConfig(
        **raw,
        yarn=YarnConfig(**yarn) if yarn else None,
        moe=MoEConfig(**moe) if moe else None,
    )


def rebuild(reference: Reference) -> Transformer:
    """Build our model with a reference's weights; it computes in float32."""
    with torch.device("meta"):  # draws no random numbers
        model = Transformer(reference.config)
    # The files hold bfloat16 numbers, which both models were given.
    weights = {n: w.float() if w.is_floating_point() else w for n, w in reference.weights.items()}
    if reference.config.tied:
        weights["unembed.weight"] = weights["embed.weight"]
    for layer, block in enumerate(model.blocks):
        for name in ("up", "down"):
            path = f"blocks.{layer}.ffn.{name}"
            if f"{path}.blocks" in weights:
                packed = [weights[f"{path}.{part}"] for part in ("blocks", "scales")]
                expert = PackedExpertLinear(*packed, bias=weights.get(f"{path}.bias"))
                setattr(block.ffn, name, expert)
    model.load_state_dict(weights, assign=True)
    return model.train(reference.training)


def compare(reference: Reference) -> Row:
    """Run our model on a reference's tokens and measure how far its logits are."""
    with torch.no_grad():
        ours = rebuild(reference)(reference.tokens)
    return Row(
        rung=reference.rung,
        published=reference.published,
        positions="x".join(str(size) for size in reference.tokens.shape),
        logits_std=reference.logits.std().item(),
        difference=(ours - reference.logits).abs().max().item(),
        notes=_notes(reference),
    )


def changed(reference: Reference) -> dict[str, Any]:
    """Return the switches in which a reference's model differs from the rung itself."""
    if reference.rung not in _RUNGS:
        return {}
    ours, rung = _switches(reference.config), _switches(_RUNGS[reference.rung].config)
    return {name: value for name, value in ours.items() if value != rung.get(name, value)}


def _switches(config: ModelConfig) -> dict[str, Any]:
    found = {name: getattr(config, name) for name in _SWITCHES}
    for name in ("yarn", "moe"):
        found[name] = None if getattr(config, name) is None else "present"
    return found | ({"router_bias": config.moe.router_bias} if config.moe else {})


def zeros(reference: Reference) -> tuple[str, ...]:
    """Return the parameters that a reference holds at zero, with no layer numbers."""
    names = [name for name, tensor in reference.weights.items() if not tensor.any()]
    return tuple(dict.fromkeys(re.sub(r"^blocks\.\d+\.", "", name) for name in names))


def _notes(reference: Reference) -> tuple[str, ...]:
    changes = ", ".join(f"{name}={value!r}" for name, value in changed(reference).items())
    held = f"the rung, but({changes})" if changes else "every switch as on the rung"
    held = held if reference.rung in _RUNGS else "every switch as in the published model"
    if at_zero := zeros(reference):
        held += f"; at zero: {', '.join(at_zero)}"
    lines = []
    for note in (held, reference.why, reference.setup):
        lines += textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return tuple(lines)
