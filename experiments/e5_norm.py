"""E5: is it the mean or the division that a norm is needed for? And is the rewrite exact?"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.small import Arm, Experiment
from gptoss_lite import corpus
from gptoss_lite.config import ModelConfig
from gptoss_lite.model import INIT_STD, Transformer
from gptoss_lite.train import Result, build, one_thread

SHAPES = ((512, 1600), (512, 2880))  # tokens, width: GPT-2 XL and gpt-oss
REPEATS = 9


class Undivided(nn.Module):
    """A norm's place without its division: a fixed factor, and a learned scale.

    The factor is that of a fresh embedding, so that the first block starts at the usual size.
    """

    def __init__(self, size: int, subtract_mean: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.subtract_mean = subtract_mean

    def forward(self, x: Tensor) -> Tensor:
        """Return x, perhaps centered, times the factor and the scale."""
        if self.subtract_mean:
            x = x - x.mean(-1, keepdim=True)
        return x / INIT_STD * self.weight


def start_undivided(subtract_mean: bool) -> Callable[[ModelConfig, int, int], Transformer]:
    """Return how to build a model whose norms do not divide."""

    def start(config: ModelConfig, seed: int, steps: int) -> Transformer:
        model = build(config, seed)
        model.norm = Undivided(config.d_model, subtract_mean)
        for block in model.blocks:
            block.attn_norm = Undivided(config.d_model, subtract_mean)
            block.ffn_norm = Undivided(config.d_model, subtract_mean)
        return model

    return start


# --- the exact rewrite ---------------------------------------------------------------------------


class ShiftedRMSNorm(nn.Module):
    """Divide by the root mean square, scale, and add LayerNorm's shift."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x without its mean ever being looked at."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps) + self.bias


def with_rms(model: Transformer) -> Transformer:
    """Return a copy whose LayerNorms no longer subtract the mean."""
    swapped = copy.deepcopy(model)
    for part in (swapped, *swapped.blocks):
        for name, norm in part.named_children():
            if isinstance(norm, nn.LayerNorm):
                setattr(part, name, ShiftedRMSNorm(norm))
    return swapped


@torch.no_grad()
def without_mean(model: Transformer) -> Transformer:
    """Return a copy whose residual stream has mean zero: every writer's mean is taken out."""
    centered = copy.deepcopy(model)
    centered.unembed.weight = nn.Parameter(model.unembed.weight.clone())  # it reads, so it stays
    centered.embed.weight -= centered.embed.weight.mean(-1, keepdim=True)
    for block in centered.blocks:
        for writer in (block.attn.o, block.ffn.down):
            writer.weight -= writer.weight.mean(-2, keepdim=True)
            writer.bias -= writer.bias.mean(-1, keepdim=True)
    return centered


@torch.no_grad()
def rewrite(result: Result) -> dict[str, Any]:
    """Measure on the trained model what the swap changes, before and after the rewrite."""
    model = copy.deepcopy(result.model).double().eval()
    rows = corpus.windows(corpus.load().validation[:1], 64)[:, :-1]
    with one_thread():
        logits = model(rows)
        swap = (with_rms(model)(rows) - logits).abs().max()
        exact = (with_rms(without_mean(model))(rows) - logits).abs().max()
    return {
        "rewrite": {
            "largest_logit": logits.abs().max().item(),
            "swapped": swap.item(),
            "log10_rewritten": exact.log10().item(),
        }
    }


# --- times ---------------------------------------------------------------------------------------


def layer_by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Write LayerNorm out."""
    centered = x - x.mean(-1, keepdim=True)
    return centered * (centered.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias


def rms_by_hand(x: Tensor, weight: Tensor) -> Tensor:
    """Write RMSNorm out."""
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


@torch.no_grad()
def times(result: Result) -> dict[str, Any]:
    """Measure the CPU time of one norm and of one square matrix, one thread, best of several."""
    measured = {}
    for tokens, width in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, width, generator=generator)
        w, b = torch.ones(width), torch.zeros(width)
        matrix = torch.randn(width, width, generator=generator)
        calls: dict[str, Callable[[], Tensor]] = {
            "F.layer_norm": lambda x=x, w=w, b=b: F.layer_norm(x, w.shape, w, b),
            "F.rms_norm": lambda x=x, w=w: F.rms_norm(x, w.shape, w, 1e-5),
            "LayerNorm by hand": lambda x=x, w=w, b=b: layer_by_hand(x, w, b),
            "RMSNorm by hand": lambda x=x, w=w: rms_by_hand(x, w),
            "one matrix": lambda x=x, m=matrix: x @ m,
        }
        with one_thread():
            measured[f"{tokens} x {width}"] = {name: fastest(call) for name, call in calls.items()}
    return {"milliseconds": measured}


def fastest(call: Callable[[], Tensor]) -> float:
    """Return the least CPU time of a call in milliseconds."""
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return 1_000 * min(spent)


EXPERIMENT = Experiment(
    id="E5",
    chapter="09",
    title="The mean, and the division",
    question="Which half of LayerNorm does training need: subtracting the mean, or dividing?",
    note="LayerNorm subtracts and divides, RMSNorm divides, the third arm subtracts, the last does "
    "neither. Only LayerNorm has a shift. The first arm also holds the exact rewrite of its "
    "trained model in float64, the second the CPU times of single norms (float32, one thread).",
    arms=(
        Arm("layernorm", "LayerNorm: subtract, divide", measure=rewrite),
        Arm(
            "rmsnorm",
            "RMSNorm: divide",
            {"norm": "rmsnorm"},
            against="layernorm",
            expect="none",
            measure=times,
        ),
        Arm(
            "mean only",
            "subtract only",
            {"norm": "rmsnorm"},
            note="norms subtract the mean and multiply by 50 and the scale",
            against="rmsnorm",
            expect="higher",
            seeds=(0,),
            start=start_undivided(True),
        ),
        Arm(
            "neither",
            "neither",
            {"norm": "rmsnorm"},
            note="norms multiply by 50 and the scale",
            against="mean only",
            expect="none",
            seeds=(0,),
            start=start_undivided(False),
        ),
    ),
)
