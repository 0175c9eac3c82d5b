"""RoPE and YaRN, pair by pair: wavelengths, the three zones, and the hands at a distance."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor
from traitlets import Any as Anything
from traitlets import Bool, Int, TraitError, validate
from traitlets import Float as Number

from gptoss_lite import positions, viz
from gptoss_lite.config import ModelConfig, YarnConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.presets import PRESETS
from gptoss_lite.widgets.page import PageWidget, module_source

LARGEST = {"distance": 2**20, "original_context": 2**17}


class RopeView(PageWidget):
    """The rotations of one head; `rope` makes one.

    Attributes:
        pair: the selected pair.
        distance: between a query and a key, in tokens; the hands stand where it turns them.
        factor: YaRN's; 1 is plain RoPE.
        original_context: tokens of the first training.
        truncate: round the ends of the ramp outwards.
    """

    view = "rope"
    options = ("pair", "distance", "factor", "original_context", "truncate")
    rows_shown: ClassVar[int] = 64
    _esm = module_source("rope")

    pair = Int(0).tag(sync=True)
    distance = Int(0).tag(sync=True)
    factor = Number(1.0, min=1.0, max=64.0).tag(sync=True)
    original_context = Int(256, min=1).tag(sync=True)
    truncate = Bool(False).tag(sync=True)

    head_dim = Int(64).tag(sync=True)
    theta = Number().tag(sync=True)
    beta_fast = Number(32.0).tag(sync=True)
    beta_slow = Number(1.0).tag(sync=True)
    config = Anything()

    def yarn(self) -> YarnConfig:
        """Return the YaRN that is shown."""
        return YarnConfig(
            factor=self.factor,
            original_context=self.original_context,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            truncate=self.truncate,
        )

    def ramp(self) -> Float[Tensor, " half"]:
        """Return how far each pair is slowed down: 0 keeps it, 1 divides it by the factor."""
        if self.factor == 1:
            return torch.zeros(self.head_dim // 2)
        return positions.yarn_ramp(self.head_dim, self.theta, self.yarn())

    def angles(self) -> tuple[Float[Tensor, " half"], Float[Tensor, " half"]]:
        """Return each pair's angle per token with RoPE and with YaRN."""
        plain, ramp = positions.rope_frequencies(self.head_dim, self.theta), self.ramp()
        return plain, plain / self.factor * ramp + plain * (1 - ramp)

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw how long a turn of each pair takes, as everything is set now, for print."""
        yarn = self.yarn() if self.factor > 1 else None
        return viz.rope(self.config.but(yarn=yarn), ax)

    @validate("pair", "distance", "original_context")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        last = LARGEST.get(name, self.head_dim // 2 - 1)
        if not 0 <= value <= last:
            raise TraitError(f"{name}={value} is not in this view: 0 to {last}.")
        return value


def rope(config: ModelConfig = PRESETS["gpt-oss-20b"], **selection: Any) -> RopeView:
    """Show the pairs that YaRN keeps, blends and slows, and all hands at a distance.

    Args:
        config: a model whose positions are rotations, with YaRN or without.
        selection: where to start: `pair`, `distance`, `factor`, `original_context`, `truncate`. By
            default a pair that is slowed, at the end of the context.

    Raises:
        ConfigError: a model with a learned table, or with heads of more than 128 numbers.
    """
    if config.positions != "rope" or config.head_dim > 128:
        raise ConfigError(
            f"rope needs positions='rope' and head_dim up to 128, got {config.positions!r} and "
            f"{config.head_dim}."
        )
    yarn = config.yarn or YarnConfig(factor=1.0, original_context=config.context)
    view = RopeView(
        config=config,
        head_dim=config.head_dim,
        theta=config.rope_theta,
        factor=yarn.factor,
        original_context=yarn.original_context,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
        truncate=yarn.truncate,
    )
    view.select(**selection)
    slowed = [i for i, zone in enumerate(_zones(view)) if zone == "slowed"]
    start = {
        "pair": slowed[len(slowed) // 2] if slowed else 0,
        "distance": min(LARGEST["distance"], int(view.factor * view.original_context)),
    }
    view.select(**{**start, **selection})
    view.title, view.summary, view.rows = _title(view), _summary(view), _rows(view)
    return view


def _zones(view: RopeView) -> list[str]:
    """Name what YaRN does to each pair; without it there are no zones."""
    if view.factor == 1:
        return ["plain"] * (view.head_dim // 2)
    names = {0.0: "kept", 1.0: "slowed"}
    return [names.get(ramp, "blended") for ramp in view.ramp().tolist()]


def _title(view: RopeView) -> str:
    pairs = f"{view.head_dim // 2} pairs, base {view.theta:,.0f}"
    if view.factor == 1:
        return f"RoPE: {pairs}, {view.original_context:,} tokens"
    return f"RoPE and YaRN: {pairs}, {view.original_context:,} tokens times {view.factor:g}"


def _summary(view: RopeView) -> str:
    plain, yarn = view.angles()
    zones = _zones(view)
    stuck = int((view.original_context * plain < 2 * math.pi).sum())
    done, end = "This is plain RoPE: no pair is slowed", "."
    if view.factor > 1:
        done = (
            f"YaRN keeps {zones.count('kept')} of {len(zones)} pairs, blends "
            f"{zones.count('blended')} and divides {zones.count('slowed')} by {view.factor:g}"
        )
        end = f" with RoPE, {2 * math.pi / yarn[-1].item():,.0f} with YaRN."
    return (
        f"{done}. {stuck} pairs have not been all around within {view.original_context:,} tokens. "
        f"The slowest turn takes {2 * math.pi / plain[-1].item():,.0f} tokens{end}"
    )


def _rows(view: RopeView) -> list[dict[str, Any]]:
    """One row a pair, the fastest first."""
    plain, yarn = (angles.tolist() for angles in view.angles())
    tokens = view.original_context
    return [
        {
            "pair": i,
            "zone": zone,
            "ramp": f"{ramp:.2f}",
            "RoPE: tokens a turn": f"{2 * math.pi / plain[i]:,.0f}",
            "YaRN: tokens a turn": f"{2 * math.pi / yarn[i]:,.0f}",
            "turns in the original context": f"{tokens * plain[i] / 2 / math.pi:.3g}",
        }
        for i, (zone, ramp) in enumerate(zip(_zones(view), view.ramp().tolist(), strict=True))
    ]
