"""Which experts worked for which token: the routing of one recording, layer by layer."""

from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from traitlets import Bytes, TraitError, validate
from traitlets import Enum as Choice
from traitlets import Int as Whole

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

MAX_CHOICES = 24 * 512 * 4  # layers x tokens x experts kept: 150 kB of HTML; of more the end
WEIGHT_ERROR = 1 / 510  # of a weight stored as one byte
COLORS = ("weight", "kept", "expert")


class RoutingView(TextView):
    """The experts of every layer and token with their weights; `routing` makes one.

    Weights are rounded to 8 bits, which moves each by at most 1/510.

    Attributes:
        layer, token, expert: the selection; `token` counts positions of the text.
        color: what the overview shows: "weight" of the first expert, experts "kept" from the
            token before, or the weight of the one selected "expert" in all layers.
    """

    view = "routing"
    options = ("layer", "token", "expert", "color")
    _esm = module_source("routing")

    expert = Whole(0).tag(sync=True)
    color = Choice(COLORS, default_value="weight").tag(sync=True)

    n_layers = Whole().tag(sync=True)
    n_experts = Whole().tag(sync=True)
    n_active = Whole().tag(sync=True)
    ids = Bytes().tag(sync=True)  # u8 [L T A]
    weights = Bytes().tag(sync=True)  # u8 [L T A], in 255ths

    def choices(self) -> tuple[Integer[np.ndarray, "L T A"], Float[np.ndarray, "L T A"]]:
        """Return the expert ids and weights as the page has them."""
        shape = (self.n_layers, len(self.tokens), self.n_active)
        weights = from_bytes(self.weights, "u1", *shape).astype(np.float32) / 255
        return from_bytes(self.ids, "u1", *shape), weights

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw the weights of the selected layer's experts, for print."""
        return viz.routing(self.recording, self.layer, ax=ax)

    @validate("layer", "token", "expert")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        low = self.first if name == "token" else 0
        end = {
            "layer": self.n_layers,
            "token": self.first + len(self.tokens),
            "expert": self.n_experts,
        }[name]
        if not low <= value < end:
            raise TraitError(f"{name}={value} is not in this recording: {low} to {end - 1}.")
        return value


def routing(recording: Recording | None = None, **selection: Any) -> RoutingView:
    """Show which experts each token was sent to, how evenly they work, and what is kept.

    Args:
        recording: one run of a model with experts, from `gptoss_lite.recording.record`;
            a conversation that comes with the package if None.
        selection: where to start: `layer`, `token`, `expert`, `color`. By default the layer with
            the busiest expert, and that expert, at the last token.

    Raises:
        ShapeError: a recording without routing, or with NaN in it.
    """
    recording = recording or example()
    arrays, about = recording.arrays, recording.about
    require(arrays, ("expert_idx", "expert_w"))
    n_layers, n_tokens, n_active = arrays["expert_idx"].shape
    first = max(0, n_tokens - max(1, MAX_CHOICES // (n_layers * n_active)))
    ids, weights = arrays["expert_idx"][:, first:], arrays["expert_w"][:, first:]
    load, stay = _load(ids, about["n_experts"]), _stay(ids)
    layer, expert = divmod(int(load.argmax()), load.shape[1])
    start = {"layer": layer, "expert": expert, "token": n_tokens - 1, **selection}
    view = RoutingView(
        title=f"Expert routing of {origin(about)}",
        **kept(about["tokens"], first),
        n_layers=n_layers,
        n_experts=about["n_experts"],
        n_active=n_active,
        ids=to_bytes(ids, "u1"),
        weights=to_bytes(np.rint(255 * weights), "u1"),
        summary=_summary(load, stay.mean(), told(n_tokens - first, first), n_active),
        rows=_rows(load, stay, weights),
        recording=recording,
    )
    view.select(**start)
    return view


def _load(ids: Integer[np.ndarray, "L T A"], n_experts: int) -> Float[np.ndarray, "L E"]:
    """Return the share of the tokens that each expert works for."""
    counts = [np.bincount(layer.ravel(), minlength=n_experts) for layer in ids]
    return np.stack(counts) / ids.shape[1]


def _stay(ids: Integer[np.ndarray, "L T A"]) -> Float[np.ndarray, " L"]:
    """Return how many experts a token keeps from the one before, on average."""
    if ids.shape[1] == 1:
        return np.zeros(len(ids))
    return (ids[:, 1:, :, None] == ids[:, :-1, None, :]).any(-1).sum(-1).mean(-1)


def _summary(
    load: Float[np.ndarray, "L E"], stay: float | np.floating, tokens: str, n_active: int
) -> str:
    n_experts = load.shape[1]
    layer, expert = divmod(int(load.argmax()), n_experts)
    return (
        f"Over {tokens} the busiest expert, {expert} of layer {layer}, works for "
        f"{percent(load.max())} of them, {load.max() * n_experts / n_active:.1f} times an even "
        f"split; {(load == 0).sum()} of {load.size} experts never work. A token keeps {stay:.2f} "
        f"of {n_active} experts from the one before ({n_active**2 / n_experts:.2f} by chance)."
    )


def _rows(
    load: Float[np.ndarray, "L E"],
    stay: Float[np.ndarray, " L"],
    weights: Float[np.ndarray, "L T A"],
) -> list[dict[str, Any]]:
    """One row a layer, the least even load first."""
    even = weights.shape[2] / load.shape[1]
    return [
        {
            "layer": layer,
            "busiest expert": int(load[layer].argmax()),
            "works for": percent(load[layer].max()),
            "times an even split": f"{load[layer].max() / even:.1f}",
            "never work": int((load[layer] == 0).sum()),
            "kept from the token before": f"{stay[layer]:.2f}",
            "mean first weight": percent(weights[layer, :, 0].mean()),
        }
        for layer in map(int, np.argsort(-load.max(-1), kind="stable"))
    ]
