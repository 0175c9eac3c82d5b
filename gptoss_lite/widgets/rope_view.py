"""RoPE and YaRN, pair by pair: wavelengths, the three zones, and the hands at a distance."""

import math
from typing import Any, ClassVar

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
        title=f"RoPE and YaRN: {config.head_dim // 2} pairs, base {config.rope_theta:,.0f}, "
        f"{yarn.original_context:,} tokens times {yarn.factor:g}",
    )
    view.summary, view.rows = _summary(view), _rows(view)
    slowed = [i for i, ramp in enumerate(view.ramp().tolist()) if ramp == 1]
    end = min(LARGEST["distance"], int(yarn.factor * yarn.original_context))
    for name, value in {
        "pair": slowed[len(slowed) // 2] if slowed else 0,
        "distance": end,
        **selection,
    }.items():
        setattr(view, name, value)
    return view


def _zone(ramp: float) -> str:
    return "kept" if ramp == 0 else "slowed" if ramp == 1 else "blended"


def _summary(view: RopeView) -> str:
    plain, yarn = view.angles()
    zones = [_zone(ramp) for ramp in view.ramp().tolist()]
    stuck = int((view.original_context * plain < 2 * math.pi).sum())
    return (
        f"YaRN keeps {zones.count('kept')} of {len(zones)} pairs, blends {zones.count('blended')} "
        f"and divides {zones.count('slowed')} by {view.factor:g}. {stuck} pairs have not been all "
        f"around within {view.original_context:,} tokens. The slowest turn takes "
        f"{2 * math.pi / plain[-1].item():,.0f} tokens with RoPE, "
        f"{2 * math.pi / yarn[-1].item():,.0f} with YaRN."
    )


def _rows(view: RopeView) -> list[dict[str, Any]]:
    """One row a pair, the fastest first."""
    plain, yarn = (angles.tolist() for angles in view.angles())
    tokens = view.original_context
    return [
        {
            "pair": i,
            "zone": _zone(ramp),
            "ramp": f"{ramp:.2f}",
            "RoPE: tokens a turn": f"{2 * math.pi / plain[i]:,.0f}",
            "YaRN: tokens a turn": f"{2 * math.pi / yarn[i]:,.0f}",
            "turns in the original context": f"{tokens * plain[i] / 2 / math.pi:.3g}",
        }
        for i, ramp in enumerate(view.ramp().tolist())
    ]
