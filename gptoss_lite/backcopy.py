"""A made-up language in which a head is wanted only now and then, and a model with that one head.

Most tokens follow from the one before them by a fixed table. After a trigger the next token is
the one *before* the trigger, and only attention can fetch it. So at a trigger the head has work,
and at every other token it has none: where does its attention go then?
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gptoss_lite.cache import KVCache
from gptoss_lite.config import ModelConfig
from gptoss_lite.ladder import LADDER
from gptoss_lite.model import Transformer
from gptoss_lite.trace import trace
from gptoss_lite.train import Recipe, build, one_thread

N_TRIGGERS = 3  # ids 0, 1 and 2
BOS = 32  # ids below it are the language's
LENGTH = 32
FROM = 4  # positions before it have hardly anything to choose from
RECIPE = Recipe(steps=400, length=LENGTH, peak_lr=6e-3, weight_decay=0.0)

# The ladder's rung "RoPE" with one layer, one head and no biases.
CONFIG: ModelConfig = LADDER[2].config.but(
    vocab_size=BOS + 1,
    d_model=48,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    head_dim=48,
    d_ff=192,
    context=LENGTH,
    attn_bias=False,
    ffn_bias=False,
)


def bigrams() -> Float[Tensor, "now next"]:
    """Return the table: for each token of the language, how likely each next one is."""
    logits = 1.5 * torch.randn(BOS, BOS, generator=torch.Generator().manual_seed(0))
    return logits.softmax(-1)


def rows(n_rows: int, seed: int, bos: bool = True) -> Int[Tensor, "rows row"]:
    """Draw sequences of the language: `LENGTH` inputs and the token after them.

    Args:
        n_rows: how many.
        seed: of the sequences; the table is always the same.
        bos: put a token before each that is never anywhere else.

    Example:
        >>> rows(2, seed=0).shape, rows(2, seed=0)[:, 0].tolist()
        (torch.Size([2, 33]), [32, 32])
    """
    generator = torch.Generator().manual_seed(seed)
    steps = bigrams().cumsum(-1)
    start = torch.randint(N_TRIGGERS, BOS, (n_rows,), generator=generator)  # no trigger
    text = [start, start]  # the doubled start only feeds the loop
    while len(text) < LENGTH + 2:
        before, now = text[-2:]
        luck = torch.rand(n_rows, 1, generator=generator)
        drawn = (steps[now] < luck).sum(-1).clamp(max=BOS - 1)
        text.append(torch.where(now < N_TRIGGERS, before, drawn))
    first = [torch.full((n_rows,), BOS)] if bos else []
    return torch.stack((first + text[1:])[: LENGTH + 1], dim=1)


@dataclass(frozen=True)
class Trained:
    """A model of this language, and what its head did on the way."""

    model: Transformer
    first_mass: dict[int, float] = field(default_factory=dict)  # by step


def train(
    config: ModelConfig,
    learned: Int[Tensor, "rows row"],
    seed: int = 0,
    *,
    steps: int = RECIPE.steps,
    sink_rate: float = 1.0,
    watch: Int[Tensor, "rows row"] | None = None,
) -> Trained:
    """Train a one-head model; each row is seen once, in order.

    Args:
        config: `CONFIG`, with or without sinks.
        learned: at least 32 rows a step.
        seed: of the weights.
        steps: optimizer steps.
        sink_rate: the sink's learning rate, in multiples of everybody else's; 0 leaves it at 0,
            which is "softmax off by one".
        watch: rows on which the first token's share is measured five times.
    """
    recipe = replace(RECIPE, steps=steps)
    model, seen = build(config, seed), {}
    others = [p for name, p in model.named_parameters() if not name.endswith("sinks")]
    sinks = [p for name, p in model.named_parameters() if name.endswith("sinks")]
    groups = [{"params": others, "rate": 1.0}, {"params": sinks, "rate": sink_rate}]
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    with one_thread():
        for step, batch in zip(range(steps), learned.split(recipe.batch_size), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step) * group["rate"]
            _losses(model(batch[:, :-1]), batch).mean().backward()
            nn.utils.clip_grad_norm_(others, recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            if watch is not None and (step + 1) % max(1, steps // 5) == 0:
                seen[step + 1] = measure(model, watch)["first_mass"]
    return Trained(model.eval(), seen)


@torch.no_grad()
def measure(model: Transformer, text: Int[Tensor, "rows row"]) -> dict[str, float]:
    """Say where the head looked, at triggers and elsewhere, and what token 0 is worth to it.

    Returns:
        first_mass and first_mass_at_triggers: the share of token 0. row_sum: what all tokens get.
        loss_at_triggers and loss_elsewhere. evicted: how much loss_elsewhere rises when token 0 is
        taken out of the cache. value_ratio: the length of token 0's value, over the others'. All
        but those at triggers are means over the other positions, from the fifth on.
    """
    inputs = text[:, :-1]
    with trace(model, "probs") as t, one_thread():
        losses = _losses(model(inputs), text)
    probs = t["blocks.0.attn.probs"][:, 0]  # [B T S]
    trigger, idle = _where(inputs)
    cache = KVCache(model.config)
    cache.n_seen = 1  # the positions stay, the first key and value are gone
    without = _losses(model(inputs[:, 1:], cache), text[:, 1:])
    lengths = values(model, inputs).norm(dim=-1)
    return {
        "first_mass": probs[..., 0][idle].mean().item(),
        "first_mass_at_triggers": probs[..., 0][trigger].mean().item(),
        "row_sum": probs.sum(-1)[idle].mean().item(),
        "loss_at_triggers": losses[trigger].mean().item(),
        "loss_elsewhere": losses[idle].mean().item(),
        "evicted": (without[idle[:, 1:]].mean() - losses[idle].mean()).item(),
        "value_ratio": (lengths[:, 0].mean() / lengths[:, 1:].mean()).item(),
    }


def values(model: Transformer, inputs: Int[Tensor, "rows T"]) -> Float[Tensor, "rows T hd"]:
    """Return the value that each token offers to the head."""
    block = model.blocks[0]
    return block.attn.v(block.attn_norm(model.embed(inputs)))


def _where(inputs: Tensor) -> tuple[Bool[Tensor, "rows T"], Bool[Tensor, "rows T"]]:
    late = torch.arange(inputs.shape[1]) >= FROM
    return (inputs < N_TRIGGERS) & late, (inputs >= N_TRIGGERS) & late


def _losses(logits: Tensor, text: Tensor) -> Float[Tensor, "rows T"]:
    targets = text[:, 1:]
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view_as(targets)
