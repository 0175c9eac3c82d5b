"""Exercises of chapter 06, mixture of experts: held and used, even load, and the wrong softmax."""

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def held_and_used(d_model: int, d_ff: int, n_experts: int, n_active: int) -> tuple[int, int]:
    """Return how many weights one layer of gated experts holds, and how many a token uses.

    An expert has three matrices of d_model x d_ff. The router has one row of d_model for each
    expert. There are no biases.
    """
    expert, router = 3 * d_model * d_ff, n_experts * d_model
    return n_experts * expert + router, n_active * expert + router


def _router_cut(d_model: int, d_ff: int, n_experts: int, n_active: int) -> tuple[int, int]:
    per_expert = 3 * d_model * d_ff + d_model
    return n_experts * per_expert, n_active * per_expert


def _two_matrices(d_model: int, d_ff: int, n_experts: int, n_active: int) -> tuple[int, int]:
    expert, router = 2 * d_model * d_ff, n_experts * d_model
    return n_experts * expert + router, n_active * expert + router


def balance(logits: Tensor, n_active: int) -> float:
    """Return the balance loss of one layer from its router logits [tokens, experts].

    It is E times the sum over the E experts of share times probability. The share is the part of
    all choices that fell on the expert, each token choosing its n_active largest logits. The
    probability is the mean over the tokens of a softmax over all E experts.
    """
    n_experts = logits.shape[-1]
    chosen = logits.topk(n_active, dim=-1).indices.flatten()
    share = chosen.bincount(minlength=n_experts) / len(chosen)
    probability = logits.softmax(-1).mean(0)
    return float(n_experts * (share * probability).sum())


def _not_per_choice(logits: Tensor, n_active: int) -> float:
    return n_active * balance(logits, n_active)


def _of_the_mean(logits: Tensor, n_active: int) -> float:
    chosen = logits.topk(n_active, dim=-1).indices.flatten()
    share = chosen.bincount(minlength=logits.shape[-1]) / len(chosen)
    return float(logits.shape[-1] * (share * logits.mean(0).softmax(-1)).sum())


def route(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    """Return the weights and the ids [tokens, n_active] of each token's experts, largest first.

    logits is [tokens, experts]. The weights of a token add up to 1.
    """
    chosen, ids = logits.topk(n_active, dim=-1)
    return chosen.softmax(-1), ids


def broken_route(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    """Return the weights and the ids [tokens, n_active] of each token's experts, largest first.

    logits is [tokens, experts]. The weights of a token add up to 1.
    """
    weights, ids = logits.softmax(-1).topk(n_active, dim=-1)
    return weights, ids


def _twice(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    weights, ids = broken_route(logits, n_active)
    return weights.softmax(-1), ids


def _shared_over_tokens(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    weights, ids = broken_route(logits, n_active)
    return weights / weights.sum() * len(weights), ids


def _logits(n_tokens: int, n_experts: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * n_tokens + n_experts)
    return 2 * torch.randn(n_tokens, n_experts, generator=generator)


EXERCISES = (
    Exercise(
        id="ch06.ex1",
        title="Held and used",
        minutes=5,
        level="easy",
        solution=held_and_used,
        cases=((2_880, 2_880, 32, 4), (2_048, 768, 128, 8)),
        hidden=((4_096, 14_336, 8, 2), (64, 64, 8, 4), (2_880, 2_880, 128, 4)),
        hints=(
            "One expert has 3 * d_model * d_ff weights. How many of them are held, how many used?",
            "A token must ask the whole router, or it cannot know which experts are the best.",
        ),
        wrong=(_router_cut, _two_matrices),
    ),
    Exercise(
        id="ch06.ex2",
        title="How even is the load?",
        minutes=15,
        level="implement",
        solution=balance,
        cases=((10 * torch.eye(4), 1), (_logits(3, 4), 2)),
        hidden=((_logits(50, 8), 2), (_logits(20, 32), 4), (_logits(7, 5), 5)),
        hints=(
            "`bincount` with `minlength` counts the choices of each expert, zeros too.",
            "Divide the counts by tokens times n_active; take the softmax before the mean.",
        ),
        wrong=(_not_per_choice, _of_the_mean),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch06.ex3",
        title="The softmax that came too early",
        minutes=10,
        level="find the bug",
        solution=route,
        stub=broken_route,
        cases=((_logits(2, 3), 3), (_logits(3, 6), 2)),
        hidden=((_logits(5, 32), 4), (_logits(4, 8), 1), (_logits(6, 16), 8)),
        hints=(
            "The first case passes because every expert is chosen. What do the weights add up to?",
            "Choose first, then take a softmax over the chosen; or divide by the chosen's sum.",
        ),
        wrong=(_twice, _shared_over_tokens),
        tolerance=1e-5,
    ),
)
