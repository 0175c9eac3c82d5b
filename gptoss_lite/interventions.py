"""Change one part of a loaded model inside a `with` block, and put it back bit for bit.

A change is felt by every forward pass in the block, whatever happens in it. Blocks may be nested.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gptoss_lite.errors import ShapeError
from gptoss_lite.model import Transformer

PLAIN = -math.inf  # a shift that leaves a plain softmax
SILENT = 1e4  # a shift that gives all attention to nobody; float16 can hold it


@contextmanager
def moved_sinks(
    model: Transformer, by: float, layer: int | None = None, head: int | None = None
) -> Iterator[None]:
    """Add a number to the sink logits of all heads, of one layer, or of one head.

    Args:
        model: a model with sinks.
        by: nats; `PLAIN` takes the sinks out of the softmax, `SILENT` silences the heads.
        layer: only this one.
        head: only this one of the layer, or of every layer.

    Raises:
        ShapeError: no sinks, no such layer or head, or a number that is none.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> model = Transformer(PRESETS["gpt-oss-nano"].but(n_layers=2))
        >>> with moved_sinks(model, 2.0, layer=1):
        ...     [block.attn.sinks[0].item() for block in model.blocks]
        [0.0, 2.0]
        >>> model.blocks[1].attn.sinks[0].item()
        0.0
    """
    learned = [block.attn.sinks for block in model.blocks if block.attn.sinks is not None]
    if not learned:
        raise ShapeError("This model has no sinks, so there is nothing to move. gpt-oss has them.")
    if math.isnan(by) or by == math.inf:
        raise ShapeError(f"The sinks cannot be moved by {by}. Give nats, or PLAIN or SILENT.")
    if layer is not None:
        learned = [learned[_checked("layer", layer, len(learned))]]
    if head is not None:
        _checked("head", head, model.config.n_heads)
    heads = slice(None) if head is None else head
    before = [sinks.data.clone() for sinks in learned]
    try:
        for sinks in learned:
            sinks.data[heads] += by
        yield
    finally:
        for sinks, values in zip(learned, before, strict=True):
            sinks.data.copy_(values)


@contextmanager
def rerouted(
    model: Transformer, layer: int, expert: int, instead: int | None = None
) -> Iterator[None]:
    """Forbid one expert, or send its tokens to another.

    Args:
        model: a model with experts.
        layer: whose router is overruled.
        expert: gets no token.
        instead: gets them, with the router's logit for `expert` where that is the larger. None
            lets the next best move up.

    Raises:
        ShapeError: no experts, too few of them, or no such layer or expert.
    """
    moe = model.config.moe
    if moe is None:
        raise ShapeError("This model has no experts, so nothing can be rerouted. gpt-oss has them.")
    if moe.n_experts <= moe.n_active:
        raise ShapeError(f"All {moe.n_experts} experts work for every token: none can be left out.")
    _checked("expert", expert, moe.n_experts)
    if instead is not None and _checked("expert", instead, moe.n_experts) == expert:
        raise ShapeError(f"Expert {expert} cannot stand in for itself. Choose another.")

    def change(router: Any, args: Any, logits: Tensor) -> Tensor:
        logits = logits.clone()
        if instead is not None:
            logits[:, instead] = torch.maximum(logits[:, instead], logits[:, expert])
        logits[:, expert] = -torch.inf
        return logits

    block: Any = model.blocks[_checked("layer", layer, len(model.blocks))]
    hook = block.ffn.router.register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def windowed(model: Transformer, keys: int | None) -> Iterator[None]:
    """Give the sliding layers another window; the full layers stay as they are.

    Only for passes without a cache, whose size the config decides.

    Args:
        model: a model with sliding layers.
        keys: how many a query sees, itself included; None lets it see all.

    Raises:
        ShapeError: no sliding layers, or less than one key.
    """
    sliding = [block.attn for block in model.blocks if block.attn.window is not None]
    if not sliding:
        raise ShapeError("No layer of this model slides, so there is no window to change.")
    if keys is not None and keys < 1:
        raise ShapeError(f"A window of {keys} keys is empty: a query sees at least itself.")
    before = [attn.window for attn in sliding]
    try:
        for attn in sliding:
            attn.window = keys
        yield
    finally:
        for attn, window in zip(sliding, before, strict=True):
            attn.window = window


def _checked(name: str, value: int, size: int) -> int:
    if not 0 <= value < size:
        raise ShapeError(f"There is no {name} {value} in this model: 0 to {size - 1}.")
    return value
