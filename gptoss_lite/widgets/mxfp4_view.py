"""One block of MXFP4 bit by bit: 16 bytes of codes, one scale byte, and 32 decoded weights."""

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor
from traitlets import Bool, Bytes, Int, List, TraitError, validate

from gptoss_lite import mxfp4 as packing
from gptoss_lite import viz
from gptoss_lite.viz.mxfp4 import one_block
from gptoss_lite.widgets.page import PageWidget, from_bytes, module_source, percent, to_bytes


class MXFP4View(PageWidget):
    """A block whose bits can be changed; `mxfp4` makes one.

    Attributes:
        weight: the selected weight, 0 to 31.
        codes: the 16 bytes of codes.
        scale: the scale byte, 0 to 255.
        high_first: read the high half of each byte first, which is the wrong order.
    """

    view = "mxfp4"
    options = ("weight", "codes", "scale", "high_first")
    rows_shown: ClassVar[int] = 8
    _esm = module_source("mxfp4")

    weight = Int(0).tag(sync=True)
    codes = List(Int()).tag(sync=True)
    scale = Int(packing.SCALE_BIAS).tag(sync=True)
    high_first = Bool(False).tag(sync=True)

    original = Bytes().tag(sync=True)  # f32 [32]
    encoded = List(Int()).tag(sync=True)  # the 16 bytes and the scale byte, as encoded

    def decoded(self) -> Float[np.ndarray, " 32"]:
        """Return the weights that the bytes stand for now, as float64."""
        blocks = torch.tensor([self.codes], dtype=torch.uint8)
        scales = torch.tensor([self.scale], dtype=torch.uint8)
        weights = packing.dequantize(blocks, scales, torch.float64).view(-1, 2)
        return (weights.flip(-1) if self.high_first else weights).flatten().numpy()

    def errors(self) -> Float[np.ndarray, " 32"]:
        """Return the decoded weights minus the original ones."""
        return self.decoded() - from_bytes(self.original, "f4", packing.BLOCK)

    def figure(self, ax: Axes | None = None) -> Axes:
        """Draw the weights before and after, as they were encoded, for print."""
        original = from_bytes(self.original, "f4", packing.BLOCK).copy()
        return viz.mxfp4(torch.from_numpy(original), ax)

    @validate("weight", "scale")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        last = {"weight": packing.BLOCK - 1, "scale": 255}[name]
        if not 0 <= value <= last:
            raise TraitError(f"{name}={value} is not in a block: 0 to {last}.")
        return value

    @validate("codes")
    def _are_bytes(self, proposal: Any) -> list[int]:
        value = proposal["value"]
        if len(value) != packing.BLOCK // 2 or not all(0 <= byte <= 255 for byte in value):
            raise TraitError(f"codes={value} are no block: it has 16 bytes, each 0 to 255.")
        return value


def mxfp4(
    weights: Float[Tensor, "*any"] | None = None, source: str = "given weights", **selection: Any
) -> MXFP4View:
    """Show a block of 32 weights as MXFP4 stores it; every bit of it can be switched.

    Args:
        weights: 32 finite numbers, as `w[0, :32]`; if None, fixed random ones.
        source: where they come from, for the title.
        selection: where to start: `weight`, `codes`, `scale`, `high_first`.

    Raises:
        ShapeError: no tensor, not 32 weights, or not all finite.
    """
    if weights is None:
        weights, source = _random_block(), "random weights, synthetic"
    original = one_block(weights)
    blocks, scales = packing.quantize(original)
    codes, scale = blocks.flatten().tolist(), int(scales.item())
    view = MXFP4View(
        title=f"One block of MXFP4: {source}",
        codes=codes,
        scale=scale,
        original=to_bytes(original.numpy(), "f4"),
        encoded=[*codes, scale],
    )
    view.summary, view.rows = _summary(view), _rows(view)
    view.select(**selection)
    return view


def _random_block() -> Float[Tensor, " 32"]:
    """Draw weights as a file would hold them, in bfloat16."""
    draw = np.random.default_rng(8).normal(0, 1, packing.BLOCK)
    return torch.from_numpy(draw).bfloat16()


def _summary(view: MXFP4View) -> str:
    # in double precision, or the squares of very large and very small weights would be lost
    original = from_bytes(view.original, "f4", packing.BLOCK).astype(np.float64)
    error = view.errors()
    size = float(np.linalg.norm(original))
    off = float(np.linalg.norm(error)) / size if size else 0.0
    zeros = int((view.decoded() == 0).sum())
    return (
        f"32 weights take 17 bytes, 4.25 bits each: 16 bytes of two codes, and scale byte "
        f"{view.scale}, which stands for 2^{view.scale - packing.SCALE_BIAS}. As encoded they come "
        f"back {percent(off)} off (root mean square), {zeros} of them as zero."
    )


def _rows(view: MXFP4View) -> list[dict[str, Any]]:
    """One row a weight, in the order of the block."""
    decoded, error = view.decoded(), view.errors()
    rows = []
    for i in range(packing.BLOCK):
        byte = view.codes[i // 2]
        code = byte >> 4 if i % 2 else byte & 15
        rows.append(
            {
                "weight": i,
                "byte": i // 2,
                "as hexadecimal": f"{byte:02X}",
                "half": "high" if i % 2 else "low",
                "code": f"{code:04b}",
                "code's number": f"{packing.VALUES[code].item():g}",
                "decoded": f"{decoded[i]:g}",
                "original": f"{decoded[i] - error[i]:.4g}",
                "error": f"{error[i]:.2g}",
            }
        )
    return rows
