"""What each layer would say next: the logit lens of one recording, token by token."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from traitlets import Bytes, Enum, Int, List, TraitError, Unicode, validate

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

MAX_CELLS = 24 * 64  # layers x tokens: 90 kB of HTML; of longer texts the last tokens are kept
P_ERROR = 1 / 2048 + 1 / 131_070  # of a probability: half precision in the file, 16 bits in a page
MAX_RANK = 65_535  # ranks beyond are this
ARRAYS = ("lens_id", "lens_p", "lens_rank", "lens_kl")


class LensView(TextView):
    """The five most probable next tokens after every layer; `lens` makes one.

    Attributes:
        layer, token: the selection; `token` counts positions of the text, from `first` on.
        color: what the overview shows: "p", the probability of the first choice; "rank", of the
            token that the text goes on with; or "kl", nats from the last layer's probabilities.
    """

    view = "lens"
    options = ("layer", "token", "color")
    rows_shown: ClassVar[int] = 48
    _esm = module_source("lens")

    color = Enum(("p", "rank", "kl"), "p").tag(sync=True)

    n_layers = Int().tag(sync=True)
    n_choices = Int().tag(sync=True)
    pieces = List(Unicode()).tag(sync=True)  # texts that are named by their place here
    choices = Bytes().tag(sync=True)  # u16 [L T C], places in `pieces`
    p = Bytes().tag(sync=True)  # u16 [L T C], in 65535ths
    rank = Bytes().tag(sync=True)  # u16 [L T]
    kl = Bytes().tag(sync=True)  # f32 [L T]

    def top(self, layer: int | None = None, token: int | None = None) -> list[tuple[str, float]]:
        """Return the most probable next tokens of a cell and their probabilities.

        Args:
            layer: after which block; the selected one if None.
            token: position of the token that was read; the selected one if None.
        """
        at = (
            self.layer if layer is None else layer,
            (self.token if token is None else token) - self.first,
        )
        shape = (self.n_layers, len(self.tokens), self.n_choices)
        choices = from_bytes(self.choices, "u2", *shape)[at]
        p = from_bytes(self.p, "u2", *shape)[at] / 65_535
        return [(self.pieces[i], x) for i, x in zip(choices.tolist(), p.tolist(), strict=True)]

    def ranks(self) -> Integer[np.ndarray, "L T"]:
        """Return the rank of the token that the text goes on with, 1 being the first choice."""
        return from_bytes(self.rank, "u2", self.n_layers, len(self.tokens))

    def nats(self) -> Float[np.ndarray, "L T"]:
        """Return how far each layer is from the last one's probabilities, in nats."""
        return from_bytes(self.kl, "f4", self.n_layers, len(self.tokens))

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw twelve tokens with the selected one among them, for print."""
        return viz.lens(self.recording, max(self.first, self.token - 6), ax=ax)

    @validate("layer", "token")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        low = self.first if name == "token" else 0
        end = {"layer": self.n_layers, "token": self.first + len(self.tokens)}[name]
        if not low <= value < end:
            raise TraitError(f"{name}={value} is not in this recording: {low} to {end - 1}.")
        return value


def lens(recording: Recording | None = None, **selection: Any) -> LensView:
    """Show what every layer would say next, had the model ended there.

    Args:
        recording: one run, from `gptoss_lite.recording.record` with `lens=True`; a conversation
            that comes with the package if None.
        selection: where to start: `layer`, `token`, `color`. By default the token whose
            continuation settles last, in the layer where it does.

    Raises:
        ShapeError: a recording without a lens, or with NaN in it.
    """
    recording = recording or example()
    arrays, about = recording.arrays, recording.about
    require(arrays, ARRAYS)
    n_layers, n_tokens, n_choices = arrays["lens_id"].shape
    shown = min(n_tokens, max(1, MAX_CELLS // n_layers))
    ids, p, rank, kl = (arrays[name][:, n_tokens - shown :] for name in ARRAYS)
    seen, places = np.unique(ids, return_inverse=True)
    settled = _settled(rank)
    # ties go to the last token: an answer stands at the end
    token = shown - 1 - int(np.where(settled == n_layers, -1, settled)[::-1].argmax())
    view = LensView(
        title=f"Logit lens of {origin(about)}",
        **kept(about["tokens"], n_tokens - shown),
        n_layers=n_layers,
        n_choices=n_choices,
        pieces=[about["lens_text"][str(i)] for i in seen.tolist()],
        choices=to_bytes(places.reshape(ids.shape), "u2"),
        p=to_bytes(np.rint(65_535 * p.astype(np.float64)), "u2"),
        rank=to_bytes(np.minimum(rank, MAX_RANK), "u2"),
        kl=to_bytes(kl, "f4"),
        summary=_summary(ids, rank, kl, told(shown, n_tokens - shown)),
        rows=_rows(ids, p, rank, kl),
        recording=recording,
    )
    start = {"layer": min(int(settled[token]), n_layers - 1), "token": view.first + token}
    view.select(**{**start, **selection})
    return view


def _settled(rank: Integer[np.ndarray, "L T"]) -> Integer[np.ndarray, " T"]:
    """Return from which layer on the text's next token stays the first choice; L if never."""
    return len(rank) - np.cumprod(rank[::-1] == 1, axis=0).sum(0)


def _summary(
    ids: Integer[np.ndarray, "L T C"],
    rank: Integer[np.ndarray, "L T"],
    kl: Float[np.ndarray, "L T"],
    tokens: str,
) -> str:
    agree = (ids[:, :, 0] == ids[-1, :, 0]).mean(-1)
    early = np.bincount(_settled(rank), minlength=len(rank) + 1)
    text = (
        f"Over {tokens} layer 0 already names the last layer's first choice at {percent(agree[0])}"
    )
    if len(rank) > 2:
        text += f", layer {len(rank) - 2} at {percent(agree[-2])}"
    return (
        f"{text}. On average layer 0 is {kl[0].mean():.1f} nats from the last layer's "
        f"probabilities. The text goes on with the first choice of the last layer at "
        f"{percent(1 - early[-1] / rank.shape[1])}."
    )


def _rows(
    ids: Integer[np.ndarray, "L T C"],
    p: Float[np.ndarray, "L T C"],
    rank: Integer[np.ndarray, "L T"],
    kl: Float[np.ndarray, "L T"],
) -> list[dict[str, Any]]:
    """One row a layer, in order: here the order is the finding."""
    return [
        {
            "after layer": layer,
            "names the last layer's choice": percent((ids[layer, :, 0] == ids[-1, :, 0]).mean()),
            "median rank of the next token": f"{np.median(rank[layer]):,.0f}",
            "mean probability of its first choice": percent(p[layer, :, 0].astype(float).mean()),
            "nats from the last layer": f"{kl[layer].mean():.2f}",
        }
        for layer in range(len(ids))
    ]
