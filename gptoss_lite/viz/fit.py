"""What a model needs beside what a memory holds, as bars."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from gptoss_lite import account
from gptoss_lite.account import OVERHEAD_BYTES
from gptoss_lite.config import ModelConfig

PARTS = {  # told apart by lightness and hatching too, never by color alone
    "experts": ("#0a5cad", ""),
    "other weights": ("#9b9476", ""),
    "KV cache": ("#fee838", "///"),
    "overhead": ("white", ""),
}


def fit(
    models: Mapping[str, ModelConfig],
    memory_bytes: float,
    *,
    context_tokens: int = 4_096,
    batch: int = 1,
    dense: str | None = None,
    experts: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what each model needs, in GB of 10 ** 9 bytes, and the memory as a line.

    Args:
        models: names and configs, the first on top.
        memory_bytes: of the device, e.g. 16e9.
        context_tokens: tokens held in the cache.
        batch: sequences of that length.
        dense: number format of the weights outside the experts, if not the published one.
        experts: number format of the experts' matrices, if not the published one.
        ax: where to draw; a new figure if None.
    """
    if ax is None:
        size = (7, 1.2 + 0.45 * len(models))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    for row, config in enumerate(models.values()):
        left = 0.0
        sizes = _sizes(config, context_tokens, batch, dense, experts)
        for (part, (color, hatch)), n_bytes in zip(PARTS.items(), sizes, strict=True):
            label = None if row else part
            ax.barh(
                row,
                n_bytes / 1e9,
                0.6,
                left,
                color=color,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.7,
                label=label,
            )
            left += n_bytes / 1e9
    ax.axvline(memory_bytes / 1e9, color="black", linestyle="--")
    ax.text(
        memory_bytes / 1e9, 1.01, "memory", ha="center", transform=ax.get_xaxis_transform(), size=8
    )
    ax.set_yticks(range(len(models)), list(models))
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.set_xlabel("GB")
    ax.legend(fontsize=8)
    return ax


def _sizes(
    config: ModelConfig, context_tokens: int, batch: int, dense: str | None, experts: str | None
) -> list[int]:
    """Return the bytes of each part, as `account.fit` adds them up."""
    found = account.fit(
        config, 1, context_tokens=context_tokens, batch=batch, dense=dense, experts=experts
    )
    matrices = account.parameter_table(config).get("expert_weights", 0)
    of_experts = int(matrices * account.BITS[experts or config.expert_dtype] / 8)
    return [of_experts, found.weight_bytes - of_experts, found.kv_bytes, OVERHEAD_BYTES]
