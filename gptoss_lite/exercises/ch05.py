"""Exercises of chapter 05, SwiGLU: the width that costs the same, two slopes, and a wrong split."""

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def gated_width(width: int) -> int:
    """Return how wide a gated MLP may be without holding more weights than a plain one.

    The plain MLP has two matrices and is `width` wide, the gated one has three. Both read and
    write the same residual stream. Biases are not counted. Return the largest whole number.
    """
    return 2 * width // 3


def _halved(width: int) -> int:
    return width // 2


def _rounded(width: int) -> int:
    return round(2 * width / 3)


def slopes(gate: Tensor, up: Tensor, alpha: float, limit: float) -> tuple[Tensor, Tensor]:
    """Return how fast gpt-oss's gated unit changes with gate, and how fast with up.

    The unit is g * sigmoid(alpha * g) * (u + 1), where g is gate cut at `limit` from above, and u
    is up cut at -limit and limit. The tensors have the same shape, and no value is at a limit.
    """
    g, u = gate.clamp(max=limit), up.clamp(-limit, limit)
    s = torch.sigmoid(alpha * g)
    by_gate = (s + alpha * g * s * (1 - s)) * (u + 1) * (gate < limit)
    by_up = g * s * (up.abs() < limit)
    return by_gate, by_up


def _never_flat(gate: Tensor, up: Tensor, alpha: float, limit: float) -> tuple[Tensor, Tensor]:
    g, u = gate.clamp(max=limit), up.clamp(-limit, limit)
    s = torch.sigmoid(alpha * g)
    return (s + alpha * g * s * (1 - s)) * (u + 1), g * s


def _without_one(gate: Tensor, up: Tensor, alpha: float, limit: float) -> tuple[Tensor, Tensor]:
    by_gate, by_up = slopes(gate, up - 1, alpha, limit)
    return by_gate, by_up


def _cut_below(gate: Tensor, up: Tensor, alpha: float, limit: float) -> tuple[Tensor, Tensor]:
    by_gate, by_up = slopes(gate, up, alpha, limit)
    return by_gate * (gate > -1), by_up


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gate, up), each [length, d_ff], of one gpt-oss expert's first matrix product.

    `rows` is [length, 2 * d_ff], in the order of the published weights: row 0 of the matrix
    belongs to the first unit's gate, row 1 to the same unit's up, row 2 to the next unit's gate.
    """
    return rows[..., 0::2], rows[..., 1::2]


def broken_halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gate, up), each [length, d_ff], of one gpt-oss expert's first matrix product.

    `rows` is [length, 2 * d_ff], in the order of the published weights: row 0 of the matrix
    belongs to the first unit's gate, row 1 to the same unit's up, row 2 to the next unit's gate.
    """
    gate, up = rows.chunk(2, dim=-1)
    return gate, up


def _exchanged(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows[..., 1::2], rows[..., 0::2]


def _of_tokens(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows[0::2], rows[1::2]


def _draw(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(*shape, generator=generator)).round(decimals=2)


EXERCISES = (
    Exercise(
        id="ch05.ex1",
        title="The width that costs the same",
        minutes=5,
        level="easy",
        solution=gated_width,
        cases=((4_096,), (256,)),
        hidden=((6_144,), (1,), (3,), (11_520,), (257,)),
        hints=(
            "Write down the weights of both, with D for the width of the residual stream.",
            "3 * D * gated may be at most 2 * D * width. Divide by D, and round down.",
        ),
        wrong=(_halved, _rounded),
    ),
    Exercise(
        id="ch05.ex2",
        title="Where a unit stops learning",
        minutes=15,
        level="implement",
        solution=slopes,
        cases=(
            (torch.tensor([1.0]), torch.tensor([0.0]), 1.702, 7.0),
            (torch.tensor([8.0, 1.0]), torch.tensor([0.5, -9.0]), 1.702, 7.0),
        ),
        hidden=(
            (torch.tensor([-8.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, -1.0]), 1.702, 7.0),
            (_draw(4, 5, scale=3.0), _draw(5, 4, scale=3.0).T, 1.702, 7.0),
            (_draw(3, 3), _draw(3, 3) - 2, 1.0, 1.505),
        ),
        hints=(
            "Beyond a limit the output does not change. What is the slope there?",
            "The slope of g * s is s + alpha * g * s * (1 - s), where s = sigmoid(alpha * g).",
        ),
        wrong=(_never_flat, _without_one, _cut_below),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch05.ex3",
        title="Every other row",
        minutes=5,
        level="find the bug",
        solution=halves,
        stub=broken_halves,
        cases=((_draw(2, 2),), (_draw(1, 4),)),
        hidden=((_draw(3, 6),), (_draw(1, 10),), (_draw(4, 8),)),
        hints=(
            "The first case passes because it has one unit. Which unit does row 1 belong to?",
            "`rows.chunk(2, dim=-1)` puts the rows 0 and 1 together. Take every other row.",
        ),
        wrong=(_exchanged, _of_tokens),
    ),
)
