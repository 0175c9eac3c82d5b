"""Wrong on purpose: each variant below must move the logits, or the parity tests prove nothing.

`python -m tests.test_mutations` prints every mutant's damage, and beside it what a lazy test sees:
initial weights and a prompt of six tokens, as many public tests use.

A mutant is a name, the config it is planted in, and a function that plants it: it may patch
functions of the package, and returns the config fields it changes. The weights stay the same.
To add one, add a row to MUTANTS.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss_lite import (
    KVCache,
    ModelConfig,
    MoEConfig,
    Transformer,
    YarnConfig,
    attention,
    ffn,
    model,
    moe,
    mxfp4,
    norm,
    positions,
    use_backend,
)
from gptoss_lite.cache import SlidingCache
from tests.hostile import (
    GPT2,
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    TOLERANCE,
    VISIBLE,
    hostile,
    packed,
    randomise,
    tokens,
)

pytestmark = pytest.mark.usefixtures("plain")  # what is patched here is the specification

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], dict[str, Any]]


def change(**fields: Any) -> Plant:
    """Plant another config."""
    return lambda patch: fields


def swap(owner: Any, name: str, wrong: Any) -> Plant:
    """Plant another function in place of one of the package."""

    def plant(patch: Patch) -> dict[str, Any]:
        patch.setattr(owner, name, wrong)
        return {}

    return plant


# --- wrong parts; with default arguments each equals the right one -------------------------------


def attend(
    *,
    tile_heads: bool = False,
    renormalise: bool = False,
    sink_scale: float = 1.0,
    sink_offset: float = 0.0,
    scale: Callable[[int], float] = lambda width: 1 / math.sqrt(width),
    wider: int = 0,
    causal: bool = True,
) -> Plant:
    """Plant an attention with one mistake."""

    def wrong(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float
    ) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if tile_heads:
            k, v = k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)
        else:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.mT * scale(q.shape[-1])
        n_queries, n_keys = scores.shape[-2:]
        distance = torch.arange(n_keys - n_queries, n_keys)[:, None] - torch.arange(n_keys)
        seen = distance >= 0 if causal else distance >= -n_keys
        if window is not None:
            seen = seen & (distance < window + wider)
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is None:
            return scores.softmax(-1) @ v
        column = (sinks * sink_scale + sink_offset).view(1, -1, 1, 1)
        column = column.expand(*scores.shape[:3], 1)
        probs = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
        return (probs / probs.sum(-1, keepdim=True) if renormalise else probs) @ v

    return swap(attention, "attend", wrong)


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
    def wrong(self: nn.LayerNorm, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        variance = x.var(-1, correction=1 if unbiased else 0, keepdim=True)
        root = variance.sqrt() + self.eps if eps_outside else (variance + self.eps).sqrt()
        return x / root * self.weight + (0 if no_bias else self.bias)

    return swap(nn.LayerNorm, "forward", wrong)


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
    *, how: str = "softmax of the chosen", drop: int = 0, order: Callable = lambda x: x
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


def expert_bias_not_weighted(patch: Patch) -> dict[str, Any]:
    right = moe.apply_experts

    def wrong(x: Tensor, weights: Tensor, ids: Tensor, up: Any, down: Any, act: Any) -> Tensor:
        mixed = right(x, weights, ids, up, down, act)
        return mixed + ((1 - weights)[..., None] * down.bias[ids]).sum(1)

    patch.setattr(moe, "apply_experts", wrong)
    return {}


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
    *,
    factor_power: float = 1.0,
    divide_by: Callable[[int], int] = lambda width: width,
    inverted_ramp: bool = False,
    slow_all: bool = False,
    high_limit: bool = True,
) -> Plant:
    """Plant rotation frequencies with one mistake."""

    def wrong(config: ModelConfig) -> tuple[Tensor, float]:
        yarn, width = config.yarn, divide_by(config.head_dim)
        pairs = torch.arange(config.head_dim // 2).float()
        plain = 1 / config.rope_theta ** (2 * pairs / width)
        ramp = positions.yarn_ramp(config.head_dim, config.rope_theta, yarn)
        ramp = 1 - ramp if inverted_ramp else torch.ones_like(ramp) if slow_all else ramp
        magnitude = (0.1 * math.log(yarn.factor) + 1) ** factor_power
        return plain / yarn.factor * ramp + plain * (1 - ramp), magnitude

    return swap(positions, "frequencies", wrong)


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

        def head_norm(part: nn.Module, y: Tensor) -> Tensor:
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


def byte_table(*, swap_nibbles: bool = False, sign: float = 1.0, table: Any = None) -> Plant:
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


def sliding_cache_keeps(n_fewer: int) -> Plant:
    """Plant a cache that forgets keys too early."""

    def wrong(self: SlidingCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self._keys is not None:
            kept = self.window - 1 - n_fewer
            start = max(0, self._keys.shape[2] - kept)
            k = torch.cat((self._keys[:, :, start:], k), dim=2)
            v = torch.cat((self._values[:, :, start:], v), dim=2)
        self._keys, self._values = k[:, :, -self.window :], v[:, :, -self.window :]
        return k, v

    return swap(SlidingCache, "append", wrong)


def positions_restart(patch: Patch) -> dict[str, Any]:
    """Plant positions that count from 0 in every call instead of from the cache's length."""
    right = positions.Rotation.forward

    def wrong(self: positions.Rotation, where: Tensor) -> tuple[Tensor, Tensor]:
        return right(self, where - where[0])

    patch.setattr(positions.Rotation, "forward", wrong)
    return {}


def learned_positions(*, shift: int = 0) -> Any:
    """Return LearnedPositions.forward with the table's rows shifted."""

    def wrong(self: positions.LearnedPositions, where: Tensor) -> Tensor:
        return self.weight[(where + shift) % len(self.weight)]

    return wrong


MUTANTS: dict[str, tuple[ModelConfig, Plant]] = {
    # sliding window
    "window one too wide": (GPT_OSS, change(sliding_window=8)),
    "window one too narrow": (GPT_OSS, change(sliding_window=6)),
    "no window": (GPT_OSS, change(sliding_window=None, layer_pattern="F")),
    "odd layers slide": (GPT_OSS, change(layer_pattern="FS")),
    "every layer slides": (GPT_OSS, change(layer_pattern="S")),
    "not causal": (GPT_OSS, attend(causal=False)),
    # heads and scores
    "kv heads tiled, not grouped": (GPT_OSS, attend(tile_heads=True)),
    "kv heads tiled in Qwen3": (QWEN3, attend(tile_heads=True)),
    "scores not scaled": (GPT_OSS, attend(scale=lambda width: 1.0)),
    "scores scaled by 1 / head_dim": (GPT_OSS, attend(scale=lambda width: 1 / width)),
    "no key bias": (GPT_OSS, attention_forward(no_key_bias=True)),
    "no attention biases": (GPT_OSS, change(attn_bias=False)),
    # sinks
    "no sinks": (GPT_OSS, change(sinks=False)),
    "sink renormalised away": (GPT_OSS, attend(renormalise=True)),
    "sink scaled like a score": (GPT_OSS, attend(sink_scale=1 / math.sqrt(16))),
    "sink fixed at 0 (off by one)": (GPT_OSS, attend(sink_scale=0.0)),
    "sink slightly off": (GPT_OSS, attend(sink_offset=0.05)),
    # RoPE
    "pairs interleaved, not halves": (GPT_OSS, rotate(interleaved=True)),
    "rotation backwards": (GPT_OSS, rotate(sign=-1.0)),
    "half of the rotation forgotten": (GPT_OSS, rotate(first=0.0)),
    "half of the rotation backwards": (GPT_OSS, rotate(first=-1.0)),
    "queries not rotated": (GPT_OSS, attention_forward(rotate_queries=False)),
    "values rotated": (GPT_OSS, attention_forward(rotate_values=True)),
    "another theta": (GPT_OSS, change(rope_theta=51.0)),
    "positions restart in every call": (GPT_OSS, positions_restart),
    # YaRN
    "no YaRN": (GPT_OSS, change(yarn=None)),
    "YaRN's ramp rounded": (GPT_OSS, change(yarn=YarnConfig(8.0, 16, 2.0, 0.25, truncate=True))),
    "YaRN without attention factor": (GPT_OSS, frequencies(factor_power=0.0)),
    "YaRN's attention factor once, not on q and k": (GPT_OSS, frequencies(factor_power=0.5)),
    "YaRN's ramp upside down": (GPT_OSS, frequencies(inverted_ramp=True)),
    "all pairs slowed (linear scaling)": (GPT_OSS, frequencies(slow_all=True)),
    "another original context": (GPT_OSS, change(yarn=YarnConfig(8.0, 17, 2.0, 0.25))),
    "another beta_fast": (GPT_OSS, change(yarn=YarnConfig(8.0, 16, 2.2, 0.25))),
    "another beta_slow": (GPT_OSS, change(yarn=YarnConfig(8.0, 16, 2.0, 0.3))),
    # clamped SwiGLU
    "no + 1": (GPT_OSS, clamped_swiglu(plus_one=False)),
    "gate and up interleaved": (GPT_OSS, clamped_swiglu(interleaved=True)),
    "gate and up exchanged": (GPT_OSS, clamped_swiglu(swapped=True)),
    "no clamp": (GPT_OSS, change(swiglu_limit=1e9)),
    "gate not clamped": (GPT_OSS, clamped_swiglu(clamp_gate=False)),
    "up not clamped": (GPT_OSS, clamped_swiglu(clamp_up="")),
    "up clamped from above only": (GPT_OSS, clamped_swiglu(clamp_up="above")),
    "sigmoid of the unclamped gate": (GPT_OSS, clamped_swiglu(activation_of_clamped=False)),
    "alpha 1 (plain silu)": (GPT_OSS, change(swiglu_alpha=1.0)),
    "alpha 1.7": (GPT_OSS, change(swiglu_alpha=1.7)),
    "plain SwiGLU": (GPT_OSS, change(ffn="swiglu")),
    # router and experts
    "no router bias": (GPT_OSS, change(moe=MoEConfig(5, 3, router_bias=False))),
    "one expert fewer": (GPT_OSS, route(drop=1)),
    "softmax before top-k": (GPT_OSS, route(how="softmax of all")),
    "Qwen3 without renormalising": (QWEN3, route(how="softmax of all")),
    "sigmoid router": (GPT_OSS, route(how="sigmoid")),
    "experts weighted equally": (GPT_OSS, route(how="equal")),
    "smallest logits chosen": (GPT_OSS, route(order=torch.neg)),
    "largest magnitudes chosen": (GPT_OSS, route(order=torch.abs)),
    "expert biases not weighted": (GPT_OSS, expert_bias_not_weighted),
    "no expert biases": (GPT_OSS, change(ffn_bias=False)),
    # norms and block
    "eps ten times smaller": (GPT_OSS, change(norm_eps=1e-6)),
    "eps outside the root": (GPT_OSS, rms_norm(eps_outside=True)),
    "1 + scale": (GPT_OSS, rms_norm(one_plus=True)),
    "mean subtracted": (GPT_OSS, rms_norm(centred=True)),
    "norm without scale": (GPT_OSS, rms_norm(no_scale=True)),
    "attention and experts in parallel": (GPT_OSS, block_forward(parallel=True)),
    "norm after the sublayer": (GPT_OSS, block_forward(post_norm=True)),
    # Qwen3
    "no q and k norm": (QWEN3, change(qk_norm=False)),
    "q and k norm after the rotation": (QWEN3, attention_forward(norm_after_rotation=True)),
    "q and k norm over all heads": (QWEN3, attention_forward(norm_over_all_heads=True)),
    "clamped SwiGLU in Qwen3": (QWEN3, change(ffn="clamped_swiglu")),
    # GPT-2
    "erf GELU": (GPT2, swap(ffn, "gelu", F.gelu)),
    "sigmoid GELU": (GPT2, swap(ffn, "gelu", lambda x: x * torch.sigmoid(1.702 * x))),
    "positions from 1": (
        GPT2,
        swap(positions.LearnedPositions, "forward", learned_positions(shift=1)),
    ),
    "unbiased variance": (GPT2, layer_norm(unbiased=True)),
    "LayerNorm's eps outside the root": (GPT2, layer_norm(eps_outside=True)),
    "LayerNorm without bias": (GPT2, layer_norm(no_bias=True)),
    # MXFP4
    "nibbles swapped": (GPT_OSS_MXFP4, byte_table(swap_nibbles=True)),
    "signs forgotten": (GPT_OSS_MXFP4, byte_table(sign=-1.0)),
    "linear codes": (
        GPT_OSS_MXFP4,
        byte_table(table=[0.0, 1, 2, 3, 4, 5, 6, 7, 0, -1, -2, -3, -4, -5, -6, -7]),
    ),
    "scale bias off by one": (GPT_OSS_MXFP4, scale_table(bias=128)),
    # cache
    "cache forgets one key too early": (GPT_OSS, sliding_cache_keeps(n_fewer=1)),
}

# The two curves differ by 5e-4 at most, so this one moves 1.3e-6 of rounding to 4e-4 only.
QUIET = {"erf GELU": 30 * TOLERANCE}

# With nothing wrong, the stand-ins above compute what the package does.
CONTROLS: dict[str, tuple[ModelConfig, Plant]] = {
    "nothing": (GPT_OSS, change()),
    "attend": (GPT_OSS, attend()),
    "rms_norm": (GPT_OSS, rms_norm()),
    "layer_norm": (GPT2, layer_norm()),
    "clamped_swiglu": (GPT_OSS, clamped_swiglu()),
    "route": (GPT_OSS, route()),
    "rotate": (GPT_OSS, rotate()),
    "frequencies": (GPT_OSS, frequencies()),
    "attention_forward": (GPT_OSS, attention_forward()),
    "attention_forward in Qwen3": (QWEN3, attention_forward()),
    "block_forward": (GPT_OSS, block_forward()),
    "positions": (GPT2, swap(positions.LearnedPositions, "forward", learned_positions())),
    "byte_table": (GPT_OSS_MXFP4, byte_table()),
    "scale_table": (GPT_OSS_MXFP4, scale_table()),
    "cache": (GPT_OSS, sliding_cache_keeps(n_fewer=0)),
}


def logits(network: Transformer) -> Tensor:
    """Run a prompt over several windows in one pass, and on with a cache."""
    c = network.config
    ids = tokens(c, 2, 45)
    kv = KVCache(c)
    with torch.no_grad():
        chunks = [network(chunk, kv) for chunk in ids.split([11, 3, 28, 1, 1, 1], dim=1)]
        return torch.cat((network(ids), *chunks), dim=1)


def build(config: ModelConfig) -> Transformer:
    network = Transformer(config).eval()
    return packed(randomise(network)) if config.expert_dtype == "mxfp4" else network


@cache
def right(config: ModelConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Return the weights of the model without a mistake, and its logits."""
    network = hostile(config)
    if config.expert_dtype == "mxfp4":
        network = packed(network)
    return network.state_dict(), logits(network)


def damage(config: ModelConfig, plant: Plant) -> float:
    """Return how far a mutant moves the logits, the largest difference."""
    weights, before = right(config)
    with pytest.MonkeyPatch.context() as patch:
        wrong = build(config.but(**plant(patch)))
        assert not wrong.load_state_dict(weights, strict=False).missing_keys
        after = logits(wrong)
    assert after.isfinite().all()
    return (after - before).abs().max().item()


LAZY_TOLERANCE = 1e-4  # of a test that compares logits with `allclose`


@cache
def right_lazily(config: ModelConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Return weights as they are drawn at first, and the logits of a short prompt."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(config.but(expert_dtype=config.dtype)).eval()
    network = packed(network) if config.expert_dtype == "mxfp4" else network
    with torch.no_grad():
        return network.state_dict(), network(tokens(config, 1, 6))


def lazy_damage(config: ModelConfig, plant: Plant) -> float:
    """Return how far a mutant moves the logits where hardly anything shows."""
    weights, before = right_lazily(config)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        wrong = build(config.but(**plant(patch)))
        wrong.load_state_dict(weights, strict=False)
        return (wrong(tokens(config, 1, 6)) - before).abs().max().item()


def table() -> str:
    """Return one line a mutant: its damage, and whether the lazy test misses it."""
    use_backend("plain")
    lines = [f"{'mutant':<42} {'damage':>8}  {'lazy test':>9}"]
    caught = missed = 0
    for name, mutant in MUTANTS.items():
        moved, lazily = damage(*mutant), lazy_damage(*mutant)
        caught += moved >= QUIET.get(name, VISIBLE)
        missed += lazily < LAZY_TOLERANCE
        seen = "missed" if lazily < LAZY_TOLERANCE else "seen"
        lines.append(f"{name:<42} {moved:>8.1e}  {lazily:>9.1e}  {seen}")
    use_backend("auto")
    lines.append(f"{caught} of {len(MUTANTS)} caught; {missed} missed by the lazy test")
    return "\n".join(lines)


def test_a_lazy_test_misses_what_this_suite_sees() -> None:
    """Window, cache, sinks and biases: with initial weights and six tokens they do not show."""
    for name in (
        "window one too wide",
        "no window",
        "no router bias",
        "expert biases not weighted",
    ):
        assert lazy_damage(*MUTANTS[name]) < LAZY_TOLERANCE, name


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_moves_the_logits(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    moved = damage(*MUTANTS[name])
    record_property("damage", moved)
    print(f"{name}: {moved:.1e}")
    assert moved >= QUIET.get(name, VISIBLE)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_stand_in_without_a_mistake_does_not(name: str) -> None:
    """The harness itself moves nothing, so what the mutants move is their mistake."""
    assert damage(*CONTROLS[name]) <= TOLERANCE


if __name__ == "__main__":
    print(table())
