"""Exercises of chapter 07, grouped queries: users in a memory, heads averaged, heads mixed up."""

import math

import torch
from torch import Tensor

from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.presets import PRESETS


def conversations(config: ModelConfig, memory_bytes: int, n_tokens: int) -> int:
    """Return how many conversations of n_tokens each have room for their keys and values.

    Every layer keeps every token, in bfloat16, two bytes a number. Whole conversations only.
    """
    numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    return memory_bytes // (2 * numbers * n_tokens)


def _keys_only(config: ModelConfig, memory_bytes: int, n_tokens: int) -> int:
    numbers = config.n_layers * config.n_kv_heads * config.head_dim
    return memory_bytes // (2 * numbers * n_tokens)


def _all_heads(config: ModelConfig, memory_bytes: int, n_tokens: int) -> int:
    return conversations(config.but(n_kv_heads=config.n_heads), memory_bytes, n_tokens)


def pool_heads(weight: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
    """Average the key heads of multi-head attention into n_kv_heads shared ones.

    `weight` is [n_heads * head_dim, d_model]: the first head_dim rows are head 0, and so on. Heads
    that will share stand next to each other. Return [n_kv_heads * head_dim, d_model].
    """
    groups = weight.unflatten(0, (n_kv_heads, -1, head_dim))  # [K G hd D]
    return groups.mean(1).flatten(0, 1)


def _every_kth(weight: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
    return weight.unflatten(0, (-1, n_kv_heads, head_dim)).mean(0).flatten(0, 1)


def _first_of_each(weight: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
    return weight.unflatten(0, (n_kv_heads, -1, head_dim))[:, 0].flatten(0, 1)


def _summed(weight: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
    return weight.unflatten(0, (n_kv_heads, -1, head_dim)).sum(1).flatten(0, 1)


def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what one new token's heads read, [H, hd], from the keys and values of the cache.

    q is [H, hd], k and v are [K, S, hd]. Neighboring query heads share a kv head: with H = 8 and
    K = 4, heads 0 and 1 read kv head 0. No mask and no sinks: the new token sees everything.
    """
    shared = torch.arange(len(q)) // (len(q) // len(k))
    scores = (k[shared] @ q[:, :, None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [H S]
    return (scores.softmax(-1)[:, None] @ v[shared]).squeeze(1)


def broken_read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what one new token's heads read, [H, hd], from the keys and values of the cache.

    q is [H, hd], k and v are [K, S, hd]. Neighboring query heads share a kv head: with H = 8 and
    K = 4, heads 0 and 1 read kv head 0. No mask and no sinks: the new token sees everything.
    """
    shared = torch.arange(len(q)) // len(k)
    scores = (k[shared] @ q[:, :, None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [H S]
    return (scores.softmax(-1)[:, None] @ v[shared]).squeeze(1)


def _tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = len(q) // len(k)
    return read(q, k.repeat(times, 1, 1), v.repeat(times, 1, 1))


def _values_tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = len(q) // len(k)
    return read(q, k.repeat_interleave(times, 0), v.repeat(times, 1, 1))


def _weight(n_heads: int, head_dim: int, d_model: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_heads)
    return torch.randn(n_heads * head_dim, d_model, generator=generator)


def _heads(n_heads: int, n_kv_heads: int, n_keys: int, width: int) -> tuple[Tensor, ...]:
    """Draw a new token's queries, and the keys and values of a cache."""
    generator = torch.Generator().manual_seed(10 * n_heads + n_kv_heads)
    shapes = ((n_heads, width), (n_kv_heads, n_keys, width), (n_kv_heads, n_keys, width))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


EXERCISES = (
    Exercise(
        id="ch07.ex1",
        title="How many conversations",
        minutes=5,
        level="easy",
        solution=conversations,
        cases=(
            (PRESETS["gpt-oss-20b"], 8 * 2**30, 4_096),
            (PRESETS["gpt2-xl"], 8 * 2**30, 1_024),
        ),
        hidden=(
            (PRESETS["qwen3-30b-a3b"], 24 * 10**9, 32_768),
            (PRESETS["gpt-oss-120b"], 10**10, 131_072),
            (PRESETS["gpt-oss-20b"], 2**20, 4_096),
        ),
        hints=(
            "How many numbers does one token leave in one layer? Keys and values both.",
            "2 * n_layers * n_kv_heads * head_dim numbers a token, two bytes each; divide with //.",
        ),
        wrong=(_keys_only, _all_heads),
    ),
    Exercise(
        id="ch07.ex2",
        title="From many heads to few",
        minutes=10,
        level="implement",
        solution=pool_heads,
        cases=((torch.tensor([[1.0], [3.0], [10.0], [20.0]]), 2, 1), (_weight(4, 2, 3), 2, 2)),
        hidden=((_weight(6, 4, 5), 2, 4), (_weight(8, 2, 4), 4, 2), (_weight(3, 2, 4), 1, 2)),
        hints=(
            "Give the heads, the groups and the rows of a head an axis each: `unflatten`.",
            "weight.unflatten(0, (n_kv_heads, -1, head_dim)) is [K G hd D]; average over axis 1.",
        ),
        wrong=(_every_kth, _first_of_each, _summed),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch07.ex3",
        title="Right in gpt-oss, wrong elsewhere",
        minutes=10,
        level="find the bug",
        solution=read,
        stub=broken_read,
        cases=(_heads(4, 2, 3, 2), _heads(8, 4, 3, 2)),
        hidden=(_heads(64, 8, 5, 4), _heads(6, 3, 4, 2), _heads(4, 4, 3, 2), _heads(8, 2, 3, 2)),
        hints=(
            "The first case passes because 4 / 2 is 2. Which two numbers are mixed up?",
            "A kv head serves H / K query heads. Divide the head's number by that, not by K.",
        ),
        wrong=(_tiled, _values_tiled),
        tolerance=1e-5,
    ),
)
