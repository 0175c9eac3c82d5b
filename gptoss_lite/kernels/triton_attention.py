"""Attention with sinks on the GPU, in Triton: one new token, or a whole prompt.

Checked under Triton's interpreter and compiled for compute capabilities 7.5, 8.0 and 9.0; not yet
timed on a GPU. Importing this module imports Triton; `kernels.gpu` does so on first use.

For one token the keys are split among programs, and each writes its mix of values and the
logarithm of its sum of exponentials. The second kernel weighs the parts; only there the sink
enters, once, as one more exponential without a value.

Source:
    Dao et al. 2022 and Dao et al. 2023, "Flash-Decoding" (split keys); the sink as in gpt-oss
    `torch/model.py` (sdpa).
"""

# pyright: reportMissingImports=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptoss_lite.kernels.triton_experts import kernel

# Tiles, unmeasured, by the bytes of a number; those for float32 fit the 64 KiB of a T4.
SPLITS = {2: 128, 4: 64}  # keys that one program reads; 128 is gpt-oss's window
PROMPT_TILES = {
    2: {"QUERIES": 64, "KEYS": 64, "num_warps": 4},
    4: {"QUERIES": 32, "KEYS": 32, "num_warps": 4},
}
SMALLEST = 16  # rows and columns that a matrix unit takes


@kernel
def split_kernel(
    q, k, v, parts, logs, length, first, scale, n_heads, n_splits, group, width,
    q_batch, q_head, k_batch, k_head, k_key, v_batch, v_head, v_key,
    ON_DEVICE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Attend from one token to SPLIT keys, for all query heads that share them.

    Here parts [B H splits hd] is the mix of these values alone, logs [B H splits] the logarithm of
    the sum of exponentials, -inf for a split past the end. Keys first ... length - 1 are read;
    with ON_DEVICE, `length` points to a number.
    """
    split, kv, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(length) if ON_DEVICE else length
    key = first + split * SPLIT + tl.arange(0, SPLIT)
    member, column = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    head = kv * group + member
    log_place = logs + (batch * n_heads + head) * n_splits + split
    if first + split * SPLIT >= end:
        tl.store(log_place, float("-inf"), mask=member < group)
        return
    inside = column < width
    queries = tl.load(
        q + batch * q_batch + head[:, None] * q_head + column[None, :],
        mask=(member < group)[:, None] & inside[None, :], other=0,
    )  # fmt: skip
    seen = key < end
    wanted = seen[:, None] & inside[None, :]
    place = key[:, None].to(tl.int64)
    keys = tl.load(
        k + batch * k_batch + kv * k_head + place * k_key + column[None, :], mask=wanted, other=0
    )
    values = tl.load(
        v + batch * v_batch + kv * v_head + place * v_key + column[None, :], mask=wanted, other=0
    )
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale  # [GROUP SPLIT]
    scores = tl.where(seen[None, :], scores, float("-inf"))
    top = tl.max(scores, 1)
    mass = tl.exp(scores - top[:, None])
    total = tl.sum(mass, 1)
    mixed = tl.dot(mass.to(values.dtype), values, input_precision="ieee") / total[:, None]
    part_place = parts + ((batch * n_heads + head) * n_splits + split)[:, None] * width
    tl.store(part_place + column[None, :], mixed, mask=(member < group)[:, None] & inside[None, :])
    tl.store(log_place, top + tl.log(total), mask=member < group)


@kernel
def combine_kernel(
    parts, logs, sinks, out, length, first, n_heads, n_splits, width,
    ON_DEVICE: tl.constexpr, HAS_SINKS: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Make out [B H hd]: one head's parts, weighted by their sums; the sink takes its share."""
    head, batch = tl.program_id(0), tl.program_id(1)
    end = tl.load(length) if ON_DEVICE else length
    used = tl.cdiv(end - first, SPLIT)
    column = tl.arange(0, WIDTH)
    base = (batch * n_heads + head) * n_splits
    if HAS_SINKS:
        top = tl.load(sinks + head).to(tl.float32)
        total = top * 0 + 1  # exp(sink - top)
    else:
        top = tl.full((), float("-inf"), tl.float32)
        total = tl.full((), 0.0, tl.float32)
    mixed = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, used, CHUNK):
        split = start + tl.arange(0, CHUNK)
        log = tl.load(logs + base + split, mask=split < used, other=float("-inf"))
        part = tl.load(
            parts + (base + split)[:, None] * width + column[None, :],
            mask=(split < used)[:, None] & (column < width)[None, :], other=0,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(log, 0))
        mass = tl.exp(log - higher)
        shrink = tl.exp(top - higher)
        mixed = mixed * shrink + tl.sum(mass[:, None] * part, 0)
        total = total * shrink + tl.sum(mass, 0)
        top = higher
    made = (mixed / total).to(out.dtype.element_ty)
    tl.store(out + (batch * n_heads + head) * width + column, made, mask=column < width)


def attend_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    length: int | Tensor,
    first: int = 0,
    capacity: int | None = None,
) -> Tensor:
    """Attend from one token to keys first ... length - 1.

    Args:
        q: [B H 1 hd].
        k: [B K S hd], any strides; the last axis contiguous.
        v: likewise.
        sinks: [H], or None.
        length: a number, or a one-element int tensor on the device, for a captured graph.
        first: the oldest key to read.
        capacity: where the keys may end at most; S if not given.

    Returns:
        [B H 1 hd], in q's dtype.
    """
    batch, n_heads, _, width = q.shape
    n_kv_heads, group = k.shape[1], n_heads // k.shape[1]
    end = k.shape[2] if capacity is None else capacity
    size = SPLITS[k.element_size()]
    n_splits = -(-(end - first) // size)  # rounded up
    parts = torch.empty(batch, n_heads, n_splits, width, dtype=torch.float32, device=q.device)
    logs = torch.empty(batch, n_heads, n_splits, dtype=torch.float32, device=q.device)
    out = torch.empty(batch, n_heads, 1, width, dtype=q.dtype, device=q.device)
    padded = max(SMALLEST, triton.next_power_of_2(width))
    shared = {"ON_DEVICE": isinstance(length, Tensor), "WIDTH": padded, "SPLIT": size}
    with torch.cuda.device_of(q):
        split_kernel[(n_splits, n_kv_heads, batch)](
            q, k, v, parts, logs, length, first, 1 / math.sqrt(width), n_heads, n_splits, group,
            width, *q.stride()[:2], *k.stride()[:3], *v.stride()[:3],
            GROUP=max(SMALLEST, triton.next_power_of_2(group)), **shared,
        )  # fmt: skip
        combine_kernel[(n_heads, batch)](
            parts, logs, sinks, out, length, first, n_heads, n_splits, width,
            HAS_SINKS=sinks is not None, CHUNK=16, **shared,
        )  # fmt: skip
    return out


@kernel
def prompt_kernel(
    q, k, v, sinks, out, n_queries, n_keys, window, scale, n_heads, group, width,
    q_batch, q_head, q_row, k_batch, k_head, k_key, v_batch, v_head, v_key,
    HAS_SINKS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Make out [B H T hd]: QUERIES queries of one head, over the keys that any may see."""
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv = head // group
    query, column = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    stands = n_keys - n_queries + query  # the newest query stands at the newest key
    real = (query < n_queries)[:, None] & (column < width)[None, :]
    queries = tl.load(
        q + batch * q_batch + head * q_head + query[:, None] * q_row + column[None, :],
        mask=real, other=0,
    )  # fmt: skip
    if HAS_SINKS:
        top = tl.zeros((QUERIES,), tl.float32) + tl.load(sinks + head).to(tl.float32)
        total = tl.full((QUERIES,), 1.0, tl.float32)
    else:
        top = tl.full((QUERIES,), -1e30, tl.float32)  # finite: -inf minus -inf is NaN
        total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    offset = n_keys - n_queries + tile * QUERIES
    oldest = tl.maximum(0, offset - window + 1) // KEYS * KEYS
    newest = tl.minimum(n_keys, offset + QUERIES)
    for start in range(oldest, newest, KEYS):
        key = start + tl.arange(0, KEYS)
        place = key[:, None].to(tl.int64)
        there = (key < n_keys)[:, None] & (column < width)[None, :]
        keys = tl.load(
            k + batch * k_batch + kv * k_head + place * k_key + column[None, :],
            mask=there, other=0,
        )  # fmt: skip
        values = tl.load(
            v + batch * v_batch + kv * v_head + place * v_key + column[None, :],
            mask=there, other=0,
        )  # fmt: skip
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        distance = stands[:, None] - key[None, :]
        scores = tl.where((distance >= 0) & (distance < window), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        mass = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(mass.to(values.dtype), values, mixed, input_precision="ieee")
        total = total * shrink + tl.sum(mass, 1)
        top = higher
    total = tl.where(total == 0, 1.0, total)  # rows past the last query saw nothing
    made = (mixed / total[:, None]).to(out.dtype.element_ty)
    where = out + ((batch * n_heads + head) * n_queries + query[:, None]) * width + column[None, :]
    tl.store(where, made, mask=real)


def attend_prompt(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None
) -> Tensor:
    """Attend from T queries [B H T hd] to S >= T keys; the [T, S] scores are never stored."""
    batch, n_heads, n_queries, width = q.shape
    n_keys = k.shape[2]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tile = PROMPT_TILES[k.element_size()]
    tiles = triton.cdiv(n_queries, tile["QUERIES"])
    with torch.cuda.device_of(q):
        prompt_kernel[(tiles, n_heads, batch)](
            q, k, v, sinks, out, n_queries, n_keys, window or n_keys + 1, 1 / math.sqrt(width),
            n_heads, n_heads // k.shape[1], width,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            HAS_SINKS=sinks is not None, WIDTH=max(SMALLEST, triton.next_power_of_2(width)),
            **tile,
        )  # fmt: skip
    return out
