"""Exercises of chapter 10, sinks: a share for nobody, two halves with one sink, a scaled sink."""

import math

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def sink_for(scores: Tensor, share: float) -> float:
    """Return the sink logit that takes this share of a row's attention.

    `scores` holds the scores of one query, one for each key it sees. The share is more than 0 and
    less than 1; the keys keep the rest.
    """
    return float(scores.logsumexp(0)) + math.log(share / (1 - share))


def _against_the_largest(scores: Tensor, share: float) -> float:
    return float(scores.max()) + math.log(share / (1 - share))


def _share_of_the_keys(scores: Tensor, share: float) -> float:
    return float(scores.logsumexp(0)) + math.log(share)


def merge(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor, sinks: Tensor
) -> Tensor:
    """Join attention over two halves of the keys into attention over all of them, with sinks.

    `first` and `second`, [H, T, hd], are what a plain softmax mixes from each half. Their lse,
    [H, T], is the logarithm of each half's sum of exp(score); it can be several hundred. `sinks`,
    [H], has one logit for each head, and takes its share once.
    """
    column = sinks[:, None].expand_as(first_lse)
    shares = torch.stack((first_lse, second_lse, column)).softmax(0)[..., None]
    return shares[0] * first + shares[1] * second


def _one_sink_each(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor, sinks: Tensor
) -> Tensor:
    gates = [(lse - sinks[:, None]).sigmoid() for lse in (first_lse, second_lse)]
    shares = torch.stack((first_lse, second_lse)).softmax(0)[..., None]
    return gates[0][..., None] * shares[0] * first + gates[1][..., None] * shares[1] * second


def _no_sink(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor, sinks: Tensor
) -> Tensor:
    shares = torch.stack((first_lse, second_lse)).softmax(0)[..., None]
    return shares[0] * first + shares[1] * second


def _overflows(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor, sinks: Tensor
) -> Tensor:
    a, b, s = first_lse.exp(), second_lse.exp(), sinks.exp()[:, None]
    return (a[..., None] * first + b[..., None] * second) / (a + b + s)[..., None]


def read(q: Tensor, k: Tensor, v: Tensor, sink: float) -> Tensor:
    """Return what one head with a sink reads, [T, hd], from q, k and v of shape [T, hd].

    The scores are scaled by the root of hd and causal. The sink is a logit as it stands.
    """
    scores = q @ k.T / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    column = torch.full((len(q), 1), sink)
    return torch.cat((scores, column), dim=1).softmax(-1)[:, :-1] @ v


def broken_read(q: Tensor, k: Tensor, v: Tensor, sink: float) -> Tensor:
    """Return what one head with a sink reads, [T, hd], from q, k and v of shape [T, hd].

    The scores are scaled by the root of hd and causal. The sink is a logit as it stands.
    """
    scores = q @ k.T
    scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    column = torch.full((len(q), 1), sink)
    scores = torch.cat((scores, column), dim=1) / math.sqrt(q.shape[-1])
    return scores.softmax(-1)[:, :-1] @ v


def _renormalized(q: Tensor, k: Tensor, v: Tensor, sink: float) -> Tensor:
    return read(q, k, v, -math.inf)


def _added_to_scores(q: Tensor, k: Tensor, v: Tensor, sink: float) -> Tensor:
    scores = q @ k.T / math.sqrt(q.shape[-1]) + sink
    scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    return scores.softmax(-1) @ v


def _halves(n_heads: int, n_tokens: int, width: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Draw the two outputs, their lse and the sinks; a larger scale spreads the logits."""
    generator = torch.Generator().manual_seed(100 * n_heads + n_tokens)
    outputs = torch.randn(2, n_heads, n_tokens, width, generator=generator)
    lse = scale * torch.randn(2, n_heads, n_tokens, generator=generator)
    sinks = scale * torch.randn(n_heads, generator=generator)
    return outputs[0], lse[0], outputs[1], lse[1], sinks


def _head(n_tokens: int, width: int, sink: float) -> tuple[Tensor | float, ...]:
    generator = torch.Generator().manual_seed(100 * n_tokens + width)
    return (*torch.randn(3, n_tokens, width, generator=generator), sink)


EXERCISES = (
    Exercise(
        id="ch10.ex1",
        title="A given share for nobody",
        minutes=5,
        level="easy",
        solution=sink_for,
        cases=((torch.zeros(1), 0.5), (torch.zeros(4), 0.5), (torch.tensor([1.0, 2.0, 3.0]), 0.9)),
        hidden=((torch.tensor([-2.0, 0.5]), 0.01), (torch.linspace(-3, 3, 128), 0.25)),
        hints=(
            "The sink's share is sigmoid(sink - lse). Turn that around.",
            "lse is `scores.logsumexp(0)`; the inverse of the sigmoid is log(p / (1 - p)).",
        ),
        wrong=(_against_the_largest, _share_of_the_keys),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch10.ex2",
        title="Two halves, one sink",
        minutes=15,
        level="implement",
        solution=merge,
        cases=(_halves(1, 2, 2), _halves(3, 4, 2)),
        hidden=(_halves(2, 5, 3, 4.0), _halves(4, 3, 2, 300.0)),
        hints=(
            "There are three parties to share a row: first half, second half, nobody.",
            "Stack the two lse and the sinks, take a softmax over the three, and drop the last.",
        ),
        wrong=(_one_sink_each, _no_sink, _overflows),
        tolerance=1e-5,
    ),
    Exercise(
        id="ch10.ex3",
        title="A weaker sink than it was trained to be",
        minutes=10,
        level="find the bug",
        solution=read,
        stub=broken_read,
        cases=(_head(3, 4, 0.0), _head(4, 2, 2.0)),
        hidden=(_head(5, 3, -1.5), _head(1, 4, 3.0), _head(6, 16, 5.0)),
        hints=(
            "The first case passes because its sink is 0. What happens to the sink on its way?",
            "Divide the scores before the column joins them: the sink is scaled by nothing.",
        ),
        wrong=(_renormalized, _added_to_scores),
        tolerance=1e-5,
    ),
)
