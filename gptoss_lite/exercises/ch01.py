"""Exercises of chapter 01, GPT-2: the mask, the activation, and attention."""

import math

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def causal_mask(n: int) -> Tensor:
    """Return an n x n tensor of bools: True where query t (row) may read key s (column).

    A token reads itself and everything before it, and nothing after it.
    """
    positions = torch.arange(n)
    return positions[:, None] >= positions[None, :]


def _future(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu()


def _without_itself(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril(-1)


def tanh_gelu(x: Tensor) -> Tensor:
    """Return GPT-2's GELU of each number, without calling a GELU of PyTorch.

    0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))
    """
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _without_cube(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what each query reads, causally; q, k, v are [heads, length, width]."""
    n = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


def broken_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what each query reads, causally; q, k, v are [heads, length, width]."""
    n = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / math.sqrt(n)
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


def _unscaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return broken_attention(q * math.sqrt(q.shape[-2]), k, v)


def _wrong_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -1e9).softmax(-2) @ v


def _heads(n_heads: int, length: int, width: int) -> tuple[Tensor, ...]:
    """Draw q, k and v."""
    generator = torch.Generator().manual_seed(100 * length + width)
    return tuple(torch.randn(n_heads, length, width, generator=generator) for _ in range(3))


EXERCISES = (
    Exercise(
        id="ch01.ex1",
        title="The causal mask",
        minutes=5,
        level="easy",
        solution=causal_mask,
        cases=((3,), (4,)),
        hidden=((1,), (2,), (7,), (64,)),
        hints=(
            "Compare a column of query positions with a row of key positions.",
            "`torch.arange(n)[:, None]` is a column, `torch.arange(n)[None, :]` a row.",
        ),
        wrong=(_future, _without_itself),
    ),
    Exercise(
        id="ch01.ex2",
        title="GELU by hand",
        minutes=5,
        level="implement",
        solution=tanh_gelu,
        cases=((torch.tensor([-1.0, 0.0, 1.0]),), (torch.linspace(-4, 4, 81),)),
        hidden=((torch.tensor(2.0),), (torch.linspace(-30, 30, 7).view(7, 1),)),
        hints=(
            "The formula in the docstring, term by term; `torch.tanh` and `math.sqrt` are allowed.",
            "With erf instead of tanh the result is off by up to 0.0005: that is another GELU.",
        ),
        wrong=(_exact_gelu, _without_cube),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch01.ex3",
        title="Attention that passes one test",
        minutes=10,
        level="find the bug",
        solution=attention,
        stub=broken_attention,
        cases=(_heads(2, 4, 4), _heads(2, 5, 3)),
        hidden=(_heads(1, 9, 2), _heads(3, 2, 16), _heads(2, 1, 4)),
        hints=(
            "The first case passes because its length equals its width. Which one belongs there?",
            "The scores are sums over the width of a head; the division makes up for its size.",
        ),
        wrong=(_unscaled, _wrong_axis),
        tolerance=1e-5,
    ),
)
