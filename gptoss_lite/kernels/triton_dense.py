"""The small parts of a decoded token on the GPU, in Triton: matrix times vector, norm, rotation.

Checked under Triton's interpreter and compiled for compute capabilities 7.5, 8.0 and 9.0; not yet
timed on a GPU. Importing this module imports Triton; `kernels.gpu` does so on first use.

Each replaces several launches by one; a launch costs about as much as reading 5 MB.
"""

# pyright: reportMissingImports=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptoss_lite.kernels.triton_experts import kernel

GEMV = {"ROWS": 8, "COLUMNS": 512, "num_warps": 4}  # unmeasured


@kernel
def gemv_kernel(
    x, weight, bias, out, n_out, n_in, weight_row,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Make out [N out]: x [N in] times weight [out in], in float32; ROWS of one token."""
    token = tl.program_id(0)  # neighbors share the weights, through the cache
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    real = row < n_out
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, n_in, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        vector = tl.load(x + token * n_in + column, mask=column < n_in, other=0)
        matrix = tl.load(
            weight + row[:, None].to(tl.int64) * weight_row + column[None, :],
            mask=real[:, None] & (column < n_in)[None, :], other=0,
        )  # fmt: skip
        total += matrix.to(tl.float32) * vector.to(tl.float32)[None, :]
    sums = tl.sum(total, 1)
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=real, other=0).to(tl.float32)
    tl.store(out + token * n_out + row, sums.to(out.dtype.element_ty), mask=real)


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [*rows in] times weight.T [in out], plus bias, in x's dtype."""
    n_out, n_in = weight.shape
    rows = x.reshape(-1, n_in).contiguous()
    out = torch.empty(*x.shape[:-1], n_out, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        gemv_kernel[(len(rows), triton.cdiv(n_out, GEMV["ROWS"]))](
            rows, weight, bias, out, n_out, n_in, weight.stride(0),
            HAS_BIAS=bias is not None, **GEMV,
        )  # fmt: skip
    return out


@kernel
def rms_norm_kernel(
    x, delta, weight, total, out, width, eps,
    HAS_DELTA: tl.constexpr, CAST_FIRST: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Make out: RMSNorm(x + delta), one row a program; total is the sum, rounded as torch does."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    real = column < width
    wide = tl.load(x + row * width + column, mask=real, other=0).to(tl.float32)
    if HAS_DELTA:
        wide += tl.load(delta + row * width + column, mask=real, other=0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=real)
        wide = rounded.to(tl.float32)
    wide = wide / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    scale = tl.load(weight + column, mask=real, other=0)
    if CAST_FIRST:
        made = wide.to(total.dtype.element_ty).to(tl.float32) * scale.to(tl.float32)
    else:
        made = wide * scale.to(tl.float32)
    tl.store(out + row * width + column, made.to(out.dtype.element_ty), mask=real)


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """Return x + delta, or x if there is none, and its RMSNorm; [*rows D] each."""
    x, width = x.contiguous(), x.shape[-1]
    total = x if delta is None else torch.empty_like(x)
    wider = torch.promote_types(x.dtype, weight.dtype) if cast_first else x.dtype
    out = torch.empty_like(x, dtype=wider)
    with torch.cuda.device_of(x):
        rms_norm_kernel[(x.numel() // width,)](
            x, x if delta is None else delta.contiguous(), weight, total, out, width, eps,
            HAS_DELTA=delta is not None, CAST_FIRST=cast_first,
            WIDTH=triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4,
        )  # fmt: skip
    return total, out


@kernel
def rotate_kernel(
    q, k, v, cos, sin, turned, keys, values, slot, n_heads, n_kv_heads, half,
    keys_head, keys_row, values_head, values_row, HALF: tl.constexpr,
):  # fmt: skip
    """Rotate one head of q [H hd], or of k [K hd] into its slot of the cache; copy v beside it."""
    head = tl.program_id(0)
    pair = tl.arange(0, HALF)
    real = pair < half
    c = tl.load(cos + pair, mask=real, other=0).to(q.dtype.element_ty).to(tl.float32)
    s = tl.load(sin + pair, mask=real, other=0).to(q.dtype.element_ty).to(tl.float32)
    if head < n_heads:
        source, target = q + head * 2 * half, turned + head * 2 * half
    else:
        source = k + (head - n_heads) * 2 * half
        row = tl.load(slot).to(tl.int64)
        target = keys + (head - n_heads) * keys_head + row * keys_row
        v_source = v + (head - n_heads) * 2 * half
        v_target = values + (head - n_heads) * values_head + row * values_row
        tl.store(v_target + pair, tl.load(v_source + pair, mask=real), mask=real)
        tl.store(v_target + half + pair, tl.load(v_source + half + pair, mask=real), mask=real)
    one = tl.load(source + pair, mask=real, other=0).to(tl.float32)
    two = tl.load(source + half + pair, mask=real, other=0).to(tl.float32)
    tl.store(target + pair, (one * c - two * s).to(q.dtype.element_ty), mask=real)
    tl.store(target + half + pair, (two * c + one * s).to(q.dtype.element_ty), mask=real)


def rotate_and_keep(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor,
    slot: Tensor,
) -> Tensor:  # fmt: skip
    """Rotate one token's q and k; write k and v into the caches at `slot`; return q.

    Args:
        q: [1 H 1 hd].
        k: [1 K 1 hd].
        v: [1 K 1 hd].
        cos: [1 half], float32.
        sin: [1 half], float32.
        keys: [1 K capacity hd], written in place.
        values: likewise.
        slot: the row to write, one integer on the device.
    """
    n_heads, n_kv_heads, half = q.shape[1], k.shape[1], q.shape[-1] // 2
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    turned = torch.empty_like(q)
    with torch.cuda.device_of(q):
        rotate_kernel[(n_heads + n_kv_heads,)](
            q, k, v, cos, sin, turned, keys, values, slot, n_heads, n_kv_heads, half,
            *keys.stride()[1:3], *values.stride()[1:3],
            HALF=triton.next_power_of_2(half), num_warps=1,
        )  # fmt: skip
    return turned


@kernel
def route_kernel(
    logits, weights, ids, n_experts, n_active, EXPERTS: tl.constexpr, ACTIVE: tl.constexpr
):
    """Take the A largest of one token's E logits, one after the other, and their softmax."""
    token = tl.program_id(0)
    expert, slot = tl.arange(0, EXPERTS), tl.arange(0, ACTIVE)
    left = tl.load(logits + token * n_experts + expert, mask=expert < n_experts, other=0)
    left = tl.where(expert < n_experts, left.to(tl.float32), float("-inf"))
    chosen = tl.full((ACTIVE,), float("-inf"), tl.float32)
    names = tl.zeros((ACTIVE,), tl.int32)
    for i in range(n_active):
        best = tl.argmax(left, 0)
        chosen = tl.where(slot == i, tl.max(left, 0), chosen)
        names = tl.where(slot == i, best, names)
        left = tl.where(expert == best, float("-inf"), left)
    mass = tl.exp(chosen - tl.max(chosen, 0))
    mass = mass / tl.sum(mass, 0)
    real = slot < n_active
    tl.store(weights + token * n_active + slot, mass, mask=real)
    tl.store(ids + token * n_active + slot, names.to(tl.int64), mask=real)


def choose(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    """Return (weights, ids) as `moe.route` does; [N A] each."""
    n_tokens, n_experts = logits.shape
    weights = torch.empty(n_tokens, n_active, dtype=torch.float32, device=logits.device)
    ids = torch.empty(n_tokens, n_active, dtype=torch.int64, device=logits.device)
    with torch.cuda.device_of(logits):
        route_kernel[(n_tokens,)](
            logits.contiguous(), weights, ids, n_experts, n_active,
            EXPERTS=triton.next_power_of_2(n_experts), ACTIVE=triton.next_power_of_2(n_active),
            num_warps=1,
        )  # fmt: skip
    return weights, ids
