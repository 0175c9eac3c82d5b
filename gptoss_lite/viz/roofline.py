"""What a machine could reach: reading on the slope, arithmetic on the flat."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from gptoss_lite import account
from gptoss_lite.config import ModelConfig

LINES = ("-", "--", "-.", ":")


def roofline(
    config: ModelConfig,
    machines: Mapping[str, tuple[float, float]],
    *,
    batches: Sequence[int] = tuple(2**i for i in range(11)),
    context_tokens: int = 1_024,
    ax: Axes | None = None,
) -> Axes:
    """Draw the most tokens/s against the number of sequences decoded together.

    Args:
        config: the model.
        machines: for each name, (bytes/s of memory, operations/s of large matrix products).
        batches: numbers of sequences, rising.
        context_tokens: tokens in the cache of each sequence.
        ax: where to draw; a new figure if None.
    """
    if ax is None:
        ax = plt.subplots(figsize=(7, 4), layout="constrained")[1]
    for (name, (bandwidth, speed)), style in zip(machines.items(), LINES * 9, strict=False):
        limits = [
            account.step_limit(config, bandwidth, speed, batch=batch, context_tokens=context_tokens)
            for batch in batches
        ]
        (line,) = ax.plot(batches, limits, style, label=name)
        ceiling = speed / account.flops(config, context_tokens)
        bound = np.isclose(limits, ceiling)
        if bound.any():
            first = int(bound.argmax())
            ax.plot(batches[first], limits[first], "o", color=line.get_color())
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("sequences decoded together")
    ax.set_ylabel("tokens per second, at most")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax
