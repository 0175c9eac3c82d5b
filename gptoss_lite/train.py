"""A small trainer for the book's experiments: minutes on one core, the same losses every time.

Two arms that are given the same seed see the same batches in the same order, so that their
difference can be read seed by seed. Losses are in nats per byte.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from gptoss_lite import corpus
from gptoss_lite.config import ModelConfig
from gptoss_lite.model import Transformer

EVAL_TOKENS = 8_192  # tokens per forward pass when nothing is learned


@dataclass(frozen=True)
class Recipe:
    """How to train: every number of a run that is not the model's."""

    steps: int = 400
    seed: int = 0
    batch_size: int = 32
    length: int = 64  # tokens a window
    peak_lr: float = 3e-3
    warmup: float = 0.05  # share of the steps in which the rate rises
    floor: float = 0.1  # share of the peak at which the cosine ends
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0
    balance: float = 0.0  # how much uneven expert load costs
    n_blocks: int | None = None  # learn from this many KiB only, again and again
    validate_every: int | None = None  # None: at the end only
    n_validation: int = corpus.N_VALIDATION  # held-out blocks to measure on

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: warm-up, then half a cosine down to the floor."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.peak_lr * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.peak_lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Result:
    """A trained model and how it got there."""

    model: Transformer
    recipe: Recipe
    losses: list[float]  # of the training batches, dropout and all
    validation: dict[int, float] = field(default_factory=dict)  # after so many steps

    @property
    def loss(self) -> float:
        """The validation loss at the end."""
        return self.validation[self.recipe.steps]

    @property
    def best(self) -> float:
        """The lowest validation loss of all checkpoints: what early stopping would keep."""
        return min(self.validation.values())

    @property
    def passes(self) -> float:
        """How often each training window was seen, on average."""
        n_blocks = len(learned_blocks(self.recipe))
        seen = self.recipe.steps * self.recipe.batch_size * self.recipe.length
        return seen / (n_blocks * corpus.BLOCK_BYTES)


def build(config: ModelConfig, seed: int) -> Transformer:
    """Make a model whose random weights depend on the seed alone."""
    with _random(seed):
        return Transformer(config)


def train(
    config_or_model: ModelConfig | Transformer, steps: int = 400, seed: int = 0, **settings: Any
) -> Result:
    """Train on the plays and measure the loss on bytes that were held out.

    Runs on one thread: at this size a second one only waits for the first. Neither the number of
    threads nor torch's global random numbers are different afterwards.

    Args:
        config_or_model: what to build from the seed, or a model to go on with (changed in place).
        steps: optimizer steps of 32 windows of 64 bytes; about 530 of them are one pass.
        seed: of weights, dropout and data order.
        settings: other fields of `Recipe`, such as `peak_lr`, `n_blocks` or `validate_every`.

    Example:
        >>> from gptoss_lite.ladder import LADDER
        >>> tiny = LADDER[2].config.but(n_layers=1, d_model=8, head_dim=2, d_ff=8)
        >>> train(tiny, steps=1, batch_size=4, n_validation=1).losses[0]  # ln 257: a guess
        5.5
    """
    recipe = Recipe(steps=steps, seed=seed, **settings)
    is_config = isinstance(config_or_model, ModelConfig)
    model = build(config_or_model, seed) if is_config else config_or_model
    data = corpus.batches(learned_blocks(recipe), recipe.length, recipe.batch_size, seed)
    held_out = corpus.load().validation[: recipe.n_validation]
    result = Result(model, recipe, [])
    with one_thread(), _random(seed), _router_logits(model) as routers:
        optimizer = _optimizer(model, recipe)
        for step in tqdm(range(steps), disable=not sys.stderr.isatty(), leave=False):
            result.losses.append(_step(model, optimizer, routers, next(data), recipe, step))
            every = recipe.validate_every
            if every and (step + 1) % every == 0:
                result.validation[step + 1] = evaluate(model, recipe.length, held_out)
    if steps not in result.validation:
        result.validation[steps] = evaluate(model, recipe.length, held_out)
    return result


def evaluate(
    model: Transformer, length: int = 64, blocks: Int[Tensor, "blocks row"] | None = None
) -> float:
    """Return the mean loss over fixed windows, without dropout.

    Every byte of the blocks is predicted once whatever the length, so losses at two lengths
    differ by the context alone.

    Args:
        model: any model with the corpus's vocabulary.
        length: tokens a window.
        blocks: rows of `corpus.load()`; the validation half if None.
    """
    blocks = corpus.load().validation if blocks is None else blocks
    return evaluate_by_position(model, length, blocks).mean().item()


@torch.no_grad()
def evaluate_by_position(
    model: Transformer, length: int, blocks: Int[Tensor, "blocks row"]
) -> Float[Tensor, " T"]:
    """Return the mean loss at each position of the window."""
    rows = corpus.windows(blocks, length)
    was_training = model.training
    model.eval()
    with one_thread():
        chunks = rows.split(max(1, EVAL_TOKENS // length))
        losses = torch.cat([_losses(model, chunk) for chunk in chunks])
    model.train(was_training)
    return losses.double().mean(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- parts ---------------------------------------------------------------------------------------


def learned_blocks(recipe: Recipe) -> Int[Tensor, "blocks row"]:
    """Return the rows of the corpus that a recipe learns from."""
    return corpus.load().train[: recipe.n_blocks]


@contextmanager
def _random(seed: int) -> Iterator[None]:
    """Seed the random numbers of weights and dropout, which take no generator; restore them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW; biases, norms and sinks are not decayed."""
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in learned if p.ndim > 1 and not name.endswith("bias")]
    vectors = [p for name, p in learned if p.ndim < 2 or name.endswith("bias")]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95), fused=True)


def _step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    routers: list[Tensor],
    batch: Tensor,
    recipe: Recipe,
    step: int,
) -> float:
    """Take one optimizer step and return the batch's loss, the balance loss left out."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    model.train()
    routers.clear()
    loss = _losses(model, batch).mean()
    extra = recipe.balance * balance_loss(routers, model) if recipe.balance else 0.0
    (loss + extra).backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _losses(model: nn.Module, rows: Tensor) -> Float[Tensor, "B T"]:
    logits, targets = model(rows[:, :-1]), rows[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


@contextmanager
def _router_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the routers of all layers say, with gradients; none in a dense model."""
    logits: list[Tensor] = []
    routers = [m for name, m in model.named_modules() if name.endswith(".router")]
    hooks = [r.register_forward_hook(lambda _m, _i, out: logits.append(out)) for r in routers]
    try:
        yield logits
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(logits: list[Tensor], model: Transformer) -> Tensor:
    """Return E * sum(share of tokens * mean probability), 1 when the load is even.

    Source:
        Fedus et al. 2022, section 2.2.
    """
    assert model.config.moe is not None
    losses = []
    for layer in logits:
        chosen = layer.topk(model.config.moe.n_active, -1).indices.flatten()
        share = chosen.bincount(minlength=layer.shape[-1]) / len(chosen)
        losses.append(layer.shape[-1] * (share * layer.softmax(-1).mean(0)).sum())
    return torch.stack(losses).mean()
