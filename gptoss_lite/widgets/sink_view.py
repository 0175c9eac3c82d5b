"""Where attention goes to nothing: the learned sinks of one recording, head by head."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from traitlets import Bool, Bytes, Int, List, TraitError, validate
from traitlets import Float as Number

from gptoss_lite import viz
from gptoss_lite.recording import Recording, example
from gptoss_lite.widgets.page import (
    TextView,
    from_bytes,
    kept,
    module_source,
    origin,
    percent,
    require,
    to_bytes,
    told,
)

FINE_VALUES = 2**16  # up to here 16 bits a value, above 8
MAX_VALUES = 150_000  # above, only every second, third, ... position is kept: 200 kB of HTML
FAR = 20.0  # a sink this many nats above or below the scores takes all or nothing, shifted or not
MAX_SHIFT = 6.0


class SinkView(TextView):
    """The sink mass of every layer, head and position; `sinks` makes one.

    The page holds the log-sum-exp of the scores, not the masses: sink mass = sigmoid(sink + shift
    - lse), so the sinks can be moved there without the model. Each head's lse is rounded to `bits`
    bits between its own bounds, which moves a mass by at most `error`.

    Attributes:
        layer, head, token: the selection; `token` counts positions of the text.
        shift: added to every sink logit, -6 to 6.
        sinks_on: False takes the sinks out of the softmax.
    """

    view = "sinks"
    options = ("layer", "head", "token", "shift", "sinks_on")
    _esm = module_source("sinks")

    head = Int(0).tag(sync=True)
    shift = Number(0.0, min=-MAX_SHIFT, max=MAX_SHIFT).tag(sync=True)
    sinks_on = Bool(True).tag(sync=True)

    stride = Int(1).tag(sync=True)  # one token in so many is kept
    windows = List(Int(allow_none=True)).tag(sync=True)  # per layer; None means all keys
    n_heads = Int().tag(sync=True)
    bits = Int(16).tag(sync=True)
    error = Number().tag(sync=True)
    lse = Bytes().tag(sync=True)  # u8 or u16 [L H T]
    bounds = Bytes().tag(sync=True)  # f32 [L H 2]: lse at 0 and at the largest code
    sink = Bytes().tag(sync=True)  # f32 [L H]

    def mass(self) -> Float[np.ndarray, "L H T"]:
        """Return the sink masses as the page shows them, at the current shift."""
        shape = (len(self.windows), self.n_heads, len(self.tokens))
        if not self.sinks_on:
            return np.zeros(shape, np.float32)
        codes = from_bytes(self.lse, f"u{self.bits // 8}", *shape)
        low, high = np.moveaxis(from_bytes(self.bounds, "f4", *shape[:2], 2), -1, 0)[..., None]
        lse = low + codes * ((high - low) / (2**self.bits - 1))
        sink = from_bytes(self.sink, "f4", *shape[:2])[..., None]
        return (1 / (1 + np.exp(lse - sink - self.shift))).astype(np.float32)

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw the mean sink mass of every head as it was recorded, for print."""
        return viz.sink_by_head(self.recording, ax)

    @validate("layer", "head", "token")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        sizes = {
            "layer": len(self.windows),
            "head": self.n_heads,
            "token": len(self.tokens) * self.stride,
        }
        if not 0 <= value < sizes[name]:
            raise TraitError(f"{name}={value} is not in this recording: 0 to {sizes[name] - 1}.")
        return value


def sinks(recording: Recording | None = None, **selection: Any) -> SinkView:
    """Show which heads give their attention to the sink, where, and what a shift would change.

    Args:
        recording: one run of a model with sinks, from `gptoss_lite.recording.record`;
            a conversation that comes with the package if None.
        selection: where to start: `layer`, `head`, `token`, `shift`, `sinks_on`. By default the
            head with the largest mean sink mass, at the last token.

    Raises:
        ShapeError: a recording without sinks, or with NaN in them.
    """
    recording = recording or example()
    arrays, about = recording.arrays, recording.about
    require(arrays, ("lse", "sink", "sink_mass"))
    n_heads, n_tokens = arrays["lse"].shape[1:]
    stride = -(-arrays["lse"].size // MAX_VALUES)
    mass = arrays["sink_mass"].mean(-1)
    layer, head = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    start = {"layer": layer, "head": head, "token": (n_tokens - 1) // stride * stride, **selection}
    view = SinkView(
        title=f"Attention sinks of {origin(about)}",
        **kept(about["tokens"], stride=stride),
        stride=stride,
        windows=about["window"],
        n_heads=n_heads,
        summary=_summary(mass, n_tokens),
        rows=_rows(mass, arrays["sink"], about["window"]),
        recording=recording,
        **_quantised(arrays["lse"][..., ::stride], arrays["sink"]),
    )
    view.select(**start)
    return view


def _quantised(lse: Float[np.ndarray, "L H T"], sink: Float[np.ndarray, "L H"]) -> dict[str, Any]:
    """Round each head's lse between bounds of its own, which are quarters of a nat."""
    bits = 16 if lse.size <= FINE_VALUES else 8
    kept = np.clip(lse.astype(np.float64), sink[..., None] - FAR, sink[..., None] + FAR)
    low = np.floor(4 * kept.min(-1, keepdims=True)) / 4
    high = np.maximum(np.ceil(4 * kept.max(-1, keepdims=True)) / 4, low + 0.25)
    step = (high - low) / (2**bits - 1)
    return {
        "bits": bits,
        # half a step, times the steepest slope of a sigmoid, 1/4; rounded up
        "error": float(f"{step.max() / 8 + 6e-6:.5f}"),
        "lse": to_bytes(np.rint((kept - low) / step), f"u{bits // 8}"),
        "bounds": to_bytes(np.concatenate((low, high), -1), "f4"),
        "sink": to_bytes(sink, "f4"),
    }


def _summary(mass: Float[np.ndarray, "L H"], n_tokens: int) -> str:
    layer, head = divmod(int(mass.argmax()), mass.shape[1])
    return (
        f"Over {told(n_tokens)} the sinks take {percent(mass.mean())} of the attention, most in "
        f"layer {layer} head {head}: {percent(mass[layer, head])}. {(mass > 0.5).sum()} of "
        f"{mass.size} heads give their sink more than half."
    )


def _rows(
    mass: Float[np.ndarray, "L H"], sink: Float[np.ndarray, "L H"], windows: list[int | None]
) -> list[dict[str, Any]]:
    """One row a head, the largest mean sink mass first."""
    order = [divmod(int(i), mass.shape[1]) for i in np.argsort(-mass, axis=None, kind="stable")]
    return [
        {
            "layer": layer,
            "attention": "full" if windows[layer] is None else f"sliding, {windows[layer]} keys",
            "head": head,
            "mean sink mass": percent(mass[layer, head]),
            "sink logit": f"{sink[layer, head]:.2f}",
        }
        for layer, head in order
    ]
