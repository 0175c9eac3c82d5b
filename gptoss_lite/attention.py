"""Attention: grouped queries, a causal or sliding mask, and a learned sink in the softmax."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gptoss_lite.cache import FullCache, SlidingCache
from gptoss_lite.config import ModelConfig
from gptoss_lite.dispatch import Op
from gptoss_lite.errors import ShapeError
from gptoss_lite.linear import Linear
from gptoss_lite.norm import NORMS
from gptoss_lite.positions import rotate
from gptoss_lite.trace import tap


def visible(
    n_queries: int, n_keys: int, window: int | None = None, device: torch.device | None = None
) -> Bool[Tensor, "T S"]:
    """Say which keys each query may read: none after it, and at most `window` keys in all.

    The newest query stands at the newest key, so one call serves a whole prompt (T == S) and a
    single cached step (T == 1).

    Args:
        n_queries: T, positions computed in this call.
        n_keys: S, cached plus new positions.
        window: number of keys a query sees, itself included; None means all.
        device: where to make the mask.

    Returns:
        True where query t may read key s.

    Raises:
        ShapeError: fewer keys than queries.

    Source:
        gpt-oss model card, section 2.2 (window 128, every other layer).

    Example:
        >>> visible(3, 3, window=2).int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    if n_keys < n_queries:
        raise ShapeError(
            f"{n_queries} queries need at least as many keys, got {n_keys}: each token reads "
            "itself. Append the new keys to the cache before attending."
        )
    queries = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    keys = torch.arange(n_keys, device=device)[None, :]
    distance = queries - keys
    return (distance >= 0) & (distance < (window or n_keys + 1))


@Op
def attend(
    q: Float[Tensor, "B H T hd"],
    k: Float[Tensor, "B K S hd"],
    v: Float[Tensor, "B K S hd"],
    sinks: Float[Tensor, " H"] | None,
    window: int | None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T hd"]:
    """Mix the values each query may see, weighted by a softmax with one extra, empty column.

    Query head h reads key/value head h // G. The sink is a learned logit per query head: it takes
    its share of the softmax and brings no value, so the weights left sum to less than 1. It is
    scaled by nothing. Scores and softmax are float32.

    Args:
        q: queries, rotated.
        k: keys, rotated; the last T of them belong to the queries.
        v: values.
        sinks: one logit per query head, or None for a plain softmax.
        window: number of keys a query sees, itself included; None means all before it.
        dropout: probability of dropping an attention weight (training GPT-2 only).

    Source:
        gpt-oss `torch/model.py` (sdpa); model card, section 2.2. GQA: Ainslie et al. 2023.
    """
    batch, n_heads, n_queries, width = q.shape
    n_kv_heads, n_keys = k.shape[1], k.shape[2]
    grouped = q.unflatten(1, (n_kv_heads, n_heads // n_kv_heads))  # [B K G T hd]
    scores = grouped @ k.unsqueeze(2).transpose(-1, -2)  # [B K G T S]
    scores = scores.flatten(1, 2).float() / math.sqrt(width)  # [B H T S]
    hidden = ~visible(n_queries, n_keys, window, q.device)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is None:
        probs = scores.softmax(-1)
    else:
        column = sinks.float().view(1, n_heads, 1, 1).expand(batch, -1, n_queries, 1)
        probs, sink_mass = torch.cat((scores, column), -1).softmax(-1).split((n_keys, 1), -1)
        tap("sink_mass", sink_mass.squeeze(-1))
    tap("probs", probs)
    probs = F.dropout(probs, dropout, training=dropout > 0).to(v.dtype)
    mixed = probs.unflatten(1, (n_kv_heads, n_heads // n_kv_heads)) @ v.unsqueeze(2)
    return mixed.flatten(1, 2)


class Attention(nn.Module):
    """Project to queries, keys and values, rotate, attend, project back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        q_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        self.q = Linear(config.d_model, q_width, bias=config.attn_bias)
        self.k = Linear(config.d_model, kv_width, bias=config.attn_bias)
        self.v = Linear(config.d_model, kv_width, bias=config.attn_bias)
        self.o = Linear(q_width, config.d_model, bias=config.attn_bias)
        head_norm = NORMS[config.norm] if config.qk_norm else lambda size, eps: nn.Identity()
        self.q_norm = head_norm(config.head_dim, config.norm_eps)
        self.k_norm = head_norm(config.head_dim, config.norm_eps)
        self.sinks = nn.Parameter(torch.zeros(config.n_heads)) if config.sinks else None
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
        cache: FullCache | SlidingCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return attention's contribution to the residual stream; a cache is extended."""
        heads = (-1, self.head_dim)
        q = self.q_norm(self.q(x).unflatten(-1, heads)).transpose(1, 2)  # [B H T hd]
        k = self.k_norm(self.k(x).unflatten(-1, heads)).transpose(1, 2)  # [B K T hd]
        v = self.v(x).unflatten(-1, heads).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, self.sinks, self.window, dropout)
        return self.o(mixed.transpose(1, 2).flatten(2))
