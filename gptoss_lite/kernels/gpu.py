"""What a CUDA device computes with Triton: which calls, and why not the others.

Importing this registers the backends and imports no Triton; the first call that runs there does.
The kernels are in `triton_experts`, `triton_attention` and `triton_dense`. They were checked under
Triton's interpreter on a CPU and compiled for three generations of GPUs; none was timed on one yet.

With TRITON_INTERPRET=1 in the environment, Triton runs kernels on the CPU, very slowly: then
tensors on the CPU are taken, too, if the backend is forced. The tests use that.
"""

import os
import shutil
import sysconfig
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_lite.attention import attend
from gptoss_lite.ffn import Activation, clamped_swiglu
from gptoss_lite.linear import linear
from gptoss_lite.moe import ExpertLinear, Experts, apply_experts
from gptoss_lite.mxfp4 import PackedExpertLinear
from gptoss_lite.trace import wants

OLDEST = (7, 5)  # compute capability: Turing, such as Colab's T4
AMPERE = (8, 0)  # the first with units for bfloat16
FEW = 4  # tokens up to which each reads its own experts and matrices
WORTH_IT = 2**20  # weights of a matrix; below, a launch costs more than the product
WIDEST_HEAD = 128  # larger tiles of keys would not fit a multiprocessor
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


# --- may a call run here? ------------------------------------------------------------------------


def interpreted() -> bool:
    """Say whether Triton runs its kernels on the CPU, one program after the other."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def missing() -> str | None:
    """Say what this machine lacks, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    # Triton builds a small C library for its launches when the first kernel runs.
    if not any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))):
        return "there is no C compiler (gcc or clang), which Triton needs"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's C headers, which Triton needs, are not installed"
    reasons = [too_old(device) for device in range(torch.cuda.device_count())]
    return reasons[0] if all(reasons) else None


@lru_cache
def capability_of(device: torch.device | int) -> tuple[int, int]:
    """Return a GPU's compute capability; for a CPU that plays one, newer than any."""
    is_cpu = isinstance(device, torch.device) and device.type == "cpu"
    return (99, 0) if is_cpu else torch.cuda.get_device_capability(device)


def too_old(device: torch.device | int) -> str | None:
    """Say why Triton has no code for a GPU, or None."""
    if (capability := capability_of(device)) >= OLDEST:
        return None
    had, needed = (".".join(map(str, version)) for version in (capability, OLDEST))
    return f"this GPU (compute capability {had}) is too old: Triton needs {needed}"


def cannot_take(*tensors: Tensor | None) -> str | None:
    """Say what is wrong with tensors for any of the kernels, or None."""
    given = [tensor for tensor in tensors if tensor is not None]
    devices = {tensor.device.type for tensor in given}
    if devices != {"cuda"} and not (interpreted() and devices == {"cpu"}):
        return f"the tensors are on {' and '.join(sorted(devices))}, not on a CUDA device"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "gradients are needed, and it has no backward pass"
    dtypes = {tensor.dtype for tensor in given}
    if odd := [dtype for dtype in dtypes if dtype.is_floating_point and dtype not in FLOATS]:
        return f"it does not compute in {odd[0]}"
    if (reason := too_old(given[0].device)) is not None:
        return reason
    if torch.bfloat16 in dtypes and capability_of(given[0].device) < AMPERE:
        return "this GPU has no units for bfloat16: load the model with dtype=torch.float16"
    if any(tensor.numel() == 0 for tensor in given):
        return "there is nothing to compute"
    if torch.compiler.is_compiling():
        return "torch.compile makes its own kernels"
    return None


def only_forced(*args: Any, **kwargs: Any) -> str | None:
    """Say why the CPU should not be used although it could."""
    return "Triton's interpreter is slow and meant for tests" if interpreted() else None


# --- experts -------------------------------------------------------------------------------------


def constants(act: Activation) -> tuple[float, float] | None:
    """Return (alpha, limit) of the clamped SwiGLU, or None for another activation."""
    if act is clamped_swiglu:
        return 1.702, 7.0
    if isinstance(act, partial) and act.func is clamped_swiglu and not act.args:
        settings = {"alpha": 1.702, "limit": 7.0} | act.keywords
        return settings["alpha"], settings["limit"]
    return None


def why_not_experts(
    x: Tensor, weights: Tensor, ids: Tensor, up: Experts, down: Experts, act: Activation
) -> str | None:
    """Say why packed experts cannot be multiplied here, or None."""
    if not (isinstance(up, PackedExpertLinear) and isinstance(down, PackedExpertLinear)):
        return "the experts are dense, and it multiplies MXFP4 bytes"
    if constants(act) is None:
        return "the activation is not gpt-oss's clamped SwiGLU"
    tensors = [x, weights, ids]
    for packed in (up, down):
        tensors += [packed.blocks, packed.scales, packed.bias]
        strides = packed.blocks.stride()
        aligned = packed.blocks.data_ptr() % 4 == 0 and all(s % 4 == 0 for s in strides[:-1])
        if strides[-2:] != (16, 1) or packed.scales.stride(-1) != 1 or not aligned:
            return "the blocks of a row do not lie side by side, in whole words"
    return cannot_take(*tensors)


def experts_too_small(
    x: Tensor, weights: Tensor, ids: Tensor, up: Experts, down: Experts, act: Activation
) -> str | None:
    """Say why a kernel would gain nothing, or None."""
    size = 2 * up.blocks[0].numel() if isinstance(up, PackedExpertLinear) else WORTH_IT
    if size < WORTH_IT:
        return f"an expert's matrix has {size:,} weights, fewer than {WORTH_IT:,}"
    return only_forced()


@apply_experts.backend("triton", why_not_experts, missing=missing, too_small=experts_too_small)
def apply_experts_triton(
    x: Float[Tensor, "N D"],
    weights: Float[Tensor, "N A"],
    ids: Int[Tensor, "N A"],
    up: Experts,
    down: Experts,
    act: Activation,
) -> Float[Tensor, "N D"]:
    """Apply packed experts; see `moe.apply_experts`. Nothing is rounded between the products."""
    from gptoss_lite.kernels import triton_experts

    alpha, limit = constants(act) or (0.0, 0.0)
    run = triton_experts.few_tokens if len(x) <= FEW else triton_experts.many_tokens
    return run(x, weights.contiguous(), ids.contiguous(), in_halves(up), down, alpha, limit)


def in_halves(up: Experts) -> Any:
    """Return the layer with its rows [gate | up] as two axes, [E 2 F G 16]; nothing is copied."""
    assert isinstance(up, PackedExpertLinear)
    if up.blocks.ndim == 5:
        return up
    blocks, scales = up.blocks.unflatten(1, (2, -1)), up.scales.unflatten(1, (2, -1))
    return PackedExpertLinear(blocks, scales, up.bias)


def why_not_gathered(
    x: Tensor, weights: Tensor, ids: Tensor, up: Experts, down: Experts, act: Activation
) -> str | None:
    """Say why dense experts should not be copied side by side, or None."""
    if not (isinstance(up, ExpertLinear) and isinstance(down, ExpertLinear)):
        return "the experts are packed"
    if len(x) > FEW:
        return f"more than {FEW} tokens would copy an expert several times"
    return None


@lru_cache
def no_cuda() -> str | None:
    """Say that there is no device to wait for, or None."""
    return None if torch.cuda.is_available() else "no CUDA device"


def gathered_too_small(x: Tensor, *args: Any) -> str | None:
    """Say why a loop over experts is better, or None."""
    return None if x.is_cuda else "the CPU is not kept waiting by the question who was chosen"


@apply_experts.backend("gathered", why_not_gathered, missing=no_cuda, too_small=gathered_too_small)
def apply_experts_gathered(
    x: Float[Tensor, "N D"],
    weights: Float[Tensor, "N A"],
    ids: Int[Tensor, "N A"],
    up: Experts,
    down: Experts,
    act: Activation,
) -> Float[Tensor, "N D"]:
    """Apply dense experts to few tokens without asking the device which were chosen.

    Copies the A matrices of each token side by side, so that a captured graph can hold it.
    """
    assert isinstance(up, ExpertLinear)
    assert isinstance(down, ExpertLinear)
    hidden = torch.einsum("nafd,nd->naf", up.weight[ids].to(x.dtype), x)
    hidden = act(hidden if up.bias is None else hidden + up.bias[ids].to(x.dtype))
    answers = torch.einsum("nadf,naf->nad", down.weight[ids].to(x.dtype), hidden)
    answers = answers if down.bias is None else answers + down.bias[ids].to(x.dtype)
    return (weights[..., None] * answers.float()).sum(1).to(x.dtype)


# --- attention -----------------------------------------------------------------------------------


def why_not_attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> str | None:
    """Say why this attention cannot run here, or None."""
    if wants("probs") or wants("sink_mass"):
        return "a trace asks for probabilities, which it never stores"
    if dropout > 0:
        return "it has no dropout"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v differ in dtype: {q.dtype}, {k.dtype} and {v.dtype}"
    is_small = q.element_size() == 4 and capability_of(q.device) < AMPERE
    widest = WIDEST_HEAD // 2 if is_small else WIDEST_HEAD
    if q.shape[-1] > widest:
        return f"a head of {q.shape[-1]} numbers is wider than {widest}"
    if k.shape[2] < q.shape[2]:
        return "there are fewer keys than queries"
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        return "the numbers of a head do not lie side by side"
    return cannot_take(q, k, v, sinks)


@attend.backend("triton", why_not_attend, missing=missing, too_small=only_forced)
def attend_triton(
    q: Float[Tensor, "B H T hd"],
    k: Float[Tensor, "B K S hd"],
    v: Float[Tensor, "B K S hd"],
    sinks: Float[Tensor, " H"] | None,
    window: int | None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T hd"]:
    """Attend without storing the [T, S] scores; see `attention.attend`."""
    from gptoss_lite.kernels import triton_attention

    if q.shape[2] > 1:
        return triton_attention.attend_prompt(q, k, v, sinks, window)
    n_keys = k.shape[2]
    first = 0 if window is None else max(0, n_keys - window)
    return triton_attention.attend_token(q, k, v, sinks, n_keys, first)


# --- matrix times vector -------------------------------------------------------------------------


def why_not_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why this product cannot run here, or None."""
    if weight.stride(-1) != 1:
        return "the numbers of a row do not lie side by side"
    return cannot_take(x, weight, bias)


def linear_too_small(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why cuBLAS is better, or None."""
    if weight.numel() < WORTH_IT:
        return f"the matrix has {weight.numel():,} weights, fewer than {WORTH_IT:,}"
    n_tokens = x.numel() // x.shape[-1]
    if n_tokens > FEW:
        return f"{n_tokens} tokens at once are a matrix product, which cuBLAS does faster"
    return only_forced()


@linear.backend("triton", why_not_linear, missing=missing, too_small=linear_too_small)
def linear_triton(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "out D"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*rows out"]:
    """Return x @ weight.T + bias, summed in float32; see `linear.linear`."""
    from gptoss_lite.kernels import triton_dense

    return triton_dense.gemv(x, weight, bias)
