"""Exercises of chapter 09, RMSNorm: what norms cost, the order of roundings, a mean taken out."""

import torch
from torch import Tensor

from gptoss_lite import account
from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.presets import PRESETS


def norm_percent(config: ModelConfig) -> float:
    """Return the operations of all norms for one token, in percent of those of the matrices.

    LayerNorm takes eight operations a number and RMSNorm four. There are two norms a layer and
    one at the end, each over d_model numbers.
    """
    each = 8 if config.norm == "layernorm" else 4
    n_norms = 2 * config.n_layers + 1
    return 100 * each * n_norms * config.d_model / account.matmul_flops(config)


def _one_a_layer(config: ModelConfig) -> float:
    return norm_percent(config) * (config.n_layers + 1) / (2 * config.n_layers + 1)


def _no_last_norm(config: ModelConfig) -> float:
    return norm_percent(config) * 2 * config.n_layers / (2 * config.n_layers + 1)


def _of_parameters(config: ModelConfig) -> float:
    return norm_percent(config) * account.matmul_flops(config) / account.parameters(config)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return gpt-oss's RMSNorm over the last axis, in the dtype of x.

    Everything is computed in float32, the multiplication by weight too. Only the result is
    rounded to the dtype of x. eps stands inside the square root.
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * weight.float()).to(x.dtype)


def _cast_first(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def _eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + eps) * weight.float()).to(x.dtype)


def _never_wide(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _sum(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).sum(-1, keepdim=True) + eps) * weight).to(x.dtype)


def center(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a writer whose outputs have mean zero, whatever it reads.

    A writer computes weight @ h + bias; weight is [d_model, n_in] and bias [d_model]. Its outputs
    may change by their mean and by nothing else.
    """
    return weight - weight.mean(0, keepdim=True), bias - bias.mean()


def broken_center(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a writer whose outputs have mean zero, whatever it reads.

    A writer computes weight @ h + bias; weight is [d_model, n_in] and bias [d_model]. Its outputs
    may change by their mean and by nothing else.
    """
    return weight - weight.mean(-1, keepdim=True), bias - bias.mean()


def _one_mean(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight - weight.mean(), bias - bias.mean()


def _bias_kept(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight - weight.mean(0, keepdim=True), bias


def _rows(size: float, n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """Draw rows of some size, scales around 1, and gpt-oss's eps."""
    generator = torch.Generator().manual_seed(width)
    x = size * torch.randn(n, width, generator=generator)
    weight = 0.5 + torch.rand(width, generator=generator)
    return x.to(dtype), weight.to(dtype), 1e-5


def _writer(d_model: int, n_in: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * d_model + n_in)
    weight = torch.randn(d_model, n_in, generator=generator)
    return weight, torch.randn(d_model, generator=generator)


EXERCISES = (
    Exercise(
        id="ch09.ex1",
        title="What norms cost",
        minutes=5,
        level="easy",
        solution=norm_percent,
        cases=((PRESETS["gpt2-xl"],), (PRESETS["gpt2-xl"].but(norm="rmsnorm"),)),
        hidden=((PRESETS["gpt-oss-20b"],), (PRESETS["qwen3-30b-a3b"],), (PRESETS["gpt2"],)),
        hints=(
            "How many norms are there? Two in each layer, and one before the head.",
            "100 * each * (2 * n_layers + 1) * d_model / account.matmul_flops(config)",
        ),
        wrong=(_one_a_layer, _no_last_norm, _of_parameters),
    ),
    Exercise(
        id="ch09.ex2",
        title="RMSNorm as gpt-oss rounds",
        minutes=8,
        level="implement",
        solution=rms_norm,
        cases=(
            (torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0),
            _rows(1.0, 2, 8, torch.bfloat16),
        ),
        hidden=(
            _rows(1.0, 3, 16, torch.float32),
            _rows(0.001, 3, 12, torch.float32),
            _rows(2.0, 4, 40, torch.bfloat16),
        ),
        hints=(
            "x.float() first, .to(x.dtype) last, and nothing rounded in between.",
            "wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps), then times "
            "weight.float(), then .to(x.dtype).",
        ),
        wrong=(_cast_first, _eps_outside, _never_wide, _sum),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch09.ex3",
        title="The wrong mean",
        minutes=10,
        level="find the bug",
        solution=center,
        stub=broken_center,
        cases=((torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.0, 2.0])), _writer(3, 3)),
        hidden=(_writer(4, 6), _writer(6, 2), _writer(5, 5)),
        hints=(
            "Compute weight @ h for some h. Is the mean of the result zero?",
            "An output is a row. Each column adds its own mean to the mean of the outputs, so the "
            "mean over axis 0 has to go.",
        ),
        wrong=(_one_mean, _bias_kept),
        tolerance=1e-5,
    ),
)
