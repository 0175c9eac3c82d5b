"""Which keys a query sees in each kind of layer, and what the caches hold at that step."""

from typing import Any, ClassVar

from matplotlib.axes import Axes
from traitlets import Dict, Enum, Int, TraitError, Unicode, validate

from gptoss_lite import account, viz
from gptoss_lite.config import ModelConfig
from gptoss_lite.presets import PRESETS
from gptoss_lite.widgets.page import PageWidget, module_source

PATTERNS = {
    "F": "all full",
    "SF": "sliding, full, in turn (gpt-oss)",
    "SSSSSF": "five sliding, one full (Gemma 3)",
    "S": "all sliding",
}
MAX_DRAWN = 256  # rows and columns of a static figure
N_FIRST = 4  # tokens that StreamingLLM keeps beside the window
CACHE_BITS = {name: bits for name, bits in account.BITS.items() if name != "mxfp4"}


class MaskView(PageWidget):
    """The masks and caches of one model; `mask` makes one.

    Attributes:
        query: position of the newest token, from 0; that many tokens and itself are cached.
        window: keys a query sees in a sliding layer, itself included.
        pattern: S for sliding and F for full, repeated over the layers.
        sinks: "none", "learned" as in gpt-oss, or "first": StreamingLLM's first tokens.
        kv_heads: key/value heads.
        dtype: number format of the cache.
    """

    view = "mask"
    options = ("query", "window", "pattern", "sinks", "kv_heads", "dtype")
    rows_shown: ClassVar[int] = 8
    _esm = module_source("mask")

    query = Int(0, min=0).tag(sync=True)
    window = Int(1, min=1).tag(sync=True)
    pattern = Unicode("SF").tag(sync=True)
    sinks = Enum(("none", "learned", "first"), "none").tag(sync=True)
    kv_heads = Int(1, min=1).tag(sync=True)
    dtype = Enum(tuple(CACHE_BITS), "bfloat16").tag(sync=True)

    n_layers = Int().tag(sync=True)
    n_heads = Int().tag(sync=True)
    head_dim = Int().tag(sync=True)
    context = Int().tag(sync=True)
    n_first = Int(N_FIRST).tag(sync=True)
    patterns = Dict(dict(PATTERNS)).tag(sync=True)
    bits = Dict(dict(CACHE_BITS)).tag(sync=True)

    @validate("query", "pattern", "kv_heads")
    def _is_possible(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "query" and self.context and value >= self.context:
            raise TraitError(f"query={value} is beyond this model: 0 to {self.context - 1}.")
        if name == "pattern" and (not value or set(value) - set("SF")):
            raise TraitError(f"pattern={value!r} must be made of S (sliding) and F (full): 'SF'.")
        if name == "kv_heads" and self.n_heads and self.n_heads % value:
            raise TraitError(f"kv_heads={value} cannot serve {self.n_heads} query heads evenly.")
        return value

    def windows(self) -> list[int | None]:
        """Return each layer's window as it is set now; None means all keys."""
        kinds = (self.pattern[layer % len(self.pattern)] for layer in range(self.n_layers))
        return [self.window if kind == "S" else None for kind in kinds]

    def held(self, n_tokens: int | None = None) -> list[int]:
        """Return the tokens that each layer's cache holds, after the query if not told."""
        n = self.query + 1 if n_tokens is None else n_tokens
        return [n if window is None else min(n, window + self._kept) for window in self.windows()]

    def n_bytes(self, n_tokens: int | None = None) -> int:
        """Return the bytes of all keys and values then held, of one sequence."""
        return sum(self.held(n_tokens)) * self.kv_heads * self._bytes_per_head

    def seen(self, layer: int) -> list[int]:
        """Return the keys that the query sees in one layer."""
        window = self.windows()[layer]
        oldest = 0 if window is None else max(0, self.query - window + 1)
        return [*range(min(self._kept, oldest)), *range(oldest, self.query + 1)]

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw the mask of a sliding layer, or of a full one if none slides, for print.

        Of a long text the first 256 tokens are drawn, with the last of them as the query.
        """
        window = next((window for window in self.windows() if window is not None), None)
        return viz.mask(min(self.query, MAX_DRAWN - 1), window, ax=ax)

    def table(self) -> list[dict[str, Any]]:
        """Return the bytes of the cache at some lengths, as everything is set now."""
        lengths = {self.query + 1, self.context, *(2**i for i in range(7, 40, 2))}
        full = self.n_layers * self._bytes_per_head
        return [
            {
                "tokens": f"{n:,}",
                "bytes in this cache": f"{self.n_bytes(n):,}",
                "all layers full": f"{n * full * self.kv_heads:,}",
                "and a key for each query head": f"{n * full * self.n_heads:,}",
            }
            for n in sorted(lengths)
            if n <= self.context
        ]

    @property
    def _kept(self) -> int:
        """Tokens kept beside the window: a learned sink is none."""
        return self.n_first if self.sinks == "first" else 0

    @property
    def _bytes_per_head(self) -> int:
        """Bytes of one token's key and value, of one head in one layer."""
        return 2 * self.head_dim * int(self.bits[self.dtype]) // 8


def mask(model: str | ModelConfig = "gpt-oss-20b", **selection: Any) -> MaskView:
    """Show the keys that a query sees in sliding and full layers, and what is cached after it.

    Args:
        model: a name of `PRESETS`, or a config: its layers, heads and context.
        selection: where to start: `query`, `window`, `pattern`, `sinks`, `kv_heads`, `dtype`.
            By default as the model has it, at query 11.
    """
    config = PRESETS[model] if isinstance(model, str) else model
    view = MaskView(
        title=f"Masks and caches of {model}" if isinstance(model, str) else "Masks and caches",
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        head_dim=config.head_dim,
        context=config.context,
    )
    start = {
        "query": min(11, config.context - 1),
        "window": config.sliding_window or 128,
        "pattern": config.layer_pattern,
        "sinks": "learned" if config.sinks else "none",
        "kv_heads": config.n_kv_heads,
    }
    view.select(**{**start, **selection})
    if view.pattern not in view.patterns:
        view.patterns = {**view.patterns, view.pattern: view.pattern}
    view.summary = _summary(config)
    return view


def _summary(config: ModelConfig) -> str:
    """Say what the model as published caches at its longest."""
    n = config.context
    rolling, all_full = account.kv_bytes(config, n), account.kv_bytes(config, n, rolling=False)
    layers = [config.window(layer) for layer in range(config.n_layers)]
    slide = len(layers) - layers.count(None)
    told = f"As published, {slide} of {len(layers)} layers slide" + (
        f" and hold the last {config.sliding_window} tokens. " if slide else ". "
    )
    return told + (
        f"At {n:,} tokens the cache holds {account.readable_bytes(rolling)}; were all layers full, "
        f"{account.readable_bytes(all_full)}."
    )
