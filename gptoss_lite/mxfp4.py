"""MXFP4: 32 weights share one power-of-two scale, and each is one of 16 four-bit numbers.

A block of 32 consecutive weights of one row takes 16 bytes of codes and one byte of scale: 4.25
bits a weight. Byte b holds weight 2b in its low half and weight 2b + 1 in its high half.

Source:
    OCP Microscaling Formats (MX) v1.0, sections 5.2 and 6.3; gpt-oss `torch/weights.py`.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from gptoss_lite.dispatch import Op
from gptoss_lite.errors import ShapeError

BLOCK = 32  # weights per scale
SCALE_BIAS = 127  # a scale byte e stands for 2 ** (e - 127); byte 255 stands for NaN

# The E2M1 numbers: 1 sign bit, 2 exponent bits, 1 mantissa bit. Code 8 is minus zero.
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = torch.tensor([*_POSITIVE, *(-v for v in _POSITIVE)], device="cpu")
_MIDPOINTS = (VALUES[1:8] + VALUES[:7]) / 2
_LARGEST_EXPONENT = 2  # 6 = 1.5 * 2 ** 2
DECODED_DTYPES = (torch.bfloat16, torch.float32, torch.float64, torch.float16)


@lru_cache
def byte_table(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "256 2"]:
    """Return the two numbers that each of the 256 code bytes holds, low half first."""
    codes = torch.arange(256, device=device)
    pairs = torch.stack((codes & 15, codes >> 4), dim=1)
    return VALUES.to(device, dtype)[pairs]


@lru_cache
def scale_table(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "256"]:
    """Return 2 ** (e - 127) for every scale byte e, exactly; NaN for 255, as the format says."""
    exponents = torch.arange(256, device=device) - SCALE_BIAS
    scales = torch.ldexp(torch.ones(256, dtype=torch.float64, device=device), exponents)
    scales[255] = torch.nan
    return scales.to(dtype)


@Op
def dequantize(
    blocks: UInt8[Tensor, "*rows G 16"],
    scales: UInt8[Tensor, "*rows G"],
    dtype: torch.dtype = torch.bfloat16,
) -> Float[Tensor, "*rows width"]:
    """Decode packed weights exactly.

    Every value below 2 ** 128 fits bfloat16 and float32 without rounding; larger ones, which only
    scale bytes 253 and 254 can make, become infinite, as in transformers. float16 overflows or
    rounds at far smaller scales.

    Args:
        blocks: code bytes, 16 for each block of 32 weights; [..., rows, in / 32, 16].
        scales: one scale byte for each block; byte 255 makes its whole block NaN.
        dtype: of the result: bfloat16, float32, float64 or float16.

    Returns:
        The weights, [..., rows, in].

    Raises:
        ShapeError: blocks and scales that do not belong together or are not bytes, or another
            dtype.

    Example:
        >>> blocks = torch.zeros(1, 1, 16, dtype=torch.uint8)
        >>> blocks[0, 0, :2] = torch.tensor([0x21, 0xF7])
        >>> dequantize(blocks, torch.tensor([[128]], dtype=torch.uint8))[0, :4].tolist()
        [1.0, 2.0, 12.0, -12.0]
    """
    check_packed(blocks, scales)
    if dtype not in DECODED_DTYPES:
        raise ShapeError(
            f"MXFP4 weights are not decoded to {dtype}, which cannot hold them. "
            f"Use one of {', '.join(map(str, DECODED_DTYPES))}."
        )
    # float16 cannot hold the extreme scales, so there the product is rounded once, at the end.
    work = torch.float32 if dtype == torch.float16 else dtype
    weights = byte_table(work, blocks.device)[blocks.int()]  # [.. G 16 2]
    weights *= scale_table(work, scales.device)[scales.int()][..., None, None]
    return weights.flatten(-3).to(dtype)


def check_packed(blocks: Tensor, scales: Tensor) -> None:
    """Refuse blocks and scales that do not belong together.

    Raises:
        ShapeError: not bytes, or not 16 bytes of codes for each scale.
    """
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise ShapeError(
            f"MXFP4 blocks and scales are bytes (uint8), got {blocks.dtype} and {scales.dtype}."
        )
    if blocks.shape != (*scales.shape, BLOCK // 2):
        raise ShapeError(
            f"MXFP4 blocks {list(blocks.shape)} need scales {list(blocks.shape[:-1])} and a last "
            f"axis of {BLOCK // 2} bytes, got scales {list(scales.shape)}."
        )


def quantize(
    weights: Float[Tensor, "*rows width"],
) -> tuple[UInt8[Tensor, "*rows G 16"], UInt8[Tensor, "*rows G"]]:
    """Round weights to MXFP4 by the rule of the OCP specification.

    The scale puts the largest magnitude of a block at exponent 2; elements are rounded to the
    nearest number, ties to the even code, and saturate at 6. A block of zeros gets scale 1.
    Decoded values come back unchanged. How OpenAI made the published bytes is not documented.

    Args:
        weights: [..., rows, in]; `in` a multiple of 32, all values finite.

    Returns:
        (blocks, scales): [..., rows, in / 32, 16] and [..., rows, in / 32], uint8.

    Raises:
        ShapeError: a last axis that cannot be cut into blocks, or values that are not finite.
    """
    width = weights.shape[-1] if weights.ndim else 1
    if width % BLOCK or not weights.is_floating_point():
        raise ShapeError(
            f"quantize needs floating-point rows whose length is a multiple of {BLOCK}, got "
            f"{weights.dtype} {list(weights.shape)}. Pad the last axis with zeros."
        )
    if not torch.isfinite(weights).all():
        raise ShapeError("MXFP4 has no infinity and one NaN per block: make all weights finite.")
    blocked = weights.to(torch.promote_types(weights.dtype, torch.float32))
    blocked = blocked.unflatten(-1, (width // BLOCK, BLOCK))
    largest = blocked.abs().amax(-1)
    exponent = torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT  # floor(log2) - 2
    exponent = exponent.masked_fill(largest == 0, 0).clamp(-SCALE_BIAS, SCALE_BIAS)
    codes = _nearest_codes(torch.ldexp(blocked, -exponent[..., None]))
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return blocks, (exponent + SCALE_BIAS).to(torch.uint8)


def _nearest_codes(scaled: Tensor) -> Tensor:
    """Return the 4-bit code of the number nearest to each value; ties go to the even code."""
    magnitude = scaled.abs()
    midpoints = _MIDPOINTS.to(magnitude)
    below = torch.bucketize(magnitude, midpoints)  # a tie counts as below the midpoint here
    above = torch.bucketize(magnitude, midpoints, right=True)  # and as above it here
    code = torch.where(below % 2 == 0, below, above)
    return (code | (torch.signbit(scaled).long() << 3)).to(torch.uint8)


class _DecodedExperts(Sequence[Tensor]):
    """The dense matrix of each expert, decoded when it is asked for and not kept."""

    def __init__(self, packed: "PackedExpertLinear", dtype: torch.dtype) -> None:
        self.packed = packed
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.packed.blocks)

    def __getitem__(self, expert: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        dense = dequantize(self.packed.blocks[expert], self.packed.scales[expert], self.dtype)
        return dense.flatten(0, -2)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[expert] for expert in range(len(self)))


class PackedExpertLinear(nn.Module):
    """The same linear layer for E experts, its matrices kept in the file's MXFP4 bytes.

    The rows axis may be split in two, [2, F] for [gate | up]: gpt-oss's files store gate and up
    rows in turn, and a strided view puts them in halves without copying a byte.

    Args:
        blocks: [E, ..., in / 32, 16] bytes; the axes between are the output rows.
        scales: [E, ..., in / 32] bytes.
        bias: [E, out], or None.
    """

    def __init__(self, blocks: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.register_buffer("scales", scales)
        self.blocks: Tensor
        self.scales: Tensor
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def matrices(self, dtype: torch.dtype) -> Sequence[Tensor]:
        """Return the [out, in] matrix of each expert; only the one you index is decoded."""
        return _DecodedExperts(self, dtype)
