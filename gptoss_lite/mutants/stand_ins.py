"""Wrong versions of the package's functions, each with at most one mistake.

With default arguments each computes what the right one does; a test holds them to it. Every
function below returns a `Plant`: what to change so that the mistake is there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss_lite import attention, ffn, model, moe, mxfp4, norm, positions
from gptoss_lite.cache import SlidingCache
from gptoss_lite.config import ModelConfig

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Plant:
    """What a mistake consists of: config fields, functions in place of others, spoiled weights."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    swaps: tuple[tuple[Any, str, Any], ...] = ()  # (owner, name, wrong version)
    load: Callable[[Weights], Weights] | None = None  # what happens to the weights on the way in


def change(**fields: Any) -> Plant:
    """Plant another config."""
    return Plant(fields=fields)


def swap(owner: Any, name: str, wrong: Any) -> Plant:
    """Plant another function in place of one of the package."""
    return Plant(swaps=((owner, name, wrong),))


def load(wrong: Callable[[Weights], Weights]) -> Plant:
    """Plant a mistake of the loader: the right model gets wrong weights."""
    return Plant(load=wrong)


# --- positions -----------------------------------------------------------------------------------


def rotate(*, interleaved: bool = False, sign: float = 1.0, first: float = 1.0) -> Plant:
    """Plant a rotation with one mistake."""

    def wrong(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        sin = sin * sign
        if interleaved:
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin * first), -1)

    return swap(attention, "rotate", wrong)


def frequencies(
    *, factor_power: float = 1.0, inverted_ramp: bool = False, slow_all: bool = False
) -> Plant:
    """Plant YaRN's frequencies with one mistake."""

    def wrong(config: ModelConfig) -> tuple[Tensor, float]:
        yarn, width = config.yarn, config.head_dim
        assert yarn is not None
        plain = 1 / config.rope_theta ** (2 * torch.arange(width // 2).float() / width)
        ramp = positions.yarn_ramp(width, config.rope_theta, yarn)
        ramp = 1 - ramp if inverted_ramp else torch.ones_like(ramp) if slow_all else ramp
        magnitude = (0.1 * math.log(yarn.factor) + 1) ** factor_power
        return plain / yarn.factor * ramp + plain * (1 - ramp), magnitude

    return swap(positions, "frequencies", wrong)


def positions_restart() -> Plant:
    """Plant positions that count from 0 in every call instead of from the cache's length."""
    right = positions.Rotation.forward

    def wrong(self: positions.Rotation, where: Tensor) -> tuple[Tensor, Tensor]:
        return right(self, where - where[0])

    return swap(positions.Rotation, "forward", wrong)


def learned_positions(*, shift: int = 0) -> Plant:
    """Plant a table of positions whose rows are shifted."""

    def wrong(self: positions.LearnedPositions, where: Tensor) -> Tensor:
        return self.weight[(where + shift) % len(self.weight)]

    return swap(positions.LearnedPositions, "forward", wrong)


# --- attention -----------------------------------------------------------------------------------


def attend(
    *,
    heads: str = "grouped",
    renormalize: bool = False,
    sink_scale: float = 1.0,
    sink_offset: float = 0.0,
    sink_on_first_token: bool = False,
    scale: Callable[[int], float] = lambda width: 1 / math.sqrt(width),
    causal: bool = True,
    chunk_from_start: bool = False,
) -> Plant:
    """Plant an attention with one mistake."""

    def wrong(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float
    ) -> Tensor:
        n_heads, n_kv_heads = q.shape[1], k.shape[1]
        head = torch.arange(n_heads)
        choices = {
            "grouped": head // (n_heads // n_kv_heads),
            "tiled": head % n_kv_heads,
            "divided by K": head // n_kv_heads,
        }
        k, v = k[:, choices[heads]], v[:, choices[heads]]
        scores = q @ k.mT * scale(q.shape[-1])
        n_queries, n_keys = scores.shape[-2:]
        first = 0 if chunk_from_start and n_queries > 1 else n_keys - n_queries
        distance = torch.arange(first, first + n_queries)[:, None] - torch.arange(n_keys)
        seen = distance >= 0 if causal else distance >= -n_keys
        if window is not None:
            seen = seen & (distance < window)
        if sinks is not None and sink_on_first_token:
            scores[..., 0] += sinks[:, None]
            sinks = None
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is None:
            return scores.softmax(-1) @ v
        column = (sinks * sink_scale + sink_offset).view(1, -1, 1, 1)
        column = column.expand(*scores.shape[:3], 1)
        probs = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
        return (probs / probs.sum(-1, keepdim=True) if renormalize else probs) @ v

    return swap(attention, "attend", wrong)


def attention_forward(
    *,
    norm_after_rotation: bool = False,
    norm_over_all_heads: bool = False,
    rotate_values: bool = False,
    no_key_bias: bool = False,
    rotate_queries: bool = True,
) -> Plant:
    """Plant an Attention.forward with one mistake."""

    def wrong(
        self: attention.Attention, x: Tensor, cos: Tensor, sin: Tensor, layer_cache: Any = None
    ) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        def head_norm(part: Any, y: Tensor) -> Tensor:
            if norm_over_all_heads:
                n_heads = y.shape[1]
                y = y.transpose(1, 2).flatten(2)
                y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + part.eps)
                return heads(y * part.weight.repeat(n_heads))
            return part(y)

        turn = attention.rotate
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        if no_key_bias:
            k = heads(F.linear(x, self.k.weight))
        if not norm_after_rotation:
            q, k = head_norm(self.q_norm, q), head_norm(self.k_norm, k)
        q, k = turn(q, cos, sin) if rotate_queries else q, turn(k, cos, sin)
        v = turn(v, cos, sin) if rotate_values else v
        if norm_after_rotation:
            q, k = head_norm(self.q_norm, q), head_norm(self.k_norm, k)
        if layer_cache is not None:
            k, v = layer_cache.append(k, v)
        mixed = attention.attend(q, k, v, self.sinks, self.window, 0.0)
        return self.o(mixed.transpose(1, 2).flatten(2))

    return swap(attention.Attention, "forward", wrong)


def sliding_cache_keeps(n_fewer: int) -> Plant:
    """Plant a cache that forgets keys too early."""

    def wrong(self: SlidingCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self._keys is not None and self._values is not None:
            kept = self.window - 1 - n_fewer
            start = max(0, self._keys.shape[2] - kept)
            k = torch.cat((self._keys[:, :, start:], k), dim=2)
            v = torch.cat((self._values[:, :, start:], v), dim=2)
        self._keys, self._values = k[:, :, -self.window :], v[:, :, -self.window :]
        return k, v

    return swap(SlidingCache, "append", wrong)


# --- MLP and experts -----------------------------------------------------------------------------


def clamped_swiglu(
    *,
    plus_one: bool = True,
    interleaved: bool = False,
    swapped: bool = False,
    clamp_gate: bool = True,
    clamp_up: str = "both",
    activation_of_clamped: bool = True,
) -> Plant:
    """Plant a clamped SwiGLU with one mistake."""

    def wrong(x: Tensor, alpha: float, limit: float) -> Tensor:
        gate, up = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
        gate, up = (up, gate) if swapped else (gate, up)
        unclamped = gate
        gate = gate.clamp(max=limit) if clamp_gate else gate
        up = up.clamp(-limit if clamp_up == "both" else -torch.inf, limit) if clamp_up else up
        inner = gate if activation_of_clamped else unclamped
        return gate * torch.sigmoid(alpha * inner) * (up + plus_one)

    return swap(ffn, "clamped_swiglu", wrong)


def route(
    *,
    how: str = "softmax of the chosen",
    drop: int = 0,
    order: Callable[[Tensor], Tensor] = lambda x: x,
) -> Plant:
    """Plant a router with one mistake."""

    def wrong(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
        ids = order(logits).topk(n_active - drop, dim=-1).indices
        chosen = logits.gather(1, ids)
        if how == "softmax of all":
            return logits.softmax(-1).gather(1, ids), ids
        if how == "sigmoid":
            return chosen.sigmoid(), ids
        if how == "equal":
            return torch.full_like(chosen, 1 / chosen.shape[1]), ids
        return chosen.softmax(-1), ids

    return swap(moe, "route", wrong)


def expert_bias_not_weighted() -> Plant:
    """Plant experts whose output biases count in full, whatever the router says."""
    right = moe.apply_experts

    def wrong(x: Tensor, weights: Tensor, ids: Tensor, up: Any, down: Any, act: Any) -> Tensor:
        mixed = right(x, weights, ids, up, down, act)
        return mixed + ((1 - weights)[..., None] * down.bias[ids]).sum(1)

    return swap(moe, "apply_experts", wrong)


# --- MXFP4 ---------------------------------------------------------------------------------------


def byte_table(
    *, swap_nibbles: bool = False, sign: float = 1.0, table: Sequence[float] | None = None
) -> Plant:
    """Plant another meaning of MXFP4 code bytes."""

    def wrong(dtype: torch.dtype, device: torch.device) -> Tensor:
        codes = torch.arange(256)
        low, high = codes & 15, codes >> 4
        pairs = torch.stack((high, low) if swap_nibbles else (low, high), dim=1)
        values = mxfp4.VALUES.clone() if table is None else torch.tensor(table)
        values[8:] *= sign
        return values.to(dtype)[pairs]

    return swap(mxfp4, "byte_table", wrong)


def scale_table(*, bias: int = 127) -> Plant:
    """Plant another meaning of MXFP4 scale bytes."""

    def wrong(dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor([2.0 ** (byte - bias) for byte in range(256)], dtype=dtype)

    return swap(mxfp4, "scale_table", wrong)


def dequantize(*, halves: bool = False) -> Plant:
    """Plant a decoder that may take each block's low halves first and its high halves last."""
    right = mxfp4.dequantize

    def wrong(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        weights = right(blocks, scales, dtype)
        if halves:
            pairs = weights.unflatten(-1, (-1, mxfp4.BLOCK // 2, 2))
            weights = pairs.transpose(-1, -2).flatten(-3)
        return weights

    return swap(mxfp4, "dequantize", wrong)


# --- norms and block -----------------------------------------------------------------------------


def rms_norm(
    *,
    eps_outside: bool = False,
    one_plus: bool = False,
    centred: bool = False,
    no_scale: bool = False,
) -> Plant:
    """Plant an RMSNorm with one mistake."""

    def wrong(self: norm.RMSNorm, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if centred else x
        square = x.pow(2).mean(-1, keepdim=True)
        root = square.sqrt() + self.eps if eps_outside else (square + self.eps).sqrt()
        weight = torch.ones(()) if no_scale else self.weight + one_plus
        return x / root * weight

    return swap(norm.RMSNorm, "forward", wrong)


def layer_norm(
    *, eps_outside: bool = False, unbiased: bool = False, no_bias: bool = False
) -> Plant:
    """Plant a LayerNorm with one mistake."""

    def wrong(self: nn.LayerNorm, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        variance = x.var(-1, correction=1 if unbiased else 0, keepdim=True)
        root = variance.sqrt() + self.eps if eps_outside else (variance + self.eps).sqrt()
        return x / root * self.weight + (0 if no_bias else self.bias)

    return swap(nn.LayerNorm, "forward", wrong)


def block_forward(*, parallel: bool = False, post_norm: bool = False) -> Plant:
    """Plant a Block.forward with one mistake."""

    def wrong(
        self: model.Block, x: Tensor, cos: Tensor, sin: Tensor, layer_cache: Any = None
    ) -> Tensor:
        if post_norm:
            x = self.attn_norm(x + self.attn(x, cos, sin, layer_cache))
            return self.ffn_norm(x + self.ffn(x))
        read = self.attn(self.attn_norm(x), cos, sin, layer_cache)
        return x + read + self.ffn(self.ffn_norm(x if parallel else x + read))

    return swap(model.Block, "forward", wrong)


# --- loading -------------------------------------------------------------------------------------


def transposed(ending: str) -> Plant:
    """Plant a loader that turns the matrices whose names end so; they must be square."""

    def wrong(weights: Weights) -> Weights:
        return {n: w.mT if n.endswith(ending) else w for n, w in weights.items()}

    return load(wrong)


def layers_as_text() -> Plant:
    """Plant a loader that takes the layers in the order of their names: 0, 1, 10, 2, 3 ..."""

    def wrong(weights: Weights) -> Weights:
        numbers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        mixed = dict(zip(sorted(numbers, key=int), sorted(numbers), strict=True))

        def source(name: str) -> str:
            head, *rest = name.split(".")
            return ".".join([head, mixed[rest[0]], *rest[1:]]) if head == "blocks" else name

        return {name: weights[source(name)] for name in weights}

    return load(wrong)
