"""When the experts do not fit: hit rates, bytes and speed limits of a cache of experts."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from traitlets import Bytes, Dict, Enum, Int, List, TraitError, validate

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

MAX_CHOICES = 24 * 512 * 4  # layers x tokens x experts kept: 70 kB of HTML; of longer texts the end
BIG = PRESETS["gpt-oss-20b"]


class OffloadView(TextView):
    """What a cache of experts holds, misses and moves; `offload` makes one.

    Attributes:
        layer, token: the selection; `token` counts positions of the text.
        slots: experts that each layer keeps in fast memory.
        link: what the others come over, a key of `gptoss_lite.offload.LINKS`.
    """

    view = "offload"
    options = ("layer", "token", "slots", "link")
    rows_shown: ClassVar[int] = 16
    _esm = module_source("offload")

    slots = Int(0).tag(sync=True)
    link = Enum(tuple(LINKS), "pcie3").tag(sync=True)

    answer = Int(0).tag(sync=True)  # only tokens from this position on count
    n_layers = Int().tag(sync=True)
    n_experts = Int().tag(sync=True)
    n_active = Int().tag(sync=True)
    expert_bytes = Int().tag(sync=True)
    away = Bytes().tag(sync=True)  # u8 [L T A], as `gptoss_lite.offload.distances`
    shuffled = List().tag(sync=True)  # mean hit rate by slots, from A on
    links = Dict({name: list(link) for name, link in LINKS.items()}).tag(sync=True)
    published = Dict().tag(sync=True)  # of gpt-oss-20b

    def distances(self) -> Integer[np.ndarray, "L T A"]:
        """Return how many experts were used more recently than each chosen one."""
        shape = (self.n_layers, len(self.tokens), self.n_active)
        return from_bytes(self.away, "u1", *shape)

    def fetched(self) -> Integer[np.ndarray, "L T"]:
        """Return how many experts each layer fetches for each token, with the slots set now."""
        return (self.distances() >= self.slots).sum(-1)

    def counted(self) -> Integer[np.ndarray, "L N"]:
        """Return the same of the tokens that count."""
        return self.fetched()[:, self.answer - self.first :]

    def hit_rate(self) -> float:
        """Return the share of lookups that find their expert, over all layers."""
        return 1 - float(self.counted().mean()) / self.n_active

    def moved_bytes(self) -> float:
        """Return the bytes that are moved for a token of the answer, on average."""
        return float(self.counted().sum(0).mean()) * self.expert_bytes

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
        low, last = {
            "layer": (0, self.n_layers - 1),
            "token": (self.first, self.first + len(self.tokens) - 1),
            "slots": (self.n_active, self.n_experts),
        }[name]
        if not low <= value <= last:
            raise TraitError(f"{name}={value} is not in this recording: {low} to {last}.")
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
    ids, n_experts, n_prompt = arrays["expert_idx"], about["n_experts"], about.get("n_prompt", 0)
    n_prompt %= n_tokens  # without an answer the whole text counts
    first = max(0, n_tokens - max(1, MAX_CHOICES // (n_layers * n_active)))
    answer = max(first, n_prompt)
    # of the whole text: what came before the tokens that are kept fills the cache
    away = distances(ids, n_experts)
    shuffled = shuffled_hit_rates(ids, n_experts, answer).mean(0)
    view = OffloadView(
        title=f"Offloaded experts of {origin(about)}",
        **kept(about["tokens"], first),
        answer=answer,
        n_layers=n_layers,
        n_experts=n_experts,
        n_active=n_active,
        expert_bytes=about["expert_bytes"],
        away=to_bytes(away[:, first:], "u1"),
        shuffled=[round(rate, 4) for rate in shuffled.tolist()],
        published=_published(),
        recording=recording,
    )
    view.slots = max(n_active, n_experts // 4)
    view.select(**selection)
    counted = view.counted()
    start = {"layer": int(counted.sum(1).argmax()), "token": answer + int(counted.sum(0).argmax())}
    view.select(**{**start, **selection})
    what = told(n_tokens - answer, answer - n_prompt, " of the answer" if n_prompt else "")
    view.summary = _summary(view, what)
    view.rows = _rows(view, about["model"], hit_rates(away, n_experts, answer).mean(0), shuffled)
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


def _summary(view: OffloadView, what: str) -> str:
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
