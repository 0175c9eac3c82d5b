"""Exercises of chapter 03, RoPE: a full turn, a score from the distance, and the wrong pairs."""

import math

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def wavelength(pair: int, head_dim: int, theta: float) -> float:
    """Return after how many tokens a pair has made one full turn.

    Pair number `pair` of a head turns by theta ** (-2 * pair / head_dim) radians per token.
    """
    return 2 * math.pi * theta ** (2 * pair / head_dim)


def _in_radians(pair: int, head_dim: int, theta: float) -> float:
    return theta ** (2 * pair / head_dim)


def _by_pairs(pair: int, head_dim: int, theta: float) -> float:
    return 2 * math.pi * theta ** (pair / head_dim)


def score_at(q: Tensor, k: Tensor, distance: int, theta: float) -> float:
    """Return the score of q and k when k stands `distance` tokens before q, without 1/sqrt(hd).

    q and k are [hd], not yet rotated, with pairs (i, i + hd/2). Nothing but the distance is known:
    rotate one of the two.
    """
    half = len(q) // 2
    angles = distance * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.cat((q[:half] * cos - q[half:] * sin, q[half:] * cos + q[:half] * sin))
    return float(turned @ k)


def _key_turned(q: Tensor, k: Tensor, distance: int, theta: float) -> float:
    return score_at(k, q, distance, theta)


def _neighbors(q: Tensor, k: Tensor, distance: int, theta: float) -> float:
    q, k = (torch.cat((x[0::2], x[1::2])) for x in (q, k))
    return score_at(q, k, distance, theta)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of x [length, hd] by its angle [length, hd/2], as gpt-oss's weights expect.

    Pair i of a head is made of its numbers i and i + hd/2.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def broken_rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of x [length, hd] by its angle [length, hd/2], as gpt-oss's weights expect.

    Pair i of a head is made of its numbers i and i + hd/2.
    """
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


def _out_of_order(x: Tensor, angles: Tensor) -> Tensor:
    turned = broken_rotate(x, angles)
    return torch.cat((turned[..., 0::2], turned[..., 1::2]), dim=-1)


def _backwards(x: Tensor, angles: Tensor) -> Tensor:
    return rotate(x, -angles)


def _vectors(width: int, n: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(width)
    return tuple(torch.randn(width, generator=generator) for _ in range(n))


def _rows(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw the numbers of one head at several positions, and angles for its pairs."""
    generator = torch.Generator().manual_seed(100 * length + width)
    x = torch.randn(length, width, generator=generator)
    return x, 3 * torch.rand(length, width // 2, generator=generator)


EXERCISES = (
    Exercise(
        id="ch03.ex1",
        title="One full turn",
        minutes=5,
        level="easy",
        solution=wavelength,
        cases=((0, 64, 150_000.0), (31, 64, 150_000.0)),
        hidden=((18, 64, 150_000.0), (31, 64, 10_000.0), (3, 16, 150_000.0), (1, 4, 100.0)),
        hints=(
            "A full turn is 2 * pi radians.",
            "Angle per token times tokens is 2 * pi. Solve for the tokens.",
        ),
        wrong=(_in_radians, _by_pairs),
    ),
    Exercise(
        id="ch03.ex2",
        title="A score from the distance alone",
        minutes=15,
        level="implement",
        solution=score_at,
        cases=(
            (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1, 100.0),
            (*_vectors(4), 0, 100.0),
        ),
        hidden=(
            (*_vectors(8), 5, 10_000.0),
            (*_vectors(16), 127, 150_000.0),
            (*_vectors(64), 1_000, 150_000.0),
        ),
        hints=(
            "Put the key at position 0 and the query at position `distance`: who turns, how far?",
            "Turn q by distance * theta ** (-2i / hd) in pair i, then take the dot product with k.",
        ),
        wrong=(_key_turned, _neighbors),
        tolerance=1e-3,
    ),
    Exercise(
        id="ch03.ex3",
        title="The port that passes every law",
        minutes=10,
        level="find the bug",
        solution=rotate,
        stub=broken_rotate,
        cases=(_rows(3, 2), _rows(2, 4)),
        hidden=(_rows(5, 8), _rows(1, 64), _rows(7, 6)),
        hints=(
            "The first case passes because it has one pair only. Which numbers make up pair i?",
            "`x[..., 0::2]` takes numbers 0, 2, 4; the first numbers of the pairs are 0, 1, 2.",
        ),
        wrong=(_out_of_order, _backwards),
        tolerance=1e-5,
    ),
)
