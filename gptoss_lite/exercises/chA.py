"""Exercises of appendix A, the bug museum: a long enough prompt, one pass, a fair comparison."""

import torch
from torch import Tensor

from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.model import Transformer
from gptoss_lite.mutants import missed
from gptoss_lite.mutants.hostile import GPT_OSS
from gptoss_lite.presets import PRESETS


def shortest_prompt(config: ModelConfig) -> int:
    """Return the shortest prompt that shows a window one key too wide, in one forward pass.

    0 if no layer of the model slides: then no prompt can show it.
    """
    windows = [config.window(layer) for layer in range(config.n_layers)]
    slides = [window for window in windows if window is not None]
    return min(slides) + 1 if slides else 0


def _as_long_as_the_window(config: ModelConfig) -> int:
    return config.sliding_window or 0


def _two_windows(config: ModelConfig) -> int:
    return 2 * (config.sliding_window or 0)


def _always_one_more(config: ModelConfig) -> int:
    return (config.sliding_window or 0) + 1


def one_pass(
    shapes: dict[str, tuple[int, ...]], config: ModelConfig, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return weights and tokens with which one forward pass sees every mistake of the list.

    `shapes` has the shape of each parameter under its name: "embed.weight", "norm.weight",
    "blocks.0.attn.k.bias", "blocks.0.attn.sinks" ... Give a tensor for each, and token ids [B, T].
    Many answers are right. A wrong one is answered with the names of the mistakes it misses.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1 or name.endswith("bias"):
            weights[name] = 1 + 0.3 * noise if "norm" in name else noise
        else:
            weights[name] = noise / shape[-1] ** 0.5
    weights["embed.weight"] *= 0.1  # small, or nobody notices the norm's eps
    length = config.sliding_window + 1 if config.sliding_window else 2  # just long enough
    return weights, torch.randint(config.vocab_size, (1, length), generator=generator)


def _biases_zero(
    shapes: dict[str, tuple[int, ...]], config: ModelConfig, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    weights, ids = one_pass(shapes, config, seed)
    return {n: w * 0 if n.endswith("bias") else w for n, w in weights.items()}, ids


def _short(
    shapes: dict[str, tuple[int, ...]], config: ModelConfig, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    weights, ids = one_pass(shapes, config, seed)
    return weights, ids[:, : config.sliding_window]


def _large_embedding(
    shapes: dict[str, tuple[int, ...]], config: ModelConfig, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    weights, ids = one_pass(shapes, config, seed)
    return {n: 10 * w if n == "embed.weight" else w for n, w in weights.items()}, ids


def _as_drawn(
    shapes: dict[str, tuple[int, ...]], config: ModelConfig, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    return Transformer(config).state_dict(), one_pass(shapes, config, seed)[1]


def _missed(
    answer: object, shapes: dict[str, tuple[int, ...]], config: ModelConfig, seed: int
) -> str:
    """Name the mistakes that an answer misses, or say what keeps it from being run."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], dict):
        return "no pair of a dict of weights and a tensor of tokens"
    weights, ids = answer
    wrong = [n for n in shapes if tuple(getattr(weights.get(n), "shape", ())) != shapes[n]]
    if wrong:
        return f"no tensor of shape {list(shapes[wrong[0]])} for {wrong[0]}"
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or not len(ids):
        return "tokens that are no [B, T] tensor of integers"
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        return f"token ids beyond 0 to {config.vocab_size - 1}"
    names = missed(weights, ids)
    return f"misses {len(names)}: {', '.join(names)}" if names else "misses none"


def agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Say whether two tensors of logits agree everywhere, to an absolute tolerance.

    Tensors of different shapes do not agree, and neither do logits of which one is NaN.
    """
    if ours.shape != theirs.shape:
        return False
    return bool(((ours - theirs).abs() <= tolerance).all())


def broken_agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Say whether two tensors of logits agree everywhere, to an absolute tolerance.

    Tensors of different shapes do not agree, and neither do logits of which one is NaN.
    """
    difference = ours - theirs
    return not bool((difference > tolerance).any())


def _nan_passes(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    if ours.shape != theirs.shape:
        return False
    return not bool(((ours - theirs).abs() > tolerance).any())


def _shapes_may_differ(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool(((ours - theirs).abs() <= tolerance).all())


def _on_average(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().mean() <= tolerance)


_SHAPES = {name: tuple(w.shape) for name, w in Transformer(GPT_OSS).state_dict().items()}
_LOGITS = torch.linspace(-2, 2, 12).view(1, 3, 4)
_ONE_OFF = _LOGITS + 0.1 * torch.nn.functional.one_hot(torch.tensor([[0, 2, 1]]), 4)

EXERCISES = (
    Exercise(
        id="chA.ex1",
        title="How long is long enough",
        minutes=5,
        level="easy",
        solution=shortest_prompt,
        cases=((PRESETS["gpt-oss-20b"],), (PRESETS["gpt2"],)),
        hidden=((GPT_OSS,), (GPT_OSS.but(sliding_window=40),), (PRESETS["qwen3-30b-a3b"],)),
        hints=(
            "Number the tokens from 0. Which query is the first to have more keys than it may see?",
            "Query number `window` is the first; the prompt that holds it has window + 1 tokens.",
        ),
        wrong=(_as_long_as_the_window, _two_windows, _always_one_more),
    ),
    Exercise(
        id="chA.ex2",
        title="One pass that sees them all",
        minutes=20,
        level="implement",
        solution=one_pass,
        cases=((_SHAPES, GPT_OSS, 0),),
        hidden=((_SHAPES, GPT_OSS, 1), (_SHAPES, GPT_OSS, 2)),
        hints=(
            "No parameter may sit where it does nothing: a bias at 0, a sink at 0, a scale at 1.",
            "Take a prompt longer than the window, and matrices with entries near 1 / sqrt(width).",
            "What is left is eps. It counts where the residual stream is small: make the embedding "
            "small.",
        ),
        wrong=(_biases_zero, _short, _large_embedding, _as_drawn),
        outcome=_missed,
    ),
    Exercise(
        id="chA.ex3",
        title="The test that nearly always passes",
        minutes=10,
        level="find the bug",
        solution=agree,
        stub=broken_agree,
        cases=((_LOGITS, _LOGITS, 1e-5), (_ONE_OFF, _LOGITS, 1e-5)),
        hidden=(
            (_LOGITS, _ONE_OFF, 1e-5),
            (_LOGITS, _LOGITS * torch.nan, 1e-5),
            (_LOGITS * torch.nan, _LOGITS, 1e-5),
            (_LOGITS[:, :1] * 0, _LOGITS * 0, 1e-5),
            (_ONE_OFF, _LOGITS, 0.05),
            (_LOGITS + 1e-4, _LOGITS, 1e-3),
        ),
        hints=(
            "There are three faults. The first: what if our logits are too small?",
            "NaN is not greater than anything. Ask what agrees, not what differs.",
            "A tensor of one row minus a tensor of three rows is no error in torch.",
        ),
        wrong=(_nan_passes, _shapes_may_differ, _on_average),
    ),
)
