"""Products with a few rows on the CPU, in C that the system's compiler builds on first use.

Why C and not numba: macOS with its command line tools and nearly every Linux have a C compiler,
while numba would be one more dependency. And the table lookup that makes this fast is one line of
C intrinsics that a reader can follow, where numba needs LLVM assembly written by hand.

The weights stay where the file is mapped, in the file's own layout. Sums are float32, so for a
bfloat16 model the answers are closer to the exact ones than the plain version's, which rounds to
bfloat16 after every operation.

`native.c` is built into `~/.cache/gptoss_lite` (or `$XDG_CACHE_HOME/gptoss_lite`) once for each
version, compiler and CPU. Set `GPTOSS_LITE_NATIVE=0` to do without.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss_lite.errors import BackendError, ShapeError
from gptoss_lite.linear import linear
from gptoss_lite.moe import Experts, apply_experts
from gptoss_lite.mxfp4 import BLOCK, PackedExpertLinear, check_packed, dequantize, scale_table
from gptoss_lite.mxfp4 import VALUES as E2M1

OFF_VARIABLE = "GPTOSS_LITE_NATIVE"  # "0" turns this backend off
SOURCE = Path(__file__).with_name("native.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread")  # never -ffast-math
CPU_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # not every compiler knows the first
COMPILE_TIMEOUT_S = 60

FEW_ROWS = 4  # from here on, a matrix product beats one dot product a row
BIG_WEIGHTS = 2**20  # smaller matrices stay plain: nothing to gain, and no C compiler to find
BYTES_PER_THREAD = 2**17  # a second thread costs about as much as reading this
DTYPES = (torch.float32, torch.bfloat16)
BF16_BODY = 4  # AVX512_BF16 of native.c, which takes four blocks of a bfloat16 x at once


# --- build and load ------------------------------------------------------------------------------


class _Dense(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row_stride", "rows", "width", "bf16")),
    )


class _Packed(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("bytes", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("expert_bytes", "half_bytes", "row_bytes")),
        *((name, ctypes.c_int64) for name in ("expert_scales", "half_scales", "row_scales")),
        *((name, ctypes.c_int64) for name in ("expert_bias", "bias_bf16")),
        *((name, ctypes.c_int64) for name in ("rows", "half_rows", "groups")),
    )


_LOCK = threading.Lock()


class _Built:
    """The library, or the reason why there is none; found out once, on first use."""

    def __init__(self) -> None:
        self.library: Any = None
        self.problem: str | None = None
        self.done = False

    def library_or_problem(self) -> tuple[Any, str | None]:
        if not self.done:
            with _LOCK:
                if not self.done:
                    try:
                        self.library = _declare(_build())
                    except BackendError as problem:
                        self.problem = str(problem)
                    except OSError as problem:
                        self.problem = f"native.c could not be built or loaded: {problem}"
                    self.done = True
        return self.library, self.problem


_BUILT = _Built()


def missing() -> str | None:
    """Say why the C code cannot be used on this machine; the first call builds it."""
    if os.environ.get(OFF_VARIABLE) == "0":
        return f"{OFF_VARIABLE}=0 turns it off"
    return _BUILT.library_or_problem()[1]


def _build() -> ctypes.CDLL:
    """Load the library from the user's cache, or build it."""
    if os.name != "posix" or sys.byteorder != "little":
        raise BackendError(f"the C code is not made for {platform.system()} {platform.machine()}")
    compiler = _compiler()
    key = _key(compiler)
    folder = _cache_folder()
    try:
        for kept in folder.glob(f"{key}-*.so"):
            if _digest(kept.read_bytes()) == kept.stem.removeprefix(f"{key}-"):
                return ctypes.CDLL(str(kept))
    except OSError:
        pass  # a cache that cannot be read, or not be run from, is as good as an empty one
    with tempfile.TemporaryDirectory(prefix="gptoss_lite-") as work:
        built = Path(work) / "native.so"
        _compile(compiler, built)
        kept = _keep(built.read_bytes(), folder, key)
        try:
            return ctypes.CDLL(str(built))
        except OSError:  # nothing may be run from the temporary folder
            if kept is None:
                raise
            return ctypes.CDLL(str(kept))


def _compiler_or_none() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def _compiler() -> str:
    if (compiler := _compiler_or_none()) is None:
        raise BackendError("there is no C compiler (cc, gcc or clang) to build native.c with")
    return compiler


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "gptoss_lite"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _key(compiler: str) -> str:
    """Name what a library depends on: the source, the compiler, its flags and the CPU."""
    stamp = Path(compiler).resolve().stat()
    parts = (SOURCE.read_text(encoding="utf-8"), FLAGS, compiler, stamp.st_size, stamp.st_mtime_ns)
    return "native-" + _digest(repr((*parts, _cpu())).encode())


def _cpu() -> str:
    """Name the CPU and what it can do; a home may be shared by different machines."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return platform.machine() + platform.processor()


def _compile(compiler: str, target: Path, more_flags: tuple[str, ...] = ()) -> None:
    """Compile `native.c`.

    Raises:
        BackendError: no set of flags worked; with the first line of the compiler's last message.
    """
    message = ""
    for cpu in CPU_FLAGS:
        command = [compiler, *FLAGS, *cpu, *more_flags, "-o", str(target), str(SOURCE)]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise BackendError(f"{compiler} could not build native.c: {problem}") from None
        if ran.returncode == 0 and target.is_file():
            return
        message = next(iter(ran.stderr.strip().splitlines()), f"exit status {ran.returncode}")
    raise BackendError(f"{compiler} could not build native.c: {message}")


def _keep(content: bytes, folder: Path, key: str) -> Path | None:
    """Put the library into the cache, whole or not at all; its name says what it must hold."""
    target = folder / f"{key}-{_digest(content)}.so"
    part = folder / f"{key}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{key}-*.so"):
            old.unlink(missing_ok=True)  # it was damaged, or it would have been loaded
        try:
            part.write_bytes(content)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        return None  # a read-only home or a full disk: each process builds its own, in a second
    return target


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    threads = (ctypes.c_int, pointer)
    library.dense_matvec.argtypes = (pointer, pointer, number, pointer, *threads)
    library.packed_matvec.argtypes = (
        *(pointer,) * 3,
        ctypes.c_int,
        number,
        *(pointer,) * 4,
        *threads,
    )
    library.unpack.argtypes = (pointer, number, pointer, number, pointer, *threads)
    for function in (library.dense_matvec, library.packed_matvec, library.unpack):
        function.restype = None
    return library


@cache
def _parallel() -> int | None:
    """Return the address of the function that runs work on torch's own threads, if it has one."""
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # of the OpenMP that torch loaded
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def _threads(n_bytes: int) -> tuple[int, int | None]:
    """Return how many threads reading so many bytes is worth, and how to get them."""
    return max(1, min(torch.get_num_threads(), n_bytes // BYTES_PER_THREAD)), _parallel()


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


def _is_small(n_weights: int, device: torch.device) -> str | None:
    if device.type != "cpu":  # said here already, so that a model on a GPU builds no C code
        return f"the matrix is on {device}, and this is for the CPU"
    if n_weights >= BIG_WEIGHTS:
        return None
    return f"the matrix has {n_weights:,} weights, and below {BIG_WEIGHTS:,} there is no gain"


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
    return _is_small(weight.numel(), weight.device)


@linear.backend("native", linear_why_not, missing=missing, too_small=linear_too_small)
def linear_native(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias; see `linear.linear`.

    The sum and the bias are float32 and rounded to x's dtype once, at the end.
    """
    rows = x.reshape(-1, weight.shape[1]).float().contiguous()
    out = rows.new_empty(len(rows), len(weight))
    matrix = _Dense(
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.stride(0) * weight.itemsize,
        len(weight),
        weight.shape[1],
        weight.dtype == torch.bfloat16,
    )
    threads = _threads(weight.nbytes)
    library = _library()
    library.dense_matvec(ctypes.byref(matrix), rows.data_ptr(), len(rows), out.data_ptr(), *threads)
    return out.to(x.dtype).view(*x.shape[:-1], len(weight))


def _library() -> Any:
    library, problem = _BUILT.library_or_problem()
    assert problem is None, problem
    return library


# --- packed matrices -----------------------------------------------------------------------------


def _strides_problem(blocks: Tensor, scales: Tensor) -> str | None:
    """Say why rows cannot be found by strides: [E, rows, G, 16] or [E, 2, F, G, 16] it must be."""
    if blocks.ndim not in (4, 5):
        return f"packed blocks have {blocks.ndim} axes, not 4 or 5"
    in_row = blocks.stride(-1) == 1, blocks.stride(-2) == BLOCK // 2, scales.stride(-1) == 1
    if not all(in_row if scales.shape[-1] > 1 else in_row[:1]):
        return "the bytes of a packed row are not side by side"
    return None


def _packed(blocks: Tensor, scales: Tensor, bias: Tensor | None) -> _Packed:
    halves = blocks.shape[1] if blocks.ndim == 5 else 1
    half_rows, groups = blocks.shape[-3], blocks.shape[-2]
    return _Packed(
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


def _unpack(packed: _Packed, expert: int, out: Tensor) -> None:
    table = _number_table(out.dtype)
    arguments = packed, expert, table.data_ptr(), out.itemsize, out.data_ptr()
    _library().unpack(ctypes.byref(packed), *arguments[1:], *_threads(out.nbytes))


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
    return _is_small(2 * blocks.numel(), blocks.device)


@dequantize.backend("native", dequantize_why_not, missing=missing, too_small=dequantize_too_small)
def dequantize_native(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Decode packed weights exactly; see `mxfp4.dequantize`.

    Bit for bit the plain result, except that there are many NaNs.
    """
    check_packed(blocks, scales)
    out = torch.empty(*scales.shape[:-1], scales.shape[-1] * BLOCK, dtype=dtype)
    rows, scale_rows = blocks, scales
    if not 3 <= blocks.ndim <= 4 or _strides_problem(blocks[None], scales[None]):
        rows = blocks.reshape(-1, *blocks.shape[-2:]).contiguous()  # a copy of the packed bytes
        scale_rows = scales.reshape(-1, scales.shape[-1]).contiguous()
    if out.numel():
        _unpack(_packed(rows[None], scale_rows[None], None), 0, out)
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
        problem = _strides_problem(layer.blocks, layer.scales)
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
    if not isinstance(up, PackedExpertLinear):
        return None
    return _is_small(2 * up.blocks[0].numel(), up.blocks.device)


@apply_experts.backend("native", experts_why_not, missing=missing, too_small=experts_too_small)
def apply_experts_native(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: PackedExpertLinear,
    down: PackedExpertLinear,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """Send each token through its A experts; see `moe.apply_experts`.

    An expert with up to FEW_ROWS tokens reads its packed bytes once and keeps everything up to
    the final sum in float32. One with more is unpacked into a buffer that all experts share, and
    multiplied as the plain version does it, with the same numbers.
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
    few = {e: pairs for e, pairs in pairs_of.items() if len(pairs) <= FEW_ROWS}
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
    both = _matvec(x, [pair // n_active for pair in pairs], up, groups)
    answers = _matvec(act(both), list(range(len(pairs))), down, groups)
    return torch.tensor(pairs), answers


def _array(numbers: list[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _matvec(x: Tensor, x_rows: list[int], layer: PackedExpertLinear, groups: Any) -> Tensor:
    """Multiply row x_rows[p] of x with the matrix of its expert, for each pair p; float32."""
    experts, starts = groups
    packed = _packed(layer.blocks, layer.scales, layer.bias)
    if x.shape[1] != packed.groups * BLOCK:
        raise ShapeError(
            f"Rows of {x.shape[1]} numbers meet packed matrices that take {packed.groups * BLOCK}. "
            "Check d_model, d_ff and whether the activation needs a gate."
        )
    out = torch.empty(len(x_rows), packed.rows)
    quads = x.dtype == torch.bfloat16 and _library().body() == BF16_BODY
    if quads:  # 16 bits of weights hold four, and are decoded from the lowest up
        padded = F.pad(x, (0, -x.shape[1] % (4 * BLOCK)))
        split = padded.unflatten(-1, (-1, BLOCK, 4)).transpose(-1, -2).contiguous()
    else:  # even numbers of each block first: the low halves of its bytes are decoded before
        split = x.float().unflatten(-1, (-1, BLOCK // 2, 2)).transpose(-1, -2).contiguous()
    n_bytes = len(experts) * packed.rows * packed.groups * (BLOCK // 2)
    _library().packed_matvec(
        ctypes.byref(packed),
        scale_table(torch.float32, torch.device("cpu")).data_ptr(),
        split.data_ptr(),
        quads,
        len(experts),
        experts,
        starts,
        _array(x_rows),
        out.data_ptr(),
        *_threads(n_bytes),
    )
    return out


def _product(x: Tensor, layer: PackedExpertLinear, expert: int, buffer: Tensor) -> Tensor:
    """Unpack one expert's matrix into the buffer, which grows to hold it, and multiply."""
    packed = _packed(layer.blocks, layer.scales, layer.bias)
    shape = packed.rows, packed.groups * BLOCK
    if buffer.numel() < shape[0] * shape[1]:
        buffer.resize_(shape[0] * shape[1])
    matrix = buffer[: shape[0] * shape[1]].view(shape)
    _unpack(packed, expert, matrix)
    return F.linear(x, matrix, None if layer.bias is None else layer.bias[expert])
