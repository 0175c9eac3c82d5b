"""Few tokens on the CPU, in C: products with packed and dense weights, and attention.

The weights stay where the file is mapped, in the file's own layout. Sums are float32, so for a
bfloat16 model the answers are closer to the exact ones than the plain version's, which rounds to
bfloat16 after every operation. `build.py` says how the C files come to be a library.
"""

import ctypes
import inspect
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss_lite.attention import attend
from gptoss_lite.errors import ShapeError
from gptoss_lite.ffn import clamped_swiglu, gelu, swiglu
from gptoss_lite.kernels import build
from gptoss_lite.linear import linear
from gptoss_lite.moe import Experts, apply_experts
from gptoss_lite.mxfp4 import BLOCK, PackedExpertLinear, check_packed, dequantize, scale_table
from gptoss_lite.mxfp4 import VALUES as E2M1
from gptoss_lite.trace import wants

FEW_ROWS = 4  # from here on, a matrix product beats one dot product a row
FEW_ROWS_BF16 = 64  # of packed experts, where the CPU multiplies bfloat16 in its registers
BIG_WEIGHTS = 2**20  # smaller matrices stay plain: nothing to gain, and no C compiler to find
WIDE = 2**11  # and so do narrower vectors, unless the matrix is big
TILE_BYTES = 6 * 2**20  # of unpacked rows: they stay in the CPU's cache until they are multiplied
WIDE_KEYS = 2**9  # numbers of a token's key, over all heads: 20b's and 120b's
DTYPES = (torch.float32, torch.bfloat16)
BF16_BODY = 4  # AVX512_BF16 of vectors.h, which takes four blocks of a bfloat16 x at once


def numbers(*names: str) -> tuple[tuple[str, type], ...]:
    """Declare fields of a C structure that hold int64_t."""
    return tuple((name, ctypes.c_int64) for name in names)


def pointers(*names: str) -> tuple[tuple[str, type], ...]:
    """Declare fields of a C structure that hold addresses."""
    return tuple((name, ctypes.c_void_p) for name in names)


class Dense(ctypes.Structure):
    """A dense matrix, and its bias or nothing."""

    _fields_ = (*pointers("weight", "bias"), *numbers("row_stride", "rows", "width", "bf16"))


class Packed(ctypes.Structure):
    """The packed matrices of all experts of a layer."""

    _fields_ = (
        *pointers("bytes", "scales", "bias"),
        *numbers("expert_bytes", "half_bytes", "row_bytes"),
        *numbers("expert_scales", "half_scales", "row_scales"),
        *numbers("expert_bias", "bias_bf16", "rows", "half_rows", "groups"),
    )


class Activation(ctypes.Structure):
    """What is done to the sums of an expert's first matrix."""

    _fields_ = (
        *numbers("kind"),
        *((name, ctypes.c_double) for name in ("alpha", "limit", "shift")),
    )


class _Pairs(ctypes.Structure):
    _fields_ = (*numbers("n_experts", "n_pairs"), *pointers("experts", "starts", "x_rows"))


class _Attention(ctypes.Structure):
    _fields_ = (
        *pointers("q", "k", "v", "sinks", "out"),
        *numbers("batch", "heads", "kv_heads", "queries", "keys", "width", "window"),
        *((name, ctypes.c_int64 * 3) for name in ("q_strides", "k_strides", "v_strides")),
        *numbers("bf16", "sinks_bf16", "q_bf16"),
        ("scale", ctypes.c_double),
    )


# --- what all calls need -------------------------------------------------------------------------


def unreadable(*tensors: Tensor | None) -> str | None:
    """Say why C cannot read these tensors' memory, or must not; None if it can."""
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}, and this is for the CPU"
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{type(tensor).__name__} is not plain memory"
    if torch.compiler.is_compiling():
        return "a compiled graph cannot look at memory"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "gradients are needed: call it within torch.no_grad()"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on, and chooses dtypes by itself"
    return None


def is_small(n_weights: int, device: torch.device) -> str | None:
    """Say why a matrix of so many weights gains nothing from C, or None."""
    if device.type != "cpu":  # said here already, so that a model on a GPU builds no C code
        return f"the matrix is on {device}, and this is for the CPU"
    if n_weights >= BIG_WEIGHTS:
        return None
    return f"the matrix has {n_weights:,} weights, and below {BIG_WEIGHTS:,} there is no gain"


def call(function: str, n_bytes: int, *arguments: Any) -> None:
    """Run a C function on as many threads as reading so many bytes is worth."""
    if getattr(build.library(), function)(*arguments, *build.threads(n_bytes)):
        raise MemoryError(f"native: no memory for what {function} has to note down")


# --- linear --------------------------------------------------------------------------------------


def linear_why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why this product cannot be computed here, or None."""
    if weight.dtype not in DTYPES:
        return f"{weight.dtype} weights are not read by it, only float32 and bfloat16"
    if {x.dtype, weight.dtype if bias is None else bias.dtype} != {weight.dtype}:
        return "x, weight and bias have different dtypes"
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        return f"x {list(x.shape)} does not fit a weight {list(weight.shape)}"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"a bias {list(bias.shape)} does not fit {len(weight)} output rows"
    if weight.stride(1) != 1 or (bias is not None and bias.stride(0) != 1):
        return "the numbers of a weight row are not side by side"
    return unreadable(x, weight, bias)


def linear_too_small(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why the plain version is as fast, or None."""
    n_rows = x.numel() // max(1, weight.shape[1])
    if n_rows > FEW_ROWS:
        return f"x has {n_rows} rows, and above {FEW_ROWS} a matrix product is faster"
    if weight.shape[1] >= WIDE and weight.device.type == "cpu":
        return None  # few rows, but long ones: a router
    return is_small(weight.numel(), weight.device)


@linear.backend("native", linear_why_not, missing=build.missing, too_small=linear_too_small)
def linear_native(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias; see `linear.linear`.

    The sum and the bias are float32 and rounded to x's dtype once, at the end.
    """
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], len(weight))
    n_rows = x.numel() // max(1, weight.shape[1])
    pointers = ctypes.byref(dense_matrix(weight, bias)), x.data_ptr(), n_rows, out.data_ptr()
    call("dense_matvec", weight.nbytes, *pointers)
    return out


def dense_matrix(weight: Tensor, bias: Tensor | None) -> Dense:
    """Describe a matrix to C."""
    return Dense(
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.stride(0) * weight.itemsize,
        *weight.shape,
        weight.dtype == torch.bfloat16,
    )


# --- packed matrices -----------------------------------------------------------------------------


def strides_problem(blocks: Tensor, scales: Tensor) -> str | None:
    """Say why rows cannot be found by strides: [E, rows, G, 16] or [E, 2, F, G, 16] it must be."""
    if blocks.ndim not in (4, 5):
        return f"packed blocks have {blocks.ndim} axes, not 4 or 5"
    in_row = blocks.stride(-1) == 1, blocks.stride(-2) == BLOCK // 2, scales.stride(-1) == 1
    if not all(in_row if scales.shape[-1] > 1 else in_row[:1]):
        return "the bytes of a packed row are not side by side"
    return None


def packed_matrix(
    blocks: Tensor, scales: Tensor, bias: Tensor | None, in_halves: bool = False
) -> Packed:
    """Describe the packed matrices of all experts to C."""
    if in_halves and blocks.ndim == 4:  # [gate | up] in one run of rows: take them in turn, too
        blocks, scales = blocks.unflatten(1, (2, -1)), scales.unflatten(1, (2, -1))
    halves = blocks.shape[1] if blocks.ndim == 5 else 1
    half_rows, groups = blocks.shape[-3], blocks.shape[-2]
    return Packed(
        blocks.data_ptr(),
        scales.data_ptr(),
        None if bias is None else bias.data_ptr(),
        *_row_strides(blocks.stride(), blocks.ndim == 5, 2),
        *_row_strides(scales.stride(), blocks.ndim == 5, 1),
        0 if bias is None else bias.stride(0) * bias.itemsize,
        bias is not None and bias.dtype == torch.bfloat16,
        halves * half_rows,
        half_rows,
        groups,
    )


def _row_strides(strides: tuple[int, ...], split: bool, inner: int) -> tuple[int, int, int]:
    """Return the strides of expert, half and row; those of bytes are bytes."""
    return strides[0], strides[1] if split else 0, strides[-inner - 1]


@lru_cache
def _number_table(dtype: torch.dtype) -> Tensor:
    """Return what each code is worth under each scale byte, [256, 16]: the plain product."""
    values = E2M1.to(dtype) * scale_table(dtype, torch.device("cpu"))[:, None]
    return values.contiguous()


def _unpack(packed: Packed, expert: int, out: Tensor) -> None:
    table = _number_table(out.dtype)
    numbers = expert, table.data_ptr(), out.itemsize, out.data_ptr()
    call("unpack", out.nbytes, ctypes.byref(packed), *numbers)


# --- dequantize ----------------------------------------------------------------------------------


def dequantize_why_not(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> str | None:
    """Say why this call cannot be computed here, or None."""
    if dtype not in DTYPES:
        return f"it decodes to float32 and bfloat16, not to {dtype}"
    return unreadable(blocks, scales)


def dequantize_too_small(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> str | None:
    """Say why another version is as fast, or None."""
    return is_small(2 * blocks.numel(), blocks.device)


@dequantize.backend(
    "native", dequantize_why_not, missing=build.missing, too_small=dequantize_too_small
)
def dequantize_native(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Decode packed weights exactly; see `mxfp4.dequantize`.

    Bit for bit the plain result, except that there are many NaNs.
    """
    check_packed(blocks, scales)
    out = torch.empty(*scales.shape[:-1], scales.shape[-1] * BLOCK, dtype=dtype)
    rows, scale_rows = blocks, scales
    if not 3 <= blocks.ndim <= 4 or strides_problem(blocks[None], scales[None]):
        rows = blocks.reshape(-1, *blocks.shape[-2:]).contiguous()  # a copy of the packed bytes
        scale_rows = scales.reshape(-1, scales.shape[-1]).contiguous()
    if out.numel():
        _unpack(packed_matrix(rows[None], scale_rows[None], None), 0, out)
    return out


# --- apply_experts -------------------------------------------------------------------------------


def experts_why_not(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: Experts,
    down: Experts,
    act: Callable[[Tensor], Tensor],
) -> str | None:
    """Say why these experts cannot be applied here, or None."""
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; it computes with float32 and bfloat16"
    for layer in (up, down):
        if not isinstance(layer, PackedExpertLinear):
            return "the experts are not packed as MXFP4"
        if layer.bias is not None and (layer.bias.dtype != x.dtype or layer.bias.stride(1) != 1):
            return "an expert bias has another dtype than x, or is not contiguous"
        problem = strides_problem(layer.blocks, layer.scales)
        if problem := problem or unreadable(layer.blocks, layer.scales, layer.bias):
            return problem
    return unreadable(x, weights, ids)


def experts_too_small(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: Experts,
    down: Experts,
    act: Callable[[Tensor], Tensor],
) -> str | None:
    """Say why the plain version is as fast, or None."""
    packed = isinstance(up, PackedExpertLinear)  # others are refused, but not for their size
    return is_small(2 * up.blocks[0].numel() if packed else BIG_WEIGHTS, x.device)


@apply_experts.backend(
    "native", experts_why_not, missing=build.missing, too_small=experts_too_small
)
def apply_experts_native(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: PackedExpertLinear,
    down: PackedExpertLinear,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """Send each token through its A experts; see `moe.apply_experts`.

    An expert with up to FEW_ROWS tokens (FEW_ROWS_BF16 where the CPU multiplies bfloat16) reads its
    packed bytes and keeps everything up to the final sum in float32, but for what enters the
    second matrix where the CPU multiplies bfloat16. One with more is unpacked, some rows at a
    time, into a buffer that all experts share, and multiplied as the plain version does it.
    """
    check_packed(up.blocks, up.scales)
    check_packed(down.blocks, down.scales)
    n_experts, n_active = len(up.blocks), ids.shape[1]
    pairs_of: dict[int, list[int]] = {}  # pair p is token p // A in its place p % A
    for pair, expert in enumerate(ids.flatten().tolist()):
        pairs_of.setdefault(expert, []).append(pair)
    if pairs_of and not 0 <= min(pairs_of) <= max(pairs_of) < n_experts == len(down.blocks):
        raise ShapeError(
            f"Experts {min(pairs_of)} to {max(pairs_of)} were chosen, but there are {n_experts} "
            f"up and {len(down.blocks)} down matrices. Expert ids count from 0."
        )
    most = FEW_ROWS_BF16 if _multiplies(x.dtype) else FEW_ROWS
    few = {e: pairs for e, pairs in pairs_of.items() if len(pairs) <= most}
    total = torch.zeros(x.shape, dtype=torch.float32)
    shares = weights.flatten()[:, None]
    if few:
        pairs, answers = _few_tokens(x, few, n_active, up, down, act)
        total.index_add_(0, pairs // n_active, shares[pairs] * answers)
    buffer = torch.empty(0, dtype=x.dtype)
    for expert, chosen in sorted(pairs_of.items()):
        if expert in few:
            continue
        pairs = torch.tensor(chosen)
        tokens = pairs // n_active
        hidden = act(_product(x[tokens], up, expert, buffer))
        total.index_add_(0, tokens, shares[pairs] * _product(hidden, down, expert, buffer).float())
    return total.to(x.dtype)


def _multiplies(dtype: torch.dtype) -> bool:
    """Say whether the CPU multiplies numbers of this dtype, two at once: four blocks in one go."""
    return dtype == torch.bfloat16 and build.library().body() == BF16_BODY


def _few_tokens(
    x: Tensor,
    few: dict[int, list[int]],
    n_active: int,
    up: PackedExpertLinear,
    down: PackedExpertLinear,
    act: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the pairs of a token and an expert, expert by expert, and the answer to each."""
    pairs = [pair for chosen in few.values() for pair in chosen]
    starts = [0]
    for chosen in few.values():
        starts.append(starts[-1] + len(chosen))
    groups = _array(list(few)), _array(starts)
    quads = _multiplies(x.dtype)
    hidden = _matvec(x, [pair // n_active for pair in pairs], up, groups, quads, act)
    answers = _matvec(hidden, list(range(len(pairs))), down, groups, quads)
    return torch.tensor(pairs), answers


def _array(numbers: list[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(numbers))(*numbers)


NOTHING, GELU, GATE = range(3)  # as in matrices.h


@lru_cache
def c_activation(act: Callable[[Tensor], Tensor] | None) -> Activation:
    """Describe an activation to C: NOTHING if C does not know it."""
    if act is gelu:
        return Activation(GELU)
    if act is swiglu:
        return Activation(GATE, 1.0, math.inf, 0.0)
    function, given = (act.func, act.keywords) if isinstance(act, partial) else (act, {})
    if function is not clamped_swiglu or (isinstance(act, partial) and act.args):
        return Activation(NOTHING)
    settings = inspect.signature(clamped_swiglu).bind(None, **given)
    settings.apply_defaults()
    return Activation(GATE, settings.arguments["alpha"], settings.arguments["limit"], 1.0)


def _matvec(
    x: Tensor,
    x_rows: list[int],
    layer: PackedExpertLinear,
    groups: Any,
    quads: bool,
    act: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Multiply row x_rows[p] of x with its expert's matrix, for each pair p; float32.

    With `quads`, x counts as bfloat16 and C takes four blocks at once.
    """
    experts, starts = groups
    known = c_activation(act)
    packed = packed_matrix(layer.blocks, layer.scales, layer.bias, in_halves=known.kind == GATE)
    if x.shape[1] != packed.groups * BLOCK:
        raise ShapeError(
            f"Rows of {x.shape[1]} numbers meet packed matrices that take {packed.groups * BLOCK}. "
            "Check d_model, d_ff and whether the activation needs a gate."
        )
    rows = _array(x_rows)
    pairs = _Pairs(
        len(experts), len(x_rows), *(ctypes.addressof(part) for part in (experts, starts, rows))
    )
    out = torch.empty(len(x_rows), packed.rows // (2 if known.kind == GATE else 1))
    x = x.contiguous()
    call(
        "packed_matvec",
        len(experts) * packed.rows * packed.groups * (BLOCK // 2),
        *(ctypes.byref(part) for part in (packed, known, pairs)),
        scale_table(torch.float32, torch.device("cpu")).data_ptr(),
        *(x.data_ptr(), len(x), x.dtype == torch.bfloat16, quads, out.data_ptr()),
    )
    return act(out) if act and known.kind == NOTHING else out


def _product(x: Tensor, layer: PackedExpertLinear, expert: int, buffer: Tensor) -> Tensor:
    """Multiply with one expert's matrix, unpacking some rows of it at a time into the buffer."""
    blocks, scales = layer.blocks, layer.scales
    axis = blocks.ndim - 3  # of rows; in a matrix of two halves, of those of each
    n_rows, width = blocks.shape[axis], blocks.shape[-2] * BLOCK
    halves = blocks.shape[1] if blocks.ndim == 5 else 1
    tile = max(1, TILE_BYTES // (halves * width * x.itemsize))
    bias = None if layer.bias is None else layer.bias[expert].view(halves, n_rows)
    out = x.new_empty(len(x), halves, n_rows)
    for start in range(0, n_rows, tile):
        n = min(tile, n_rows - start)
        matrix = buffer.resize_(halves * n, width)
        rows = packed_matrix(blocks.narrow(axis, start, n), scales.narrow(axis, start, n), None)
        _unpack(rows, expert, matrix)
        some_bias = None if bias is None else bias[:, start : start + n].flatten()
        out[:, :, start : start + n] = F.linear(x, matrix, some_bias).view(len(x), halves, n)
    return out.flatten(1)


# --- attend --------------------------------------------------------------------------------------


def attend_why_not(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> str | None:
    """Say why this attention cannot be computed here, or None."""
    if dropout:
        return "dropout draws at random, and it does not"
    if wants("probs") or wants("sink_mass"):
        return "a trace asks for attention weights, which it never writes down"
    if {q.dtype, k.dtype, v.dtype} not in ({dtype} for dtype in DTYPES):
        return "q, k and v must all be float32, or all bfloat16"
    if sinks is not None and sinks.dtype not in DTYPES:
        return f"sinks are {sinks.dtype}; it reads float32 and bfloat16"
    (batch, n_heads, _, width), n_kv_heads = q.shape, k.shape[1]
    if not (
        k.shape == v.shape == (batch, n_kv_heads, k.shape[2], width)
        and n_heads % n_kv_heads == 0
        and (sinks is None or sinks.shape == (n_heads,))
    ):
        return f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} and sinks do not fit"
    if {tensor.stride(-1) for tensor in (q, k, v)} != {1}:
        return "the numbers of a head are not side by side"
    return unreadable(q, k, v, sinks)


def attend_too_small(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> str | None:
    """Say why another version is as fast, or None."""
    if q.shape[2] > FEW_ROWS:
        return f"{q.shape[2]} queries at once are better multiplied as matrices"
    if k.device.type != "cpu":
        return f"the keys are on {k.device}, and this is for the CPU"
    width = k.shape[1] * k.shape[3]
    if width >= WIDE_KEYS:
        return None
    return f"a key has {width} numbers, and below {WIDE_KEYS} there is no gain"


@attend.backend("native", attend_why_not, missing=build.missing, too_small=attend_too_small)
def attend_native(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> Tensor:
    """Mix the values that each query may see; see `attention.attend`, whose arguments these are.

    Float32 from the dot products to the mix, which is rounded to q's dtype once.
    """
    batch, n_heads, n_queries, width = q.shape
    if k.shape[2] < n_queries:
        return attend.plain(q, k, v, sinks, window, dropout)  # which says what is wrong
    sinks = None if sinks is None else sinks.contiguous()
    out = q.new_empty(q.shape)
    given = _Attention(
        *(None if tensor is None else tensor.data_ptr() for tensor in (q, k, v, sinks, out)),
        *(batch, n_heads, k.shape[1], n_queries, k.shape[2], width, window or k.shape[2]),
        *((ctypes.c_int64 * 3)(*(s * t.itemsize for s in t.stride()[:3])) for t in (q, k, v)),
        k.dtype == torch.bfloat16,
        sinks is not None and sinks.dtype == torch.bfloat16,
        q.dtype == torch.bfloat16,
        1 / math.sqrt(width),
    )
    n_keys = min(k.shape[2], (window or k.shape[2]) + n_queries - 1)
    call("attend", 2 * n_keys * k[:, :, 0].nbytes, ctypes.byref(given))
    return out
