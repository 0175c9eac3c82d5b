"""One token of a gpt-oss model on the CPU, from its embedding to its logits, in one call of C.

Block by block from Python, what is not a product with weights takes an eighth of a token's time:
while 3.7 GB of weights pass through the CPU's caches, nothing that Python needs stays in them.

Everything between the weights is float32, but for what enters a product where the CPU multiplies
bfloat16. So the answers are closer to the exact ones than those of the plain version, which rounds
to bfloat16 after every operation.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gptoss_lite.cache import KVCache
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import BackendError
from gptoss_lite.ffn import activation as activation_of
from gptoss_lite.kernels import build, native
from gptoss_lite.kernels.decode import hooks
from gptoss_lite.model import Block, Transformer, logits
from gptoss_lite.moe import MixtureOfExperts
from gptoss_lite.mxfp4 import BLOCK, PackedExpertLinear, scale_table
from gptoss_lite.trace import NAMES, wants

PARTS = ("projections", "attention", "experts", "unembedding", "rest")  # in the order of step.h
MOST_ACTIVE = 64  # experts of a token: step.h keeps room for them


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, native.Dense) for name in ("q", "k", "v", "o", "router")),
        *((name, native.Packed) for name in ("up", "down")),
        *native.pointers("attn_norm", "ffn_norm", "sinks", "keys", "values"),
        *((name, ctypes.c_int64 * 2) for name in ("key_strides", "value_strides")),
        *native.numbers("rows"),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *native.pointers("blocks", "norm"),
        ("unembed", native.Dense),
        ("act", native.Activation),
        *native.pointers("scale_of"),
        *native.numbers("n_blocks", "width", "heads", "kv_heads", "head_width"),
        *native.numbers("n_experts", "n_active", "bf16", "quads"),
        ("eps", ctypes.c_double),
    )


# --- what C can read -----------------------------------------------------------------------------


def _unlike_gpt_oss(config: ModelConfig) -> str | None:
    """Say what C does not compute in such a model, or None."""
    if config.moe is None or config.norm != "rmsnorm" or config.positions != "rope":
        return "it computes models with experts, RMSNorm and rotary positions"
    if config.qk_norm:
        return "it does not normalize queries and keys"
    if config.moe.n_active > MOST_ACTIVE:
        return f"a token asks {config.moe.n_active} experts, and it keeps room for {MOST_ACTIVE}"
    return None


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield where each tensor of a module is kept, its name there, and the tensor."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    yield kept, name, tensor


def _settings(model: Transformer) -> list[tuple[Any, ...]]:
    """Return what blocks know beside their weights."""
    return [
        (block.attn.window, block.attn_norm.eps, block.ffn_norm.eps)
        + ((ffn.n_active, ffn.activation) if isinstance(ffn := block.ffn, MixtureOfExperts) else ())
        for block in model.blocks
    ]


def _unlike_config(model: Transformer) -> str | None:
    """Say where a block differs from the config, after which C and caches go, or None."""
    config = model.config
    assert config.moe is not None
    for layer, (window, *eps, n_active, activation) in enumerate(_settings(model)):
        if window != config.window(layer):
            return f"block {layer} has a window of its own, {window}"
        if {*eps, model.norm.eps} != {config.norm_eps} or n_active != config.moe.n_active:
            return f"block {layer} differs from the model's config"
        if native.c_activation(activation).kind == native.NOTHING:
            return "C does not know the experts' activation"
    with torch.device("meta"):  # shapes alone: C goes by the config and checks nothing
        expected = {name: p.shape for name, p in Transformer(config).named_parameters()}
    for name, tensor in model.named_parameters():
        if name in expected and tensor.shape != expected[name]:
            return f"{name} is {list(tensor.shape)}, and the config says {list(expected[name])}"
    for layer, block in enumerate(model.blocks):
        ffn, n_experts, width = block.ffn, config.moe.n_experts, config.d_model
        assert isinstance(ffn, MixtureOfExperts)
        n_in = activation_of(config)[1]
        for part, rows, n in ((ffn.up, n_in * config.d_ff, width), (ffn.down, width, config.d_ff)):
            assert isinstance(part, PackedExpertLinear)
            n_scales = n_experts * rows * n // BLOCK
            if part.scales.numel() != n_scales or part.blocks.numel() != n_scales * BLOCK // 2:
                return f"the packed experts of block {layer} have other sizes than the config says"
    return None


@torch.no_grad()
def _unreadable(model: Transformer) -> str | None:
    """Say why C cannot read this model's tensors where they lie, or None."""
    dtype = model.embed.weight.dtype
    if dtype not in native.DTYPES:
        return f"the model is {dtype}; it computes with float32 and bfloat16"
    for _, name, tensor in _tensors(model):
        if tensor.is_floating_point() and tensor.dtype != dtype:
            return f"a tensor {name!r} is {tensor.dtype} in a model of {dtype}"
        if tensor.ndim <= 2 and tensor.numel() > 1 and tensor.stride(-1) != 1:
            return f"the numbers of a tensor {name!r} are not side by side"
        if problem := native.unreadable(tensor):
            return problem
    for block in model.blocks:
        assert isinstance(block.ffn, MixtureOfExperts)
        experts = block.ffn.up, block.ffn.down
        for layer in experts:
            if not isinstance(layer, PackedExpertLinear):
                return "the experts are not packed as MXFP4"
            if problem := native.strides_problem(layer.blocks, layer.scales):
                return problem
    return None


# --- a model in C's words ------------------------------------------------------------------------


class _Step:
    """The addresses of a model's weights, and what tells that they are still the right ones."""

    def __init__(self, model: Transformer) -> None:
        self.problem = _unlike_gpt_oss(model.config) or _unreadable(model) or _unlike_config(model)
        self._config, self._settings = model.config, _settings(model)
        self._parts = [(m._modules, *item) for m in model.modules() for item in m._modules.items()]
        self._kept = [(*kept, kept[2].data_ptr(), kept[2].dtype) for kept in _tensors(model)]
        self._hooks = hooks(model)
        self._lock = threading.Lock()  # the addresses of a cache are written into the blocks
        if self.problem is None:
            self._blocks = (_Block * len(model.blocks))(*map(self._block, model.blocks))
            self._model = self._described(model)

    def describes(self, model: Transformer) -> bool:
        """Say whether the model still has the same parts and settings, and weights in place."""
        return (
            all(kept.get(name) is part for kept, name, part in self._parts)
            and all(
                kept.get(name) is tensor and tensor.data_ptr() == address and tensor.dtype == dtype
                for kept, name, tensor, address, dtype in self._kept
            )
            and model.config is self._config
            and _settings(model) == self._settings
        )

    def refusal(self) -> str | None:
        """Say why C cannot run this model now, or None."""
        if self.problem is None and any(self._hooks):
            return "a hook is registered, and it does not call it"
        if torch.is_grad_enabled() and any(tensor.requires_grad for _, _, tensor, *_ in self._kept):
            return "gradients are needed: call it within torch.no_grad()"
        return self.problem or native.unreadable()

    @staticmethod
    def _block(block: Block) -> _Block:
        attn, ffn = block.attn, block.ffn
        assert isinstance(ffn, MixtureOfExperts)
        assert isinstance(ffn.up, PackedExpertLinear)
        assert isinstance(ffn.down, PackedExpertLinear)
        gated = native.c_activation(ffn.activation).kind == native.GATE
        dense = (attn.q, attn.k, attn.v, attn.o, ffn.router)
        return _Block(
            *(native.dense_matrix(layer.weight, layer.bias) for layer in dense),
            native.packed_matrix(ffn.up.blocks, ffn.up.scales, ffn.up.bias, in_halves=gated),
            native.packed_matrix(ffn.down.blocks, ffn.down.scales, ffn.down.bias),
            block.attn_norm.weight.data_ptr(),
            block.ffn_norm.weight.data_ptr(),
            None if attn.sinks is None else attn.sinks.data_ptr(),
        )

    def _described(self, model: Transformer) -> _Model:
        config, dtype = model.config, model.embed.weight.dtype
        assert config.moe is not None
        ffn = model.blocks[0].ffn
        assert isinstance(ffn, MixtureOfExperts)
        return _Model(
            ctypes.addressof(self._blocks),
            model.norm.weight.data_ptr(),
            native.dense_matrix(model.unembed.weight, None),
            native.c_activation(ffn.activation),
            scale_table(torch.float32, torch.device("cpu")).data_ptr(),
            len(model.blocks),
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.moe.n_experts,
            config.moe.n_active,
            dtype == torch.bfloat16,
            dtype == torch.bfloat16 and build.library().body() == native.BF16_BODY,
            config.norm_eps,
        )

    def run(
        self, model: Transformer, token: int, cache: KVCache, seconds: Tensor | None = None
    ) -> Tensor:
        """Read one token into the cache; return the logits of the next, [1, 1, V].

        `seconds`, float64, receives the time of each of the PARTS.
        """
        embedding = model.embed.weight
        angles = model.rotation(torch.tensor([cache.n_seen]))
        cos, sin = (table.to(embedding.dtype).float() for table in angles)
        out = embedding.new_empty(1, 1, model.config.vocab_size)
        with self._lock:
            for block, layer in zip(self._blocks, cache.layers, strict=True):
                row = layer.next_row()
                assert row is not None
                _point(block, *row)
            native.call(
                "next_logits",
                sys.maxsize,  # all threads; step.h gives small matrices fewer
                ctypes.byref(self._model),
                embedding.data_ptr() + token * embedding.stride(0) * embedding.itemsize,
                *(tensor.data_ptr() for tensor in (cos, sin, out)),
                None if seconds is None else seconds.data_ptr(),
            )
        for layer in cache.layers:
            layer.claim_row()
        cache.n_seen += 1
        return out


def _point(block: _Block, keys: Tensor, values: Tensor, first: int, row: int) -> None:
    """Tell C where a layer's keys and values are: from the first row that the token sees."""
    for name, held in (("key", keys), ("value", values)):
        strides = [stride * held.itemsize for stride in held.stride()[1:3]]
        setattr(block, f"{name}s", held.data_ptr() + first * strides[1])
        getattr(block, f"{name}_strides")[:] = strides
    block.rows = row - first


_STEPS: WeakKeyDictionary[Transformer, _Step] = WeakKeyDictionary()


def _step(model: Transformer) -> _Step:
    known = _STEPS.get(model)
    if known is None or not known.describes(model):
        known = _STEPS[model] = _Step(model)
    return known


# --- logits --------------------------------------------------------------------------------------


def why_not(model: Transformer, tokens: Tensor, cache: KVCache | None = None) -> str | None:
    """Say why this call cannot be one call of C, or None."""
    if cache is None or tokens.shape != (1, 1):
        return "it reads one token of one text into a cache"
    if any(map(wants, NAMES)):
        return "a trace is open, and it cannot show what happens inside"
    if model.n_ranks > 1:
        return "several processes share the model, and it does not add their sums up"
    if model.training and model.config.dropout > 0:
        return "the model is in training mode, with dropout"
    if refusal := _step(model).refusal():
        return refusal
    if cache.config != model.config:
        return "the cache is of another model"
    for layer in cache.layers:
        row = layer.next_row()
        if row is None:
            return "the cache's buffers are full, and must be moved first"
        if row[0].dtype != model.embed.weight.dtype or len(row[0]) != 1 or row[0].stride(-1) != 1:
            return "the cache holds several texts, or another dtype"
    return None


def too_small(model: Transformer, tokens: Tensor, cache: KVCache | None = None) -> str | None:
    """Say why block by block is as fast, or None."""
    if not isinstance(tokens, Tensor) or tokens.numel() != 1:  # a list: the plain version refuses
        return "several tokens at once are better read block by block"
    ffn = model.blocks[0].ffn if model.blocks else None
    if not isinstance(ffn, MixtureOfExperts) or not isinstance(ffn.up, PackedExpertLinear):
        return "the experts are not packed as MXFP4"
    return native.is_small(2 * ffn.up.blocks[0].numel(), ffn.up.blocks.device)


@logits.backend("step", why_not, missing=build.missing, too_small=too_small)
def logits_step(model: Transformer, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
    """Read one token with one call of C; see `model.logits`."""
    assert cache is not None
    model.check(tokens)
    return _step(model).run(model, int(tokens), cache)


@torch.no_grad()
def profiled(model: Transformer, token: int, cache: KVCache) -> dict[str, float]:
    """Read one token into the cache; return the seconds that each of the PARTS took.

    Raises:
        BackendError: this model cannot be read by one call of C now.
    """
    tokens = torch.tensor([[token]])
    model.check(tokens)
    if reason := build.missing() or why_not(model, tokens, cache):
        raise BackendError(f"This token cannot be read by one call of C: {reason}.")
    seconds = torch.zeros(len(PARTS), dtype=torch.float64)
    _step(model).run(model, token, cache, seconds)
    return dict(zip(PARTS, seconds.tolist(), strict=True))
