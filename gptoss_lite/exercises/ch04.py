"""Exercises of chapter 04, YaRN: the scores' factor, the three zones, and the blend."""

import math

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def score_growth(factor: float) -> float:
    """Return by how much YaRN multiplies every attention score when it stretches by `factor`.

    Cosines and sines are multiplied by 0.1 * ln(factor) + 1, for queries and for keys.
    """
    return (0.1 * math.log(factor) + 1) ** 2


def _once(factor: float) -> float:
    return 0.1 * math.log(factor) + 1


def _decimal(factor: float) -> float:
    return (0.1 * math.log10(factor) + 1) ** 2


def zone(pair: int, head_dim: int, theta: float, original_context: int) -> str:
    """Return "kept", "blended" or "slowed": what YaRN does to a pair.

    A pair that turns 32 times or more within the original context is kept. One that turns once
    or less is slowed. Those between are blended. Before YaRN, pair i turns by
    theta ** (-2 * i / head_dim) radians per token.
    """
    turns = original_context * theta ** (-2 * pair / head_dim) / (2 * math.pi)
    if turns >= 32:
        return "kept"
    return "slowed" if turns <= 1 else "blended"


def _radians(pair: int, head_dim: int, theta: float, original_context: int) -> str:
    return zone(pair, head_dim, theta, round(original_context * 2 * math.pi))


def _reversed(pair: int, head_dim: int, theta: float, original_context: int) -> str:
    found = zone(pair, head_dim, theta, original_context)
    return {"kept": "slowed", "slowed": "kept"}.get(found, found)


def stretch(plain: Tensor, ramp: Tensor, factor: float) -> Tensor:
    """Return YaRN's angle per token of each pair.

    `plain` holds the angles per token before. Where `ramp` is 0 they stay, where it is 1 they
    are divided by `factor`, and between them the two *angles* are mixed in proportion.
    """
    return plain * (1 - ramp) + plain / factor * ramp


def broken_stretch(plain: Tensor, ramp: Tensor, factor: float) -> Tensor:
    """Return YaRN's angle per token of each pair.

    `plain` holds the angles per token before. Where `ramp` is 0 they stay, where it is 1 they
    are divided by `factor`, and between them the two *angles* are mixed in proportion.
    """
    wavelengths = 2 * math.pi / plain
    stretched = wavelengths * (1 - ramp) + wavelengths * factor * ramp
    return 2 * math.pi / stretched


def _all_slowed(plain: Tensor, ramp: Tensor, factor: float) -> Tensor:
    return plain / factor


def _ramp_reversed(plain: Tensor, ramp: Tensor, factor: float) -> Tensor:
    return stretch(plain, 1 - ramp, factor)


def _pairs(n: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return angles per token of n pairs, and a ramp between two pair numbers."""
    pairs = torch.arange(n)
    return 150_000.0 ** (-pairs / n), ((pairs - low) / (high - low)).clamp(0, 1)


EXERCISES = (
    Exercise(
        id="ch04.ex1",
        title="What happens to a score",
        minutes=5,
        level="easy",
        solution=score_growth,
        cases=((32.0,), (1.0,)),
        hidden=((2.0,), (4.0,), (64.0,)),
        hints=(
            "A score is a product of a query and a key. How many of the two are multiplied?",
            "`math.log` is the natural logarithm. Square the factor at the end.",
        ),
        wrong=(_once, _decimal),
    ),
    Exercise(
        id="ch04.ex2",
        title="Three zones",
        minutes=10,
        level="implement",
        solution=zone,
        cases=((0, 64, 150_000.0, 4_096), (12, 64, 150_000.0, 4_096), (31, 64, 150_000.0, 4_096)),
        hidden=(
            *((pair, 64, 150_000.0, 4_096) for pair in (8, 9, 17, 18)),
            (20, 64, 10_000.0, 4_096),
            (1, 16, 150_000.0, 64),
        ),
        hints=(
            "How many radians does the pair turn within the original context? How many turns?",
            "turns = original_context * angle per token / (2 * pi); compare it with 32 and 1.",
        ),
        wrong=(_radians, _reversed),
    ),
    Exercise(
        id="ch04.ex3",
        title="Right at both ends",
        minutes=10,
        level="find the bug",
        solution=stretch,
        stub=broken_stretch,
        cases=(
            (torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]), 32.0),
            (torch.tensor([0.5, 0.1, 0.02]), torch.tensor([0.0, 0.5, 1.0]), 4.0),
        ),
        hidden=((*_pairs(32, 8.09, 17.4), 32.0), (*_pairs(8, 0.0, 1.56), 4.0)),
        hints=(
            "The first case passes because its ramp is 0 or 1. What is mixed where it is between?",
            "Half way between 1 and 1/32 is about 1/2. Half way between 2 pi and 64 pi is not.",
        ),
        wrong=(_all_slowed, _ramp_reversed),
    ),
)
