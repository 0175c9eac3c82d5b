"""How long each pair takes for a full turn, with RoPE and with YaRN."""

import math

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.positions import frequencies, rope_frequencies, yarn_ramp

PLAIN, YARN, MARK = "#999999", "#0072b2", "#d55e00"


def rope(config: ModelConfig, ax: Axes | None = None) -> Axes:
    """Draw the wavelength of every pair; gray is where YaRN blends, lines are the contexts.

    Args:
        config: a model whose positions are rotations.
        ax: where to draw; a new figure if None.

    Raises:
        ConfigError: a model with a learned table.
    """
    if config.positions != "rope":
        raise ConfigError(f"rope needs positions='rope', got {config.positions!r}.")
    ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
    plain, (slowed, _) = rope_frequencies(config.head_dim, config.rope_theta), frequencies(config)
    ax.semilogy(2 * math.pi / plain, "s", color=PLAIN, markersize=4, label="RoPE")
    contexts = {config.context}
    if config.yarn is not None:
        ax.semilogy(2 * math.pi / slowed, "o", color=YARN, markersize=4, label="YaRN")
        contexts |= {config.yarn.original_context}
        ramp = yarn_ramp(config.head_dim, config.rope_theta, config.yarn)
        for pair in ((ramp > 0) & (ramp < 1)).nonzero().flatten().tolist():
            ax.axvspan(pair - 0.5, pair + 0.5, color="gray", alpha=0.15, linewidth=0)
    for tokens in sorted(contexts):
        ax.axhline(tokens, color=MARK, linestyle=":")
        ax.text(0, 1.2 * tokens, f"{tokens:,} tokens", color=MARK, fontsize=8)
    ax.set(xlabel="pair", ylabel="tokens for a full turn")
    ax.legend(loc="lower right", fontsize=8)
    return ax
