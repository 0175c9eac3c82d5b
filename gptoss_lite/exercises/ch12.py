"""Exercises of chapter 12, Qwen3: what a token costs a cache, normed scores, the norm too late."""

import math

import torch
from torch import Tensor

from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.presets import PRESETS


def kib_per_token(config: ModelConfig) -> float:
    """Return by how many KiB one more token makes the cache of a long text grow.

    The cache is in bfloat16, two bytes a number. A layer with a window has long been full, and
    drops a token for each that it takes. `config.window(layer)` is None for a full layer.
    """
    full = sum(config.window(layer) is None for layer in range(config.n_layers))
    return full * 2 * config.n_kv_heads * config.head_dim * 2 / 1_024


def _all_layers(config: ModelConfig) -> float:
    return config.n_layers * 2 * config.n_kv_heads * config.head_dim * 2 / 1_024


def _query_heads(config: ModelConfig) -> float:
    return kib_per_token(config.but(n_kv_heads=config.n_heads))


def _model_width(config: ModelConfig) -> float:
    full = sum(config.window(layer) is None for layer in range(config.n_layers))
    return full * 2 * config.d_model * 2 / 1_024


def scores(q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, eps: float) -> Tensor:
    """Return the scores [H, T, S] of normed queries [H, T, hd] and keys [H, S, hd].

    Each query and each key is divided by its root mean square, the square root of the mean of its
    squares plus eps, and multiplied by its scale [hd], which all heads share. No rotation. The
    products are divided by the root of hd.
    """
    q = q * (q.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * q_scale
    k = k * (k.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * k_scale
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _unit_length(q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, eps: float) -> Tensor:
    q = q * (q.pow(2).sum(-1, keepdim=True) + eps).rsqrt() * q_scale
    k = k * (k.pow(2).sum(-1, keepdim=True) + eps).rsqrt() * k_scale
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _over_heads(q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, eps: float) -> Tensor:
    q = q * (q.pow(2).mean((0, 2), keepdim=True) + eps).rsqrt() * q_scale
    k = k * (k.pow(2).mean((0, 2), keepdim=True) + eps).rsqrt() * k_scale
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _unscaled(q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, eps: float) -> Tensor:
    return scores(q, k, q_scale, k_scale, eps) * math.sqrt(q.shape[-1])


def prepare(x: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the queries x [T, hd] of one head as Qwen3 uses them: normed, scaled and rotated.

    The root mean square is over hd, with 1e-6 under the root; scale is [hd]. cos and sin are
    [T, hd / 2] and turn the pairs (i, i + hd / 2).
    """
    x = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * scale
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def broken_prepare(x: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the queries x [T, hd] of one head as Qwen3 uses them: normed, scaled and rotated.

    The root mean square is over hd, with 1e-6 under the root; scale is [hd]. cos and sin are
    [T, hd / 2] and turn the pairs (i, i + hd / 2).
    """
    first, second = x.chunk(2, dim=-1)
    x = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * scale


def _no_norm(x: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = (x * scale).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _other_way(x: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return prepare(x, scale, cos, -sin)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _pair(n_heads: int, n_queries: int, n_keys: int, width: int) -> tuple[Tensor | float, ...]:
    q, k = _normal(n_heads, n_queries, width, seed=1), 5 * _normal(n_heads, n_keys, width, seed=2)
    scales = 1 + 0.5 * _normal(2, width, seed=3)
    return q, k, scales[0], scales[1], 1e-6


def _turned(n_tokens: int, width: int, scale: Tensor | None = None) -> tuple[Tensor, ...]:
    scale = 1 + _normal(width, seed=5) if scale is None else scale
    angles = torch.arange(n_tokens)[:, None] * torch.tensor([1.0 / 3**i for i in range(width // 2)])
    return _normal(n_tokens, width, seed=4), scale, angles.cos(), angles.sin()


EXERCISES = (
    Exercise(
        id="ch12.ex1",
        title="What one more token costs",
        minutes=5,
        level="easy",
        solution=kib_per_token,
        cases=((PRESETS["gpt-oss-20b"],), (PRESETS["qwen3-30b-a3b"],)),
        hidden=(
            (PRESETS["gpt-oss-120b"],),
            (PRESETS["gpt2-xl"],),
            (PRESETS["gpt-oss-20b"].but(n_layers=25),),
        ),
        hints=(
            "Which layers still grow? Count them with `config.window(layer) is None`.",
            "Each of those keeps 2 * n_kv_heads * head_dim numbers, of two bytes each.",
        ),
        wrong=(_all_layers, _query_heads, _model_width),
    ),
    Exercise(
        id="ch12.ex2",
        title="Scores of normed queries and keys",
        minutes=10,
        level="implement",
        solution=scores,
        cases=(_pair(1, 2, 2, 2), _pair(2, 3, 5, 4)),
        hidden=(_pair(4, 1, 7, 16), _pair(3, 6, 6, 8)),
        hints=(
            "The mean is over the last axis alone: each head of each token has a norm of its own.",
            "x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * scale, for q and for k.",
        ),
        wrong=(_unit_length, _over_heads, _unscaled),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch12.ex3",
        title="The norm that came too late",
        minutes=10,
        level="find the bug",
        solution=prepare,
        stub=broken_prepare,
        cases=(_turned(3, 4, torch.ones(4)), _turned(3, 4)),
        hidden=(_turned(7, 8), _turned(1, 2), _turned(5, 6, torch.full((6,), 2.0))),
        hints=(
            "The first case passes because every scale is 1. What does a rotation do to the rest?",
            "A rotation mixes the halves of a pair, and their scales differ: norm and scale first.",
        ),
        wrong=(_no_norm, _other_way),
        tolerance=1e-5,
    ),
)
