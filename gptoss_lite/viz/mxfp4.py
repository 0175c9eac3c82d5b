"""What four bits keep: 32 weights, and the numbers that their common scale offers."""

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from gptoss_lite.errors import ShapeError
from gptoss_lite.mxfp4 import BLOCK, SCALE_BIAS, VALUES, dequantize, quantize

ORIGINAL, DECODED = "#d55e00", "#0072b2"


def mxfp4(weights: Float[Tensor, "*any"], ax: Axes | None = None) -> Axes:
    """Draw a block before and after MXFP4; the lines are all numbers that its scale offers.

    Args:
        weights: 32 finite numbers.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no tensor, not 32 numbers, or not all finite.
    """
    original = one_block(weights)
    ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
    blocks, scales = quantize(original)
    decoded = dequantize(blocks, scales, torch.float32)
    exponent = int(scales.item()) - SCALE_BIAS
    for number in (VALUES * 2.0**exponent).tolist():
        ax.axhline(number, color="#cccccc", linewidth=0.6, zorder=0)
    places = range(BLOCK)
    ax.vlines(places, original, decoded, color="#888888", linewidth=1)
    ax.plot(places, decoded, "_", color=DECODED, markersize=9, markeredgewidth=2.5, label="decoded")
    ax.plot(places, original, "o", color=ORIGINAL, mfc="none", markersize=5, label="original")
    ax.set(xlabel="weight", ylabel=f"number (scale $2^{{{exponent}}}$)", xlim=(-0.8, BLOCK - 0.2))
    ax.legend(loc="upper right", fontsize=8)
    return ax


def one_block(weights: Float[Tensor, "*any"]) -> Float[Tensor, " 32"]:
    """Return the weights of a block in a row, in single precision.

    Raises:
        ShapeError: no tensor, or not 32 numbers.
    """
    if not isinstance(weights, Tensor):
        raise ShapeError(f"A block is a tensor, got a {type(weights).__name__}: torch.tensor(...).")
    if weights.numel() != BLOCK:
        raise ShapeError(
            f"A block has {BLOCK} weights, got {list(weights.shape)}. Take {BLOCK} neighbors of a "
            "row: mxfp4(w[0, :32])."
        )
    return weights.detach().float().cpu().flatten()
