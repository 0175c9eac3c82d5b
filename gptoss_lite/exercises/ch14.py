"""Exercises of chapter 14, real weights: which files a layer needs, and two ways into a sink."""

import torch
from torch import Tensor

from gptoss_lite.exercises.exercise import Exercise


def files_of_layer(weight_map: dict[str, str], layer: int) -> list[str]:
    """Return the files that hold a layer's tensors, in alphabetical order, each once.

    `weight_map` is the one of model.safetensors.index.json: from the name of a tensor, such as
    "model.layers.3.self_attn.sinks", to the name of its file.
    """
    start = f"model.layers.{layer}."
    return sorted({file for name, file in weight_map.items() if name.startswith(start)})


def _without_the_dot(weight_map: dict[str, str], layer: int) -> list[str]:
    start = f"model.layers.{layer}"
    return sorted({file for name, file in weight_map.items() if name.startswith(start)})


def _once_for_each_tensor(weight_map: dict[str, str], layer: int) -> list[str]:
    start = f"model.layers.{layer}."
    return sorted(file for name, file in weight_map.items() if name.startswith(start))


def _the_first_file(weight_map: dict[str, str], layer: int) -> list[str]:
    return files_of_layer(weight_map, layer)[:1]


def sink_mass(log_sum_exp: Tensor, sinks: Tensor) -> Tensor:
    """Return the share of attention that each head gives to its sink, [H T].

    `log_sum_exp` [H T] is the logarithm of the sum of exp(score) over the keys that a query sees,
    without the sink. `sinks` [H] holds each head's sink logit. Scores can be large: exp(100) is
    more than float32 can hold.
    """
    return torch.sigmoid(sinks[:, None] - log_sum_exp)


def _overflows(log_sum_exp: Tensor, sinks: Tensor) -> Tensor:
    sink = sinks[:, None].exp()
    return sink / (sink + log_sum_exp.exp())


def _the_other_share(log_sum_exp: Tensor, sinks: Tensor) -> Tensor:
    return torch.sigmoid(log_sum_exp - sinks[:, None])


def _not_a_share(log_sum_exp: Tensor, sinks: Tensor) -> Tensor:
    return (sinks[:, None] - log_sum_exp).exp()


def attention_weights(scores: Tensor, sinks: Tensor) -> Tensor:
    """Return what each key gets, [H T S]: a softmax in which the head's sink takes part.

    `scores` is [H T S] and `sinks` [H]. No mask: every query sees every key.
    """
    n_heads, n_queries, _ = scores.shape
    column = sinks.view(n_heads, 1, 1).expand(n_heads, n_queries, 1)
    return torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]


def broken_attention_weights(scores: Tensor, sinks: Tensor) -> Tensor:
    """Return what each key gets, [H T S]: a softmax in which the head's sink takes part.

    `scores` is [H T S] and `sinks` [H]. No mask: every query sees every key.
    """
    n_heads, n_queries, _ = scores.shape
    column = sinks.view(n_heads, 1, 1).expand(n_heads, n_queries, 1)
    probs = torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]
    return probs / probs.sum(-1, keepdim=True)  # probabilities sum to 1


def _sink_on_every_score(scores: Tensor, sinks: Tensor) -> Tensor:
    return (scores + sinks.view(-1, 1, 1)).softmax(-1)


def _first_key_dropped(scores: Tensor, sinks: Tensor) -> Tensor:
    n_heads, n_queries, _ = scores.shape
    column = sinks.view(n_heads, 1, 1).expand(n_heads, n_queries, 1)
    return torch.cat((scores, column), dim=-1).softmax(-1)[..., 1:]


def _index(n_layers: int, n_files: int) -> dict[str, str]:
    """Deal the tensors of some layers out to files, in the order of their names."""
    leaves = ("input_layernorm.weight", "mlp.router.bias", "self_attn.sinks")
    names = [f"model.layers.{n}.{leaf}" for n in range(n_layers) for leaf in leaves]
    names = ["lm_head.weight", *sorted(names), "model.norm.weight"]
    return {
        name: f"model-{i * n_files // len(names):05d}-of-{n_files - 1:05d}.safetensors"
        for i, name in enumerate(names)
    }


def _drawn(*shape: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return spread * torch.randn(shape, generator=generator)


EXERCISES = (
    Exercise(
        id="ch14.ex1",
        title="Which files does a layer need",
        minutes=5,
        level="easy",
        solution=files_of_layer,
        cases=((_index(3, 3), 1), (_index(3, 3), 2)),
        hidden=((_index(12, 5), 1), (_index(12, 5), 11), (_index(12, 4), 0), (_index(2, 2), 7)),
        hints=(
            "A set keeps each file once. How does a name of layer 1 differ from one of layer 11?",
            'Look for names that start with f"model.layers.{layer}.", the last dot included.',
        ),
        wrong=(_without_the_dot, _once_for_each_tensor, _the_first_file),
    ),
    Exercise(
        id="ch14.ex2",
        title="A sink from two numbers",
        minutes=15,
        level="implement",
        solution=sink_mass,
        cases=(
            (torch.tensor([[0.0, 1.0]]), torch.tensor([0.0])),
            (_drawn(2, 3), _drawn(2)),
        ),
        hidden=(
            (_drawn(4, 5, spread=3.0), _drawn(4, spread=2.0)),
            (torch.tensor([[120.0, 95.0]]), torch.tensor([100.0])),
        ),
        hints=(
            "The share is exp(sink) over exp(sink) + exp(log-sum-exp). Divide both by exp(sink).",
            "1 / (1 + exp(lse - sink)) is a sigmoid, and torch.sigmoid does not overflow.",
        ),
        wrong=(_overflows, _the_other_share, _not_a_share),
    ),
    Exercise(
        id="ch14.ex3",
        title="Because probabilities sum to one",
        minutes=10,
        level="find the bug",
        solution=attention_weights,
        stub=broken_attention_weights,
        cases=((_drawn(1, 2, 3), torch.tensor([0.0])), (_drawn(2, 3, 4), _drawn(2))),
        hidden=((_drawn(3, 1, 5), _drawn(3, spread=3.0)), (_drawn(2, 2, 6), torch.zeros(2))),
        hints=(
            "Change a sink and look at the answer. Does it change?",
            "Dividing by the sum brings back the plain softmax. The rows shall sum to less than 1.",
        ),
        wrong=(_sink_on_every_score, _first_key_dropped),
    ),
)
