"""Exercises of chapter 02, dropout: noise of a mean, paired differences, and the wrong factor."""

import math

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def noise_of_a_mean(p: float, n: int) -> float:
    """Return the relative noise that dropout adds to the mean of n equal numbers.

    Relative noise is the standard deviation over the masks, divided by the value without dropout.
    The n masks are independent.
    """
    return math.sqrt(p / (1 - p) / n)


def _not_averaged(p: float, n: int) -> float:
    return math.sqrt(p / (1 - p))


def _divided_by_n(p: float, n: int) -> float:
    return math.sqrt(p / (1 - p)) / n


def _of_the_mask(p: float, n: int) -> float:
    return math.sqrt(p * (1 - p) / n)


def paired(plain: list[list[float]], dropped: list[list[float]]) -> tuple[list[float], list[float]]:
    """Return the differences "dropped minus plain" per seed: at the last checkpoint, at the best.

    Each argument holds one list per seed, in the same order: the validation losses of the
    checkpoints of that run, in order of time.
    """
    last = [b[-1] - a[-1] for a, b in zip(plain, dropped, strict=True)]
    best = [min(b) - min(a) for a, b in zip(plain, dropped, strict=True)]
    return last, best


def _other_sign(
    plain: list[list[float]], dropped: list[list[float]]
) -> tuple[list[float], list[float]]:
    return paired(dropped, plain)


def _same_checkpoint(
    plain: list[list[float]], dropped: list[list[float]]
) -> tuple[list[float], list[float]]:
    """Read both runs where the plain one is best."""
    at = [a.index(min(a)) for a in plain]
    best = [b[i] - a[i] for a, b, i in zip(plain, dropped, at, strict=True)]
    return paired(plain, dropped)[0], best


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Apply inverted dropout: the mean over all masks is x, and eval mode leaves x alone.

    keep is a boolean mask of x's shape, True with probability 1 - p.
    """
    if not training:
        return x
    return x * keep / (1 - p)


def broken_dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Apply inverted dropout: the mean over all masks is x, and eval mode leaves x alone.

    keep is a boolean mask of x's shape, True with probability 1 - p.
    """
    if not training:
        return x
    return x * keep / p


def _scaled_later(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """The dropout of 2012: smaller numbers in eval mode."""
    return x * keep if training else x * (1 - p)


def _always_on(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    return x * keep / (1 - p)


def _case(n: int, p: float, training: bool = True) -> tuple[Tensor, Tensor, float, bool]:
    """Draw some numbers and a mask that keeps and drops at least one of them."""
    generator = torch.Generator().manual_seed(n)
    keep = torch.rand(n, generator=generator) >= p
    keep[0], keep[-1] = True, False
    return torch.randn(n, generator=generator), keep, p, training


EXERCISES = (
    Exercise(
        id="ch02.ex1",
        title="The noise of a mean",
        minutes=5,
        level="easy",
        solution=noise_of_a_mean,
        cases=((0.1, 1), (0.1, 2_880)),
        hidden=((0.5, 4), (0.2, 64), (0.0, 10), (0.9, 1_600)),
        hints=(
            "Start from one number. What happens to a variance when n of them are averaged?",
            "The variance of one is p / (1 - p) of its square; the mean of n has an n-th of it.",
        ),
        wrong=(_not_averaged, _divided_by_n, _of_the_mask),
    ),
    Exercise(
        id="ch02.ex2",
        title="Paired differences, last and best",
        minutes=10,
        level="implement",
        solution=paired,
        cases=(
            ([[2.5, 2.25, 2.75]], [[2.625, 2.5, 2.375]]),
            ([[2.0, 1.5], [2.0, 1.75]], [[2.25, 1.625], [2.5, 1.5]]),
        ),
        hidden=(
            ([[3.0], [2.0], [1.0]], [[2.0], [2.0], [2.0]]),
            ([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], [[3.0, 2.5, 2.0], [1.5, 2.5, 3.5]]),
        ),
        hints=(
            "Pair the runs of one seed first, with `zip`. Do not average over seeds.",
            "Each run has its own best checkpoint: `min(b) - min(a)`.",
        ),
        wrong=(_other_sign, _same_checkpoint),
    ),
    Exercise(
        id="ch02.ex3",
        title="Dropout that passes one test",
        minutes=10,
        level="find the bug",
        solution=dropout,
        stub=broken_dropout,
        cases=(_case(6, 0.5), _case(6, 0.1)),
        hidden=(_case(5, 0.9), _case(9, 0.2), _case(4, 0.1, training=False)),
        hints=(
            "The first case passes because a half is special. What is the factor for p = 0.1?",
            "A number is kept with probability 1 - p. By what must it be divided to keep the mean?",
        ),
        wrong=(_scaled_later, _always_on),
    ),
)
