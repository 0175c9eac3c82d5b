"""Experts on the GPU, in Triton: MXFP4 bytes are multiplied as the file stores them.

Checked under Triton's interpreter and compiled for compute capabilities 7.5, 8.0 and 9.0; not yet
timed on a GPU. Importing this module imports Triton; `kernels.gpu` does so on first use.

A 32-bit word holds eight codes of four bits: sign, two bits of exponent, one of mantissa. Put at
the lowest bits of a floating-point exponent and the highest of its mantissa, a code is the right
number times 2 ** -126, zero and one half (a subnormal) included: no table, no branch. Two codes fit
one word so, as bfloat16, and a bfloat16 is the upper half of a float32.

One or a few tokens (`few_tokens`) are bound by reading the weights once: sums in float32. Many
tokens (`many_tokens`) are sorted by expert and go through the matrix units.

Source:
    OCP Microscaling Formats (MX) v1.0, sections 5.2 and 6.3; bit placement as in Frantar et al.
    2024 (MARLIN).
"""

# pyright: reportMissingImports=false

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tiles, unmeasured: rows a program computes, blocks of 32 weights it reads at a time, and warps.
DECODE_UP = {"ROWS": 16, "BLOCKS": 32, "num_warps": 4}
DECODE_DOWN = {"ROWS": 8, "BLOCKS": 32, "num_warps": 4}
GROUPED = {  # by the bytes of a number: no matrix units multiply float32
    2: {"TOKENS": 64, "ROWS": 64, "BLOCKS": 2, "num_warps": 4},
    4: {"TOKENS": 32, "ROWS": 32, "BLOCKS": 1, "num_warps": 4},
}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile with Triton, without the type checks that tests put around annotated functions."""
    return triton.jit(inspect.unwrap(function))


# --- MXFP4 to numbers ----------------------------------------------------------------------------


@kernel
def power_of_two(scale_bytes):
    """Return 2 ** (byte - 127) as float32: byte 0 makes a subnormal, byte 255 a NaN."""
    bits = scale_bytes.to(tl.uint32) << 23
    bits = tl.where(scale_bytes == 0, 0x00400000, bits)
    bits = tl.where(scale_bytes == 255, 0x7FC00000, bits)
    return bits.to(tl.float32, bitcast=True)


@kernel
def packed_dot(
    x,
    words,
    scales,
    word_rows,
    scale_rows,
    real,
    n_blocks,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Multiply packed rows [ROWS, 32 * n_blocks] by one vector; sums are float32, [ROWS].

    `word_rows` and `scale_rows` say where each row begins, `real` which rows there are. Codes j and
    j + 4 of each word are decoded at once, to the two halves of a word. Of the factor 2 ** 126 that
    is missing then, x takes 2 ** 64 and each block's sum the rest, so that neither overflows nor
    loses digits while 2 ** -60 < |x| < 2 ** 60.
    """
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for first in range(0, n_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        word = 4 * block[:, None] + tl.arange(0, 4)[None, :]  # [BLOCKS 4]
        inside = (block < n_blocks)[:, None]
        wanted = real[:, None] & (block < n_blocks)[None, :]  # [ROWS BLOCKS]
        packed = tl.load(
            words + word_rows[:, None, None] + word[None], mask=wanted[:, :, None], other=0
        ).to(tl.uint32, bitcast=True)  # [ROWS BLOCKS 4]
        sums = tl.zeros((ROWS, BLOCKS, 4), tl.float32)
        for j in tl.static_range(4):
            shifted = packed >> (4 * j)
            pair = ((shifted << 12) & 0x80008000) | ((shifted << 6) & 0x01C001C0)
            low = (pair << 16).to(tl.float32, bitcast=True)
            high = (pair & 0xFFFF0000).to(tl.float32, bitcast=True)
            x_low = tl.load(x + 8 * word + j, mask=inside, other=0).to(tl.float32)
            x_high = tl.load(x + 8 * word + j + 4, mask=inside, other=0).to(tl.float32)
            sums += low * (x_low * 2.0**64)[None]
            sums += high * (x_high * 2.0**64)[None]
        scale = tl.load(scales + scale_rows[:, None] + block[None], mask=wanted, other=0)
        total += tl.sum(sums, 2) * 2.0**62 * power_of_two(scale)
    return tl.sum(total, 1)


@kernel
def unpack_tile(
    words, scales, word_rows, scale_rows, real, first, n_blocks, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Decode blocks first ... first + BLOCKS of packed rows: float32 [ROWS, 32 * BLOCKS]."""
    word = 4 * first + tl.arange(0, 4 * BLOCKS)
    wanted = real[:, None] & (word < 4 * n_blocks)[None, :]
    packed = tl.load(words + word_rows[:, None] + word[None], mask=wanted, other=0)
    codes = packed.to(tl.uint32, bitcast=True)[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]
    bits = ((codes & 8) << 28) | ((codes & 7) << 22)
    scale = tl.load(scales + scale_rows[:, None] + (word // 4)[None], mask=wanted, other=0)
    weights = bits.to(tl.float32, bitcast=True) * 2.0**126 * power_of_two(scale)[:, :, None]
    return tl.reshape(weights, (ROWS, 32 * BLOCKS))


@kernel
def clamped_swiglu(gate, up, alpha, limit):
    """gpt-oss's activation; a NaN stays one, which a plain minimum would turn into the limit."""
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.clamp(up, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
    return gate * tl.sigmoid(alpha * gate) * (up + 1)


# --- one or a few tokens -------------------------------------------------------------------------


@kernel
def up_kernel(
    x, words, scales, bias, ids, hidden, n_active, width, d_ff, alpha, limit,
    word_expert, word_half, word_row, scale_expert, scale_half, scale_row,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Make hidden [N A F]: the activation of x [N D] times the chosen experts' gate and up rows.

    One program: ROWS / 2 features of one expert of one token. Rows are taken gate, up, gate, up,
    as they lie in gpt-oss's files.
    """
    choice = tl.program_id(1)  # token * A + slot
    expert = tl.load(ids + choice).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature, half = row // 2, row % 2
    real = feature < d_ff
    sums = packed_dot(
        x + (choice // n_active) * width, words + expert * word_expert,
        scales + expert * scale_expert, half.to(tl.int64) * word_half + feature * word_row,
        half.to(tl.int64) * scale_half + feature * scale_row, real, width // 32, ROWS, BLOCKS,
    )  # fmt: skip
    if HAS_BIAS:
        where = expert * 2 * d_ff + half * d_ff + feature
        sums += tl.load(bias + where, mask=real, other=0).to(tl.float32)
    gate, up = tl.split(tl.reshape(sums, (ROWS // 2, 2)))
    feature = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    out = clamped_swiglu(gate, up, alpha, limit)
    tl.store(hidden + choice * d_ff + feature, out, mask=feature < d_ff)


@kernel
def down_kernel(
    hidden, words, scales, bias, ids, weights, out, n_active, width, d_model,
    word_expert, word_row, scale_expert, scale_row,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Make out [N D]: the weighted sum of A experts' down rows times hidden [N A F].

    One program: ROWS outputs of one token, over its experts in their order. Nothing is added by
    two programs, so the result is the same every time.
    """
    token = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < d_model
    total = tl.zeros((ROWS,), tl.float32)
    for slot in range(n_active):
        choice = token * n_active + slot
        expert = tl.load(ids + choice).to(tl.int64)
        answer = packed_dot(
            hidden + choice * width, words + expert * word_expert, scales + expert * scale_expert,
            row.to(tl.int64) * word_row, row.to(tl.int64) * scale_row, real, width // 32,
            ROWS, BLOCKS,
        )  # fmt: skip
        if HAS_BIAS:
            answer += tl.load(bias + expert * d_model + row, mask=real, other=0).to(tl.float32)
        total += tl.load(weights + choice) * answer
    tl.store(out + token * d_model + row, total.to(out.dtype.element_ty), mask=real)


def as_words(blocks: Tensor) -> Tensor:
    """View [..., 16] bytes as [..., 4] words of eight codes, without a copy."""
    return blocks.view(torch.int32)


def few_tokens(
    x: Tensor, weights: Tensor, ids: Tensor, up: Any, down: Any, alpha: float, limit: float
) -> Tensor:
    """Apply the chosen experts to N tokens [N D], reading each token's experts from memory."""
    n_tokens, n_active = ids.shape
    d_ff, d_model = down.blocks.shape[-2] * 32, down.blocks.shape[1]
    hidden = torch.empty(n_tokens, n_active, d_ff, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    words, scales = as_words(up.blocks), up.scales
    tiles = triton.cdiv(2 * d_ff, DECODE_UP["ROWS"])
    with torch.cuda.device_of(x):
        up_kernel[(tiles, n_tokens * n_active)](
            x.contiguous(), words, scales, up.bias, ids, hidden, n_active, x.shape[1], d_ff,
            alpha, limit, *words.stride()[:3], *scales.stride()[:3],
            HAS_BIAS=up.bias is not None, **DECODE_UP,
        )  # fmt: skip
        words, scales = as_words(down.blocks), down.scales
        tiles = triton.cdiv(d_model, DECODE_DOWN["ROWS"])
        down_kernel[(tiles, n_tokens)](
            hidden, words, scales, down.bias, ids, weights, out, n_active, d_ff, d_model,
            *words.stride()[:2], *scales.stride()[:2],
            HAS_BIAS=down.bias is not None, **DECODE_DOWN,
        )  # fmt: skip
    return out


# --- many tokens ---------------------------------------------------------------------------------


@kernel
def grouped_kernel(
    x, words, scales, bias, order, tile_expert, tile_first, tile_end, out, n_experts, share,
    width, n_rows, alpha, limit,
    word_expert, word_half, word_row, scale_expert, scale_half, scale_row,
    HAS_BIAS: tl.constexpr, IS_UP: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Multiply up to TOKENS choices that share an expert by ROWS of its rows.

    A choice is token * A + slot; `order` lists the choices by expert, and a tile of it holds one
    expert's only. It reads row choice // share of x and writes row choice of out: [N A F] after
    the activation if IS_UP, else [N A D].
    """
    tile = tl.program_id(1)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert >= n_experts:  # there are as many programs as tiles there could be
        return
    place = tl.load(tile_first + tile) + tl.arange(0, TOKENS)
    taken = place < tl.load(tile_end + tile)
    choice = tl.load(order + place, mask=taken, other=0)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature, half = row, 0 * row
    if IS_UP:
        feature, half = row // 2, row % 2
    real = row < n_rows
    word_rows = half.to(tl.int64) * word_half + feature.to(tl.int64) * word_row
    scale_rows = half.to(tl.int64) * scale_half + feature.to(tl.int64) * scale_row
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for first in range(0, width // 32, BLOCKS):
        column = first * 32 + tl.arange(0, 32 * BLOCKS)
        matrix = unpack_tile(
            words + expert * word_expert, scales + expert * scale_expert,
            word_rows, scale_rows, real, first, width // 32, ROWS, BLOCKS,
        )  # fmt: skip
        vectors = tl.load(
            x + (choice // share)[:, None].to(tl.int64) * width + column[None, :],
            mask=taken[:, None] & (column < width)[None, :], other=0,
        )  # fmt: skip
        # ieee: tf32 would round float32 to 10 bits
        matrix = tl.trans(matrix.to(vectors.dtype))
        sums = tl.dot(vectors, matrix, sums, input_precision="ieee")
    if HAS_BIAS:
        where = expert * n_rows + half * (n_rows // 2) + feature
        sums += tl.load(bias + where, mask=real, other=0).to(tl.float32)[None, :]
    if IS_UP:
        gate, up = tl.split(tl.reshape(sums, (TOKENS, ROWS // 2, 2)))
        made = clamped_swiglu(gate, up, alpha, limit).to(out.dtype.element_ty)
        feature = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        where = out + choice[:, None].to(tl.int64) * (n_rows // 2) + feature[None, :]
        tl.store(where, made, mask=taken[:, None] & (feature < n_rows // 2)[None, :])
    else:
        where = out + choice[:, None].to(tl.int64) * n_rows + row[None, :]
        made = sums.to(out.dtype.element_ty)
        tl.store(where, made, mask=taken[:, None] & real[None, :])


def tiles_by_expert(ids: Tensor, n_experts: int, size: int) -> tuple[Tensor, ...]:
    """Cut the choices, sorted by expert, into tiles that hold one expert's only.

    All on the device, for asking it how many there are would wait for it. Each expert ends with
    at most one tile that is not full, which bounds their number.

    Returns:
        (order, expert, first, end): the choices by expert [N A]; for each tile its expert, or
        n_experts for one that is not needed, and its places in `order`.
    """
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(n_experts, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    ends, tile_ends = counts.cumsum(0), ((counts + size - 1) // size).cumsum(0)
    n_tiles = flat.numel() // size + min(n_experts, flat.numel())
    tile = torch.arange(n_tiles, device=ids.device)
    expert = torch.searchsorted(tile_ends, tile, right=True)
    known = expert.clamp(max=n_experts - 1)
    before = tile - (tile_ends - (counts + size - 1) // size)[known]  # tiles of the same expert
    first = (ends - counts)[known] + before * size
    return order, expert, first, ends[known]


def many_tokens(
    x: Tensor, weights: Tensor, ids: Tensor, up: Any, down: Any, alpha: float, limit: float
) -> Tensor:
    """Apply the chosen experts to N tokens [N D], each expert once for all that chose it."""
    n_tokens, n_active = ids.shape
    n_experts, d_model = down.scales.shape[:2]
    d_ff = down.blocks.shape[-2] * 32
    tile = GROUPED[x.element_size()]
    order, *tiles = tiles_by_expert(ids, n_experts, tile["TOKENS"])
    hidden = torch.empty(n_tokens * n_active, d_ff, dtype=x.dtype, device=x.device)
    answers = torch.empty(n_tokens * n_active, d_model, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        words, scales = as_words(up.blocks), up.scales
        grouped_kernel[(triton.cdiv(2 * d_ff, tile["ROWS"]), len(tiles[0]))](
            x.contiguous(), words, scales, up.bias, order, *tiles, hidden, n_experts, n_active,
            x.shape[1], 2 * d_ff, alpha, limit, *words.stride()[:3], *scales.stride()[:3],
            HAS_BIAS=up.bias is not None, IS_UP=True, **tile,
        )  # fmt: skip
        words, scales = as_words(down.blocks), down.scales
        strides = words.stride(0), 0, words.stride(1), scales.stride(0), 0, scales.stride(1)
        grouped_kernel[(triton.cdiv(d_model, tile["ROWS"]), len(tiles[0]))](
            hidden, words, scales, down.bias, order, *tiles, answers, n_experts, 1,
            d_ff, d_model, alpha, limit, *strides,
            HAS_BIAS=down.bias is not None, IS_UP=False, **tile,
        )  # fmt: skip
    answers = answers.view(n_tokens, n_active, d_model)
    return (weights[..., None] * answers).sum(1).to(x.dtype)
