"""When the experts do not fit: hit rates, bytes and speed limits of a cache of experts."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from traitlets import Any as Anything
from traitlets import Bytes, Dict, Enum, Int, List, TraitError, Unicode, validate

from gptoss_lite import account, viz
from gptoss_lite.errors import ShapeError
from gptoss_lite.offload import (
    LINKS,
    PUBLISHED_20B,
    PUBLISHED_20B_SHUFFLED,
    distances,
    hit_rates,
    shuffled_hit_rates,
)
from gptoss_lite.presets import PRESETS
from gptoss_lite.recording import Recording, example
from gptoss_lite.widgets.page import (
    PageWidget,
    from_bytes,
    module_source,
    origin,
    percent,
    require,
    to_bytes,
)

MAX_CHOICES = 24 * 512 * 4  # layers x tokens x experts kept: 70 kB of HTML; further tokens go
BIG = PRESETS["gpt-oss-20b"]


class OffloadView(PageWidget):
    """What a cache of experts holds, misses and moves; `offload` makes one.

    Attributes:
        layer, token: the selection.
        slots: experts that each layer keeps in fast memory.
        link: what the others come over, a key of `gptoss_lite.offload.LINKS`.
    """

    view = "offload"
    rows_shown: ClassVar[int] = 16
    _esm = module_source("offload")

    layer = Int(0).tag(sync=True)
    token = Int(0).tag(sync=True)
    slots = Int(0).tag(sync=True)
    link = Enum(tuple(LINKS), "pcie3").tag(sync=True)

    tokens = List(Unicode()).tag(sync=True)
    dropped = Int(0).tag(sync=True)  # tokens of the recording that are not shown
    first = Int(0).tag(sync=True)  # only tokens from here on count: those of the answer
    n_layers = Int().tag(sync=True)
    n_experts = Int().tag(sync=True)
    n_active = Int().tag(sync=True)
    expert_bytes = Int().tag(sync=True)
    away = Bytes().tag(sync=True)  # u8 [L T A], as `gptoss_lite.offload.distances`
    shuffled = List().tag(sync=True)  # mean hit rate by slots, from A on
    links = Dict({name: list(link) for name, link in LINKS.items()}).tag(sync=True)
    published = Dict().tag(sync=True)  # of gpt-oss-20b
    recording = Anything()

    def distances(self) -> Integer[np.ndarray, "L T A"]:
        """Return how many experts were used more recently than each chosen one."""
        shape = (self.n_layers, len(self.tokens), self.n_active)
        return from_bytes(self.away, "u1", *shape)

    def fetched(self) -> Integer[np.ndarray, "L T"]:
        """Return how many experts each layer fetches for each token, with the slots set now."""
        return (self.distances() >= self.slots).sum(-1)

    def hit_rate(self) -> float:
        """Return the share of lookups that find their expert, over all layers."""
        return 1 - float(self.fetched()[:, self.first :].mean()) / self.n_active

    def moved_bytes(self) -> float:
        """Return the bytes that are moved for a token of the answer, on average."""
        return float(self.fetched()[:, self.first :].sum(0).mean()) * self.expert_bytes

    def held_bytes(self) -> int:
        """Return the bytes of all slots of all layers."""
        return self.slots * self.n_layers * self.expert_bytes

    def tokens_per_s(self) -> float:
        """Return how many tokens a second the chosen link allows; infinite if nothing moves."""
        moved = self.moved_bytes()
        return LINKS[self.link][1] * 1e9 / moved if moved else float("inf")

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw the hit rate against the slots, for print."""
        return viz.offload(self.recording, ax=ax)

    @validate("layer", "token", "slots")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        low = self.n_active if name == "slots" else 0
        last = {"layer": self.n_layers - 1, "token": len(self.tokens) - 1, "slots": self.n_experts}
        if not low <= value <= last[name]:
            raise TraitError(f"{name}={value} is not in this recording: {low} to {last[name]}.")
        return value


def offload(recording: Recording | None = None, **selection: Any) -> OffloadView:
    """Show what a cache of experts would hold, miss and move while the answer is written.

    Args:
        recording: one run of a model with experts, from `gptoss_lite.recording.record`; a
            conversation that comes with the package if None. If it says where its prompt ends,
            only the answer counts: a prompt is read in one pass.
        selection: where to start: `layer`, `token`, `slots`, `link`. By default a quarter of the
            experts, and the layer and the token that fetch most with them.

    Raises:
        ShapeError: a recording without routing, or without the size of an expert.
    """
    recording = recording or example()
    arrays, about = recording.arrays, recording.about
    require(arrays, ("expert_idx",))
    if "expert_bytes" not in about:
        raise ShapeError(
            "This recording does not say how large an expert is. Record it again with "
            "gptoss_lite.recording.record."
        )
    n_layers, n_tokens, n_active = arrays["expert_idx"].shape
    shown = min(n_tokens, max(1, MAX_CHOICES // (n_layers * n_active)))
    ids, n_experts = arrays["expert_idx"][:, :shown], about["n_experts"]
    first = about.get("n_prompt", 0) if about.get("n_prompt", 0) < shown else 0
    away, shuffled = distances(ids, n_experts), shuffled_hit_rates(ids, n_experts, first).mean(0)
    view = OffloadView(
        title=f"Offloaded experts of {origin(about)}",
        tokens=about["tokens"][:shown],
        dropped=n_tokens - shown,
        first=first,
        n_layers=n_layers,
        n_experts=n_experts,
        n_active=n_active,
        expert_bytes=about["expert_bytes"],
        away=to_bytes(away, "u1"),
        shuffled=[round(rate, 4) for rate in shuffled.tolist()],
        published=_published(),
        recording=recording,
    )
    view.slots = max(n_active, n_experts // 4)
    fetched = view.fetched()[:, first:]
    start = {"layer": int(fetched.sum(1).argmax()), "token": first + int(fetched.sum(0).argmax())}
    view.summary = _summary(view)
    view.rows = _rows(view, about["model"], hit_rates(away, n_experts, first).mean(0), shuffled)
    for name, value in {**start, **selection}.items():
        setattr(view, name, value)
    return view


def _published() -> dict[str, Any]:
    assert BIG.moe is not None
    return {
        "n_layers": BIG.n_layers,
        "n_experts": BIG.moe.n_experts,
        "n_active": BIG.moe.n_active,
        "expert_bytes": account.expert_bytes(BIG),
        "rates": [list(pair) for pair in PUBLISHED_20B.items()],
        "shuffled": [list(pair) for pair in PUBLISHED_20B_SHUFFLED.items()],
    }


def _summary(view: OffloadView) -> str:
    counted = len(view.tokens) - view.first
    what = f"the {counted} tokens of the answer" if view.first else f"{counted} tokens"
    control = view.shuffled[view.slots - view.n_active]
    return (
        f"With {view.slots} of {view.n_experts} experts a layer in fast memory, "
        f"{percent(view.hit_rate())} of the lookups of {what} find theirs, and "
        f"{percent(control)} with those tokens in another order. The rest is "
        f"{view.moved_bytes():,.0f} bytes a token, at most {view.tokens_per_s():,.0f} tokens/s "
        f"over {LINKS[view.link][0]}."
    )


def _rows(
    view: OffloadView,
    name: str,
    rates: Float[np.ndarray, " N"],
    shuffled: Float[np.ndarray, " N"],
) -> list[dict[str, Any]]:
    """One row for some numbers of slots, then those of gpt-oss-20b."""
    slots = sorted(
        {view.n_active, view.n_experts, *range(0, view.n_experts, max(1, view.n_experts // 8))}
    )
    rows = [
        _row(name, n, view, rates[i], shuffled[i]) for n in slots if (i := n - view.n_active) >= 0
    ]
    big = _published()
    for n, rate in PUBLISHED_20B.items():
        rows.append(_row("gpt-oss-20b, published", n, big, rate, PUBLISHED_20B_SHUFFLED.get(n)))
    return rows


def _row(
    name: str, slots: int, model: OffloadView | dict[str, Any], rate: float, control: float | None
) -> dict[str, Any]:
    about = model if isinstance(model, dict) else model.state()
    lookups = about["n_layers"] * about["n_active"]
    moved = lookups * (1 - rate) * about["expert_bytes"]
    row = {
        "routing of": name,
        "slots": slots,
        "bytes held": f"{slots * about['n_layers'] * about['expert_bytes']:,}",
        "hit rate": percent(rate),
        "shuffled": "-" if control is None else percent(control),
        "bytes a token": f"{moved:,.0f}",
    }
    for link, speed in LINKS.values():
        row[f"tokens/s, {link}"] = f"{speed * 1e9 / moved:,.0f}" if moved > 0 else "no limit"
    return row
