"""Products with a few rows on the CPU, through torch.compile: for machines where the C code is off.

Decoding places bits instead of looking numbers up, because Inductor turns a table into one load a
weight. The first call of each kind waits for the compiler, 10 to 40 seconds; torch keeps what it
built. Sums are float32, as in `native`, which is several times faster on packed experts.
"""

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptoss_lite.kernels import build, native  # imported first, so registered first
from gptoss_lite.linear import linear
from gptoss_lite.moe import Experts, apply_experts
from gptoss_lite.mxfp4 import BLOCK, PackedExpertLinear, check_packed, scale_table

COMPILERS = ("g++", "clang++", "c++", "cl")

_failed: list[str] = []  # why torch.compile did not work here, once it has been tried


@cache
def _lacks() -> str | None:
    if not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        return "there is no C++ compiler for torch.compile to use"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's C headers, which torch.compile needs, are not installed"
    return None


def missing() -> str | None:
    """Say why torch.compile cannot be used on this machine; compiles nothing."""
    return _failed[0] if _failed else _lacks()


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)


def _run(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Run a function compiled; should that fail, warn once, and run it as it stands."""
    if not _failed:
        try:
            return _compiled(function)(*arguments)
        except Exception as problem:  # of any kind: a compiler, its headers, another library
            first = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            _failed.append(f"torch.compile failed: {first}")
            warnings.warn(f"The fast backend 'compiled' is off: {_failed[0]}", stacklevel=2)
    return function(*arguments)


# --- what is compiled ----------------------------------------------------------------------------


def dense_dot(weight: Tensor, x: Tensor) -> Tensor:
    """Return weight @ x for one row x, summed in float32."""
    return (weight.float() * x.float()).sum(-1)


def e2m1(codes: Tensor) -> Tensor:
    """Decode 4-bit codes, int32, by placing their bits; exact, without subnormal numbers.

    Two exponent bits and one mantissa bit, moved to their places in a float32 of exponent -1,
    give the right number g from 1 on. Below, 0 and 0.5 come out as 0.5 and 0.75: 2g - 1 mends it.
    """
    g = (((codes & 7) << 22) + 0x3F000000).view(torch.float32)
    magnitude = torch.minimum(g, 2 * g - 1)
    return torch.where(codes < 8, magnitude, -magnitude)


def packed_dot(
    blocks: Tensor, scales: Tensor, even: Tensor, odd: Tensor, scale_of: Tensor
) -> Tensor:
    """Return the product of packed rows [..., G, 16] with one row, given as two [G, 16]."""
    codes = blocks.to(torch.int32)
    dots = (e2m1(codes & 15) * even + e2m1(codes >> 4) * odd).sum(-1)
    return (dots * scale_of[scales.to(torch.int32)]).sum(-1)


# --- linear --------------------------------------------------------------------------------------


def _native_is_there() -> str | None:
    return "the native backend is there, and faster" if build.missing() is None else None


def linear_too_small(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why another version is as fast, or None."""
    return native.linear_too_small(x, weight, bias) or _native_is_there()


@linear.backend("compiled", native.linear_why_not, missing=missing, too_small=linear_too_small)
def linear_compiled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, summed in float32 and rounded once; see `linear.linear`."""
    rows = [_run(dense_dot, weight, row) for row in x.reshape(-1, weight.shape[1])]
    out = torch.stack(rows) if rows else x.new_empty(0, len(weight), dtype=torch.float32)
    if bias is not None:
        out = out + bias
    return out.to(x.dtype).view(*x.shape[:-1], len(weight))


# --- apply_experts -------------------------------------------------------------------------------


def experts_too_small(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: Experts,
    down: Experts,
    act: Callable[[Tensor], Tensor],
) -> str | None:
    """Say why another version is as fast, or None."""
    if len(x) > native.FEW_ROWS:
        return f"{len(x)} tokens can share the work of decoding, which the plain version does once"
    return native.experts_too_small(x, weights, ids, up, down, act) or _native_is_there()


@apply_experts.backend(
    "compiled", native.experts_why_not, missing=missing, too_small=experts_too_small
)
def apply_experts_compiled(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: PackedExpertLinear,
    down: PackedExpertLinear,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """Send each token through its A experts, in float32 throughout; see `moe.apply_experts`."""
    check_packed(up.blocks, up.scales)
    check_packed(down.blocks, down.scales)
    total = torch.zeros(x.shape, dtype=torch.float32)
    for token, row in enumerate(x.float()):
        for slot, expert in enumerate(ids[token].tolist()):
            answer = _product(act(_product(row, up, expert)), down, expert)
            total[token] += weights[token, slot] * answer
    return total.to(x.dtype)


def _product(row: Tensor, layer: PackedExpertLinear, expert: int) -> Tensor:
    """Return one expert's matrix times a row, plus its bias; float32."""
    even, odd = row.view(-1, BLOCK // 2, 2).unbind(-1)
    table = scale_table(torch.float32, row.device)
    out = _run(
        packed_dot,
        layer.blocks[expert],
        layer.scales[expert],
        even.contiguous(),
        odd.contiguous(),
        table,
    ).flatten()
    return out if layer.bias is None else out + layer.bias[expert]
