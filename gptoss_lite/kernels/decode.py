"""One decoded token as a fixed sequence of kernels, which CUDA can record once and replay.

A token of gpt-oss-20b is about 350 launches. Started one by one from Python they take longer than
the work; recorded as a CUDA graph they start with one call. For that, nothing may change its place
or its size, and nobody may wait for the device: keys and values have buffers of a fixed size, the
token and its position are on the device, and what depends on them is masked, not cut.

The same `step` runs anywhere without being recorded; on the CPU the tests compare it with
`model(token, cache)`. Checked there, and not yet run on a GPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_lite.attention import Attention
from gptoss_lite.cache import FullCache, KVCache, SlidingCache
from gptoss_lite.dispatch import Op, backends
from gptoss_lite.errors import ShapeError
from gptoss_lite.kernels import gpu
from gptoss_lite.model import Transformer
from gptoss_lite.moe import MixtureOfExperts, apply_experts, route
from gptoss_lite.mxfp4 import PackedExpertLinear
from gptoss_lite.norm import RMSNorm
from gptoss_lite.positions import LearnedPositions, rotate
from gptoss_lite.trace import NAMES, wants

SPARE = 4_096  # tokens that the buffers hold beyond those read so far, at first
RECORDS = "cuda"  # the kind of device that records graphs
WARM_UPS = 3  # runs before recording: they compile kernels and set libraries up


# --- the parts of a step, plain ------------------------------------------------------------------


@Op
def add_norm(
    x: Float[Tensor, "B T D"], delta: Float[Tensor, "B T D"] | None, norm: nn.Module
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
    """Add what a block's part made to the residual stream; return the sum, and its norm."""
    total = x if delta is None else x + delta
    return total, norm(total)


@Op
def rotate_and_keep(
    q: Float[Tensor, "1 H 1 hd"],
    k: Float[Tensor, "1 K 1 hd"],
    v: Float[Tensor, "1 K 1 hd"],
    cos: Float[Tensor, "1 half"],
    sin: Float[Tensor, "1 half"],
    keys: Float[Tensor, "1 K capacity hd"],
    values: Float[Tensor, "1 K capacity hd"],
    slot: Int[Tensor, "1"],
) -> Float[Tensor, "1 H 1 hd"]:
    """Rotate one token's q and k, write k and v to row `slot` of the buffers, and return q."""
    keys.index_copy_(2, slot, rotate(k, cos, sin).to(keys.dtype))
    values.index_copy_(2, slot, v.to(values.dtype))
    return rotate(q, cos, sin)


@Op
def attend_buffers(
    q: Float[Tensor, "1 H 1 hd"],
    keys: Float[Tensor, "1 K capacity hd"],
    values: Float[Tensor, "1 K capacity hd"],
    sinks: Float[Tensor, " H"] | None,
    length: Int[Tensor, "1"],
) -> Float[Tensor, "1 H 1 hd"]:
    """Attend from one token to the first `length` rows of the buffers, in whatever order they are.

    As `attention.attend`, whose window is the size of the buffer here.
    """
    n_heads, n_kv_heads, width = q.shape[1], keys.shape[1], q.shape[-1]
    grouped = q.unflatten(1, (n_kv_heads, n_heads // n_kv_heads))  # [1 K G 1 hd]
    scores = grouped @ keys.unsqueeze(2).transpose(-1, -2)
    scores = scores.flatten(1, 2).float() / width**0.5  # [1 H 1 capacity]
    empty = torch.arange(keys.shape[2], device=q.device) >= length
    scores = scores.masked_fill(empty, -torch.inf)
    if sinks is None:
        probs = scores.softmax(-1)
    else:
        column = sinks.float().view(1, n_heads, 1, 1)
        probs = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
    probs = probs.to(values.dtype).unflatten(1, (n_kv_heads, n_heads // n_kv_heads))
    return (probs @ values.unsqueeze(2)).flatten(1, 2)


@Op
def choose_experts(
    logits: Float[Tensor, "N E"], n_active: int
) -> tuple[Float[Tensor, "N A"], Int[Tensor, "N A"]]:
    """Return (weights, ids) of the chosen experts: `moe.route`, which may be one kernel here."""
    return route(logits, n_active)


# --- and in Triton -------------------------------------------------------------------------------


def why_not_add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> str | None:
    """Say why this norm is not the kernel's, or None."""
    if not isinstance(norm, RMSNorm):
        return "it computes RMSNorm only"
    if delta is not None and delta.dtype != x.dtype:
        return f"{delta.dtype} is added to {x.dtype}"
    return gpu.cannot_take(x, delta, norm.weight)


@add_norm.backend("triton", why_not_add_norm, missing=gpu.missing, too_small=gpu.only_forced)
def add_norm_triton(
    x: Float[Tensor, "B T D"], delta: Float[Tensor, "B T D"] | None, norm: nn.Module
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
    """Add and normalize in one launch instead of ten."""
    from gptoss_lite.kernels import triton_dense

    assert isinstance(norm, RMSNorm)
    return triton_dense.add_rms_norm(x, delta, norm.weight, norm.eps, norm.cast_first)


def why_not_rotate(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor,
    keys: Tensor, values: Tensor, slot: Tensor,
) -> str | None:  # fmt: skip
    """Say why these cannot be rotated in one kernel, or None."""
    if len({tensor.dtype for tensor in (q, k, v, keys, values)}) > 1:
        return "queries, keys, values and buffers differ in dtype"
    return gpu.cannot_take(q, k, v, cos, sin, keys, values, slot)


@rotate_and_keep.backend("triton", why_not_rotate, missing=gpu.missing, too_small=gpu.only_forced)
def rotate_and_keep_triton(
    q: Float[Tensor, "1 H 1 hd"],
    k: Float[Tensor, "1 K 1 hd"],
    v: Float[Tensor, "1 K 1 hd"],
    cos: Float[Tensor, "1 half"],
    sin: Float[Tensor, "1 half"],
    keys: Float[Tensor, "1 K capacity hd"],
    values: Float[Tensor, "1 K capacity hd"],
    slot: Int[Tensor, "1"],
) -> Float[Tensor, "1 H 1 hd"]:
    """Rotate and write in one launch instead of eighteen."""
    from gptoss_lite.kernels import triton_dense

    return triton_dense.rotate_and_keep(q, k, v, cos, sin, keys, values, slot)


def why_not_buffers(
    q: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, length: Tensor
) -> str | None:
    """Say why these buffers cannot be read by the kernel, or None."""
    return gpu.why_not_attend(q, keys, values, sinks, None) or gpu.cannot_take(length)


@attend_buffers.backend("triton", why_not_buffers, missing=gpu.missing, too_small=gpu.only_forced)
def attend_buffers_triton(
    q: Float[Tensor, "1 H 1 hd"],
    keys: Float[Tensor, "1 K capacity hd"],
    values: Float[Tensor, "1 K capacity hd"],
    sinks: Float[Tensor, " H"] | None,
    length: Int[Tensor, "1"],
) -> Float[Tensor, "1 H 1 hd"]:
    """Split the buffers among programs; those past `length` do nothing."""
    from gptoss_lite.kernels import triton_attention

    return triton_attention.attend_token(q, keys, values, sinks, length)


def why_not_choose(logits: Tensor, n_active: int) -> str | None:
    """Say why the choice cannot be made in one kernel, or None."""
    if any(map(wants, ("router_logits", "expert_ids", "expert_weights"))):
        return "a trace asks how tokens were routed"
    return gpu.cannot_take(logits)


@choose_experts.backend("triton", why_not_choose, missing=gpu.missing, too_small=gpu.only_forced)
def choose_experts_triton(
    logits: Float[Tensor, "N E"], n_active: int
) -> tuple[Float[Tensor, "N A"], Int[Tensor, "N A"]]:
    """Pick the largest one after the other; of equal ones the first."""
    from gptoss_lite.kernels import triton_dense

    return triton_dense.choose(logits, n_active)


# --- one step ------------------------------------------------------------------------------------


@dataclass
class Buffers:
    """Keys and values of one layer, [1 K rows hd]: token p in row p modulo the number of rows.

    A full layer has a row for every position. A sliding layer has as many as its window, so the
    newest token takes the place of the one that nobody sees any more. Keys are rotated before they
    are written, so it does not matter in what order they lie.
    """

    keys: Tensor
    values: Tensor

    @property
    def n_rows(self) -> int:
        """How many tokens fit."""
        return self.keys.shape[2]

    def write(self, keys: Tensor, values: Tensor, end: int) -> None:
        """Put the keys and values of the tokens before position `end` in their rows."""
        positions = torch.arange(end - keys.shape[2], end, device=keys.device)
        self.keys.index_copy_(2, positions % self.n_rows, keys)
        self.values.index_copy_(2, positions % self.n_rows, values)

    def read(self, end: int) -> tuple[Tensor, Tensor]:
        """Return copies of what is held of the tokens before position `end`, in their order."""
        positions = torch.arange(max(0, end - self.n_rows), end, device=self.keys.device)
        rows = positions % self.n_rows
        return self.keys.index_select(2, rows), self.values.index_select(2, rows)


@dataclass
class State:
    """What a step reads and writes besides the model; always at the same place in memory."""

    token: Int[Tensor, "1 1"]
    row: Float[Tensor, "1 1 D"] | None  # of the embedding, if that is on another device
    position: Int[Tensor, "1"]  # of the token
    cos: Float[Tensor, "capacity half"]
    sin: Float[Tensor, "capacity half"]
    layers: list[Buffers]


def step(model: Transformer, state: State) -> Float[Tensor, " V"]:
    """Read the token at the position, advance the position, and return the next token's logits.

    Nothing here looks at a value, and every size is known before.
    """
    position = state.position
    rows = {layer.n_rows for layer in state.layers}
    slots = {size: position % size for size in rows}
    lengths = {size: (position + 1).clamp(max=size) for size in rows}
    cos, sin = state.cos.index_select(0, position), state.sin.index_select(0, position)
    x, delta = _embedded(model, state), None
    for block, layer in zip(model.blocks, state.layers, strict=True):
        x, read = add_norm(x, delta, block.attn_norm)
        slot, length = slots[layer.n_rows], lengths[layer.n_rows]
        delta = _attention(block.attn, read, cos, sin, layer, slot, length)
        x, read = add_norm(x, delta, block.ffn_norm)
        delta = _feed_forward(block.ffn, read)
    _, read = add_norm(x, delta, model.norm)
    position += 1
    return model.unembed(read)[0, 0]


def _embedded(model: Transformer, state: State) -> Tensor:
    x = model.embed(state.token) if state.row is None else state.row
    if isinstance(model.positions, LearnedPositions):  # its forward looks at the position's value
        x = x + model.positions.weight.index_select(0, state.position)
    return x.to(model.norm.weight.dtype)


def _attention(
    attn: Attention,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    layer: Buffers,
    slot: Tensor,
    length: Tensor,
) -> Tensor:
    """Do what `Attention.forward` does, with buffers in place of a growing cache."""
    heads = (-1, attn.head_dim)
    q = attn.q_norm(attn.q(x).unflatten(-1, heads)).transpose(1, 2)  # [1 H 1 hd]
    k = attn.k_norm(attn.k(x).unflatten(-1, heads)).transpose(1, 2)  # [1 K 1 hd]
    v = attn.v(x).unflatten(-1, heads).transpose(1, 2)
    q = rotate_and_keep(q, k, v, cos, sin, layer.keys, layer.values, slot)
    mixed = attend_buffers(q, layer.keys, layer.values, attn.sinks, length)
    return attn.o(mixed.transpose(1, 2).flatten(2))


def _feed_forward(ffn: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(ffn, MixtureOfExperts):
        return ffn(x)
    tokens = x.flatten(0, 1)
    weights, ids = choose_experts(ffn.router(tokens), ffn.n_active)
    return apply_experts(tokens, weights, ids, ffn.up, ffn.down, ffn.activation).view_as(x)


# --- many steps ----------------------------------------------------------------------------------


def why_not(model: Transformer) -> str | None:
    """Say why decoding this model should not be recorded as a CUDA graph now, or None."""
    if model.device.type != RECORDS:
        return f"the model is on {model.device.type}; only CUDA records graphs"
    if model.n_ranks > 1:
        return "several processes share the model, and a recorded step does not add their sums up"
    parts = [part for part in model.parameters() if part is not model.embed.weight]
    if any(part.device != model.device for part in parts):
        return "the model lies on several devices"
    if model.training and model.config.dropout > 0:
        return "the model is in training mode, with dropout"
    if any(map(wants, NAMES)):
        return "a trace is open, and a recorded step cannot show what happens inside"
    if any(hooks(model)):
        return "a hook is registered, and a recorded step does not call it"
    experts = (block.ffn for block in model.blocks if isinstance(block.ffn, MixtureOfExperts))
    return next(filter(None, map(_would_wait, experts)), None)


def hooks(model: Transformer) -> list[Mapping[int, Callable[..., object]]]:
    """Return where each part keeps its hooks: the same mappings as long as the model lives.

    All are empty if no hook is registered. To look again, 6 us for gpt-oss-20b, ask them again.
    """
    parts = model.modules()
    return [kept for part in parts for kept in (part._forward_hooks, part._forward_pre_hooks)]


def _would_wait(moe: MixtureOfExperts) -> str | None:
    """Say why these experts cannot be applied without asking the device which were chosen."""
    packed = isinstance(moe.up, PackedExpertLinear)
    name = "triton" if packed else "gathered"
    states = {(op, backend): state for op, backend, state in backends()}
    if (state := states["apply_experts", name]) != "tried first":
        return f"the experts' backend {name!r} is {state}"
    device = moe.router.weight.device
    x = torch.zeros(1, moe.router.weight.shape[1], device=device)
    ids = torch.zeros(1, moe.n_active, dtype=torch.int64, device=device)
    call = x, torch.zeros(ids.shape, device=device), ids, moe.up, moe.down, moe.activation
    with torch.no_grad():
        if packed:
            return gpu.why_not_experts(*call) or gpu.experts_too_small(*call)
        return gpu.why_not_gathered(*call) or gpu.gathered_too_small(*call)


class Decoder:
    """Continues one sequence token by token, from where a cache stands, with buffers of its own.

    On a CUDA device the step is recorded at its first call and then replayed; elsewhere it just
    runs. When the buffers are full, larger ones take their place, and the step is recorded anew.

    Args:
        model: any Transformer.
        cache: of one sequence; what the model has read.
        spare: tokens that fit before the buffers must grow.
        most: tokens that it will read at most, past and new, if known: buffers never have room for
            more.
        empties: whether the cache is emptied, layer by layer, so that no more than one layer's keys
            and values are in memory twice. Else it stays as it was.

    Raises:
        ShapeError: a cache of several sequences.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        spare: int = SPARE,
        most: int | None = None,
        empties: bool = False,
    ) -> None:
        self.model, self.n_seen, self._most = model, cache.n_seen, most
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        if (batch := self._held(cache.layers[0])[0].shape[0]) != 1:
            raise ShapeError(f"A Decoder continues one sequence, but the cache holds {batch}.")
        device, table = model.device, model.embed.weight
        is_near = table.device == device
        self.state = State(
            token=torch.zeros(1, 1, dtype=torch.int64, device=device),
            row=None if is_near else table.new_zeros(1, 1, table.shape[1], device=device),
            position=torch.full((1,), self.n_seen, dtype=torch.int64, device=device),
            **self._tables(self._room(self.n_seen + spare)),
            layers=[],
        )
        for index, layer in enumerate(cache.layers):
            buffers = self._buffers(index, self.capacity)
            buffers.write(*self._held(layer), self.n_seen)
            self.state.layers.append(buffers)
            if empties:
                layer.truncate(0)
        if empties:
            cache.truncate(0)

    def _room(self, wanted: int) -> int:
        """Return how many tokens the buffers shall hold: what is wanted, or all that will come."""
        return wanted if self._most is None else max(self.n_seen + 1, min(wanted, self._most))

    def _held(self, layer: FullCache | SlidingCache) -> tuple[Tensor, Tensor]:
        """Return what a next token could read of a layer's cache: append nothing to it."""
        nothing = self._rows(1, 0)
        return layer.append(nothing, nothing)

    def _rows(self, batch: int, n_rows: int) -> Tensor:
        c = self.model.config
        # zeros: a masked row is multiplied by 0, and 0 times what lay there may be NaN
        shape = (batch, c.n_kv_heads, n_rows, c.head_dim)
        return torch.zeros(shape, device=self.model.device, dtype=self.model.norm.weight.dtype)

    def _buffers(self, layer: int, capacity: int) -> Buffers:
        n_rows = self.model.config.window(layer) or capacity
        return Buffers(self._rows(1, n_rows), self._rows(1, n_rows))

    def _tables(self, capacity: int) -> dict[str, Tensor]:
        positions = torch.arange(capacity, device=self.model.device)
        return dict(zip(("cos", "sin"), self.model.rotation(positions), strict=True))

    @property
    def capacity(self) -> int:
        """How many tokens fit before the buffers must grow."""
        return len(self.state.cos)

    @property
    def n_bytes(self) -> int:
        """Bytes of all buffers of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.state.layers)

    def cache(self) -> KVCache:
        """Return a cache that has read the same tokens, with copies of what the buffers hold."""
        cache = KVCache(self.model.config)
        for layer, buffers in zip(cache.layers, self.state.layers, strict=True):
            layer.append(*buffers.read(self.n_seen))
            layer.length = self.n_seen  # a sliding layer got its window only
        cache.n_seen = self.n_seen
        return cache

    def _grow(self) -> None:
        """Move to buffers for twice as many tokens, or all; what was recorded used the old ones."""
        self._graph = self._logits = None
        capacity = self._room(2 * self.capacity)
        self.state = replace(self.state, **self._tables(capacity))
        for layer, buffers in enumerate(self.state.layers):
            if self.model.config.window(layer) is None:
                larger = self._buffers(layer, capacity)
                larger.write(
                    buffers.keys[:, :, : self.n_seen],
                    buffers.values[:, :, : self.n_seen],
                    self.n_seen,
                )
                self.state.layers[layer] = larger  # and the old ones go, before the next layer's

    @torch.no_grad()
    def __call__(self, token: int) -> Float[Tensor, " V"]:
        """Read one token; return the logits of the next, valid until the next call.

        Raises:
            ShapeError: a token outside the vocabulary, or a position past a learned table.
        """
        vocabulary, positions = self.model.config.vocab_size, self.model.positions
        if not 0 <= token < vocabulary:
            raise ShapeError(
                f"Token {token} is outside this model's vocabulary, 0 to {vocabulary - 1}."
            )
        if isinstance(positions, LearnedPositions) and self.n_seen >= len(positions.weight):
            raise ShapeError(
                f"Position {self.n_seen} is past the learned table's {len(positions.weight)} rows. "
                "Generate fewer tokens."
            )
        if self.n_seen == self.capacity:
            self._grow()
        if self.state.row is None:
            self.state.token.fill_(token)
        else:  # a graph cannot look at another device
            embed = self.model.embed
            there = torch.full((1, 1), token, device=embed.weight.device)
            self.state.row.copy_(embed(there))
        if self.model.device.type == RECORDS:
            logits = self._replay()
        else:
            logits = step(self.model, self.state)
        self.n_seen += 1
        return logits

    def _replay(self) -> Tensor:
        """Run the recorded step; record it first if need be."""
        with torch.cuda.device(self.model.device):  # streams are those of the current device
            if self._graph is None or self._logits is None:
                self._graph, self._logits = self._record()
            self._graph.replay()
        return self._logits

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Run the step until everything is compiled and set up, then record one more."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step(self.model, self.state)
                # The rows it wrote are those that the same position writes again.
                self.state.position.fill_(self.n_seen)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            logits = step(self.model, self.state)
        return graph, logits
