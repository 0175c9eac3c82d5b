"""What each published layout calls our tensors, and how their shapes differ: one table a family.

The model has one convention: matrices are [out, in], gate rows stand before up rows. Every
layout is a list of `Part`s that say how to get there from the file's tensors and back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptoss_lite.config import MXFP4_BLOCK, ModelConfig, MoEConfig

Shape = tuple[int, ...]
FLOATS = ("BF16", "F32", "F16")  # dtypes accepted where a float is expected
BYTES = ("U8",)


@dataclass(frozen=True)
class Part:
    """One tensor of the model and the tensors of a file that hold it.

    `read` turns the file's tensors into ours, `write` does the reverse. `copies` says that `read`
    makes a new tensor; otherwise ours is a view of the file's bytes. `span` is (axis, start,
    length) where several parts share one file tensor, such as q, k and v.
    """

    ours: str
    files: tuple[str, ...]
    shape: Shape  # of each file tensor
    dtypes: tuple[str, ...] = FLOATS
    read: Callable[[list[Tensor]], Tensor] = field(default=lambda tensors: tensors[0])
    write: Callable[[Tensor], list[Tensor]] = field(default=lambda tensor: [tensor])
    copies: bool = False
    span: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """All parts of one model in one layout, and the file tensors to pass over."""

    name: str
    parts: tuple[Part, ...]
    ignored: tuple[str, ...] = ()  # endings of tensors that are no parameters

    def expected(self) -> dict[str, tuple[Shape, tuple[str, ...]]]:
        """Return the shape and the accepted dtypes of every tensor that the files must hold."""
        return {file: (part.shape, part.dtypes) for part in self.parts for file in part.files}


def choose_layout(config: ModelConfig, names: Iterable[str]) -> Layout:
    """Tell which layout a checkpoint is in from the names of its tensors.

    Args:
        config: the model that the folder's config.json describes.
        names: the tensors that its files hold.
    """
    names = list(names)
    if config.family == "gpt2":
        return gpt2(
            config, "transformer." if any(n.startswith("transformer.") for n in names) else ""
        )
    if config.family == "qwen3_moe":
        return qwen3_moe(config)
    if any(name.startswith("block.") for name in names):
        return gpt_oss_original(config)
    if any(name.endswith("_scales") for name in names):
        return gpt_oss(config)
    return gpt_oss_unpacked(config, "_blocks" if any(n.endswith("_blocks") for n in names) else "")


def published_layout(config: ModelConfig) -> Layout:
    """Return the Hugging Face layout that a model of this config is saved in."""
    if config.family == "gpt2":
        return gpt2(config, "")
    if config.family == "qwen3_moe":
        return qwen3_moe(config)
    return gpt_oss(config) if config.expert_dtype == "mxfp4" else gpt_oss_unpacked(config)


# --- gpt-oss -------------------------------------------------------------------------------------


def _halves_view(interleaved: Tensor) -> Tensor:
    """View rows gate, up, gate, up ... [E, 2F, ...] as [E, 2, F, ...]: no byte is copied."""
    return interleaved.unflatten(1, (-1, 2)).transpose(1, 2)


def _read_halves(tensors: list[Tensor]) -> Tensor:
    return _halves_view(tensors[0])


def _write_interleaved(halves: Tensor) -> list[Tensor]:
    return [halves.transpose(1, 2).flatten(1, 2).contiguous()]


def _read_bias_halves(tensors: list[Tensor]) -> Tensor:
    return _halves_view(tensors[0]).flatten(1, 2)


def _write_bias_interleaved(bias: Tensor) -> list[Tensor]:
    return _write_interleaved(bias.unflatten(1, (2, -1)))


def _read_unpacked_up(tensors: list[Tensor]) -> Tensor:
    """Turn [E, in, 2F] with gate and up columns in turn into [E, 2F, in] with gate rows first."""
    return _halves_view(tensors[0].transpose(1, 2)).flatten(1, 2).contiguous()


def _write_unpacked_up(weight: Tensor) -> list[Tensor]:
    return [_write_bias_interleaved(weight)[0].transpose(1, 2).contiguous()]


def _transposed(tensors: list[Tensor]) -> Tensor:
    return tensors[0].transpose(-1, -2).contiguous()


def _write_transposed(tensor: Tensor) -> list[Tensor]:
    return [tensor.transpose(-1, -2).contiguous()]


def _packed_experts(ours: str, up: str, down: str, c: ModelConfig) -> list[Part]:
    """Parts of one layer's MXFP4 experts; `up` and `down` are name patterns of the layout."""
    experts, gate_up = _moe(c).n_experts, 2 * c.d_ff
    up_scales, down_scales = (
        (experts, gate_up, c.d_model // MXFP4_BLOCK),
        (experts, c.d_model, c.d_ff // MXFP4_BLOCK),
    )
    half = MXFP4_BLOCK // 2
    undo = {"read": _read_halves, "write": _write_interleaved}
    return [
        Part(f"{ours}.up.blocks", (up.format("blocks"),), (*up_scales, half), BYTES, **undo),
        Part(f"{ours}.up.scales", (up.format("scales"),), up_scales, BYTES, **undo),
        Part(f"{ours}.down.blocks", (down.format("blocks"),), (*down_scales, half), BYTES),
        Part(f"{ours}.down.scales", (down.format("scales"),), down_scales, BYTES),
    ]


def _expert_biases(ours: str, up: str, down: str, c: ModelConfig) -> list[Part]:
    experts = _moe(c).n_experts
    undo = {"read": _read_bias_halves, "write": _write_bias_interleaved, "copies": True}
    return [
        Part(f"{ours}.up.bias", (up,), (experts, 2 * c.d_ff), **undo),
        Part(f"{ours}.down.bias", (down,), (experts, c.d_model)),
    ]


def _gpt_oss_shared(c: ModelConfig) -> list[Part]:
    """Everything of the Hugging Face layout but the expert matrices."""
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = {"q": (q_width, c.d_model), "k": (kv_width, c.d_model), "v": (kv_width, c.d_model)}
    shapes["o"] = (c.d_model, q_width)
    parts = []
    for n in range(c.n_layers):
        ours, theirs = f"blocks.{n}", f"model.layers.{n}"
        parts.append(
            Part(f"{ours}.attn_norm.weight", (f"{theirs}.input_layernorm.weight",), (c.d_model,))
        )
        for letter, shape in shapes.items():
            name = f"{theirs}.self_attn.{letter}_proj"
            parts.append(Part(f"{ours}.attn.{letter}.weight", (f"{name}.weight",), shape))
            if c.attn_bias:
                parts.append(Part(f"{ours}.attn.{letter}.bias", (f"{name}.bias",), shape[:1]))
        parts += [
            Part(f"{ours}.attn.sinks", (f"{theirs}.self_attn.sinks",), (c.n_heads,)),
            Part(
                f"{ours}.ffn_norm.weight",
                (f"{theirs}.post_attention_layernorm.weight",),
                (c.d_model,),
            ),
            Part(
                f"{ours}.ffn.router.weight",
                (f"{theirs}.mlp.router.weight",),
                (_moe(c).n_experts, c.d_model),
            ),
            Part(f"{ours}.ffn.router.bias", (f"{theirs}.mlp.router.bias",), (_moe(c).n_experts,)),
        ]
        experts = f"{theirs}.mlp.experts"
        parts += _expert_biases(
            f"{ours}.ffn", f"{experts}.gate_up_proj_bias", f"{experts}.down_proj_bias", c
        )
    return parts + _ends(c, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def gpt_oss(c: ModelConfig) -> Layout:
    """Return the Hugging Face layout with MXFP4 experts: the root of openai/gpt-oss-20b."""
    parts = _gpt_oss_shared(c)
    for n in range(c.n_layers):
        experts = f"model.layers.{n}.mlp.experts"
        names = f"{experts}.gate_up_proj_{{}}", f"{experts}.down_proj_{{}}"
        parts += _packed_experts(f"blocks.{n}.ffn", *names, c)
    return Layout("Hugging Face, MXFP4 experts", tuple(parts))


def gpt_oss_unpacked(c: ModelConfig, ending: str = "") -> Layout:
    """Return what transformers saves after decoding: experts [E, in, out], gate and up in turn.

    transformers 5 leaves `ending` "_blocks" at the names of experts that it decoded while loading.
    """
    parts, experts = _gpt_oss_shared(c), _moe(c).n_experts
    for n in range(c.n_layers):
        theirs = f"model.layers.{n}.mlp.experts"
        parts += [
            Part(
                f"blocks.{n}.ffn.up.weight",
                (f"{theirs}.gate_up_proj{ending}",),
                (experts, c.d_model, 2 * c.d_ff),
                read=_read_unpacked_up,
                write=_write_unpacked_up,
                copies=True,
            ),
            Part(
                f"blocks.{n}.ffn.down.weight",
                (f"{theirs}.down_proj{ending}",),
                (experts, c.d_ff, c.d_model),
                read=_transposed,
                write=_write_transposed,
                copies=True,
            ),
        ]
    return Layout("Hugging Face, unpacked experts", tuple(parts))


def gpt_oss_original(c: ModelConfig) -> Layout:
    """Return OpenAI's own layout: the original/ folder, with q, k and v in one matrix."""
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    rows = q_width + 2 * kv_width
    starts = {"q": (0, q_width), "k": (q_width, kv_width), "v": (q_width + kv_width, kv_width)}
    parts = []
    for n in range(c.n_layers):
        ours, attn, mlp = f"blocks.{n}", f"block.{n}.attn", f"block.{n}.mlp"
        parts.append(Part(f"{ours}.attn_norm.weight", (f"{attn}.norm.scale",), (c.d_model,)))
        for letter, (start, length) in starts.items():
            span = (0, start, length)
            parts += [
                Part(
                    f"{ours}.attn.{letter}.weight",
                    (f"{attn}.qkv.weight",),
                    (rows, c.d_model),
                    span=span,
                ),
                Part(f"{ours}.attn.{letter}.bias", (f"{attn}.qkv.bias",), (rows,), span=span),
            ]
        parts += [
            Part(f"{ours}.attn.sinks", (f"{attn}.sinks",), (c.n_heads,)),
            Part(f"{ours}.attn.o.weight", (f"{attn}.out.weight",), (c.d_model, q_width)),
            Part(f"{ours}.attn.o.bias", (f"{attn}.out.bias",), (c.d_model,)),
            Part(f"{ours}.ffn_norm.weight", (f"{mlp}.norm.scale",), (c.d_model,)),
            Part(
                f"{ours}.ffn.router.weight", (f"{mlp}.gate.weight",), (_moe(c).n_experts, c.d_model)
            ),
            Part(f"{ours}.ffn.router.bias", (f"{mlp}.gate.bias",), (_moe(c).n_experts,)),
        ]
        parts += _packed_experts(
            f"{ours}.ffn", f"{mlp}.mlp1_weight.{{}}", f"{mlp}.mlp2_weight.{{}}", c
        )
        parts += _expert_biases(f"{ours}.ffn", f"{mlp}.mlp1_bias", f"{mlp}.mlp2_bias", c)
    parts += _ends(c, "embedding.weight", "norm.scale", "unembedding.weight")
    return Layout("OpenAI original", tuple(parts))


# --- GPT-2 ---------------------------------------------------------------------------------------


def gpt2(c: ModelConfig, prefix: str) -> Layout:
    """Return GPT-2's layout: matrices are stored [in, out], q, k and v side by side."""
    D, ff = c.d_model, c.d_ff
    parts = [
        Part("embed.weight", (f"{prefix}wte.weight",), (c.vocab_size, D)),
        Part("positions.weight", (f"{prefix}wpe.weight",), (c.context, D)),
    ]
    matrices = {
        "attn.o": ("attn.c_proj", D, D),
        "ffn.up": ("mlp.c_fc", D, ff),
        "ffn.down": ("mlp.c_proj", ff, D),
    }
    norms = {"attn_norm": "ln_1", "ffn_norm": "ln_2"}
    turn = {"read": _transposed, "write": _write_transposed, "copies": True}
    for n in range(c.n_layers):
        ours, theirs = f"blocks.{n}", f"{prefix}h.{n}"
        for our_norm, their_norm in norms.items():
            for leaf in ("weight", "bias"):
                parts.append(
                    Part(f"{ours}.{our_norm}.{leaf}", (f"{theirs}.{their_norm}.{leaf}",), (D,))
                )
        for our_name, (their_name, n_in, n_out) in matrices.items():
            parts += [
                Part(
                    f"{ours}.{our_name}.weight",
                    (f"{theirs}.{their_name}.weight",),
                    (n_in, n_out),
                    **turn,
                ),
                Part(f"{ours}.{our_name}.bias", (f"{theirs}.{their_name}.bias",), (n_out,)),
            ]
        for i, letter in enumerate("qkv"):
            fused = f"{theirs}.attn.c_attn"
            weight, bias = f"{ours}.attn.{letter}.weight", f"{ours}.attn.{letter}.bias"
            parts += [
                Part(weight, (f"{fused}.weight",), (D, 3 * D), span=(1, i * D, D), **turn),
                Part(bias, (f"{fused}.bias",), (3 * D,), span=(0, i * D, D)),
            ]
    for leaf in ("weight", "bias"):
        parts.append(Part(f"norm.{leaf}", (f"{prefix}ln_f.{leaf}",), (D,)))
    # The published file also stores its causal masks; files of tied models may repeat the head.
    return Layout(
        "GPT-2", tuple(parts), ignored=(".attn.bias", ".attn.masked_bias", "lm_head.weight")
    )


# --- Qwen3-MoE -----------------------------------------------------------------------------------


def qwen3_moe(c: ModelConfig) -> Layout:
    """Return Qwen3-30B-A3B's layout: three matrices for each expert, each a tensor of its own."""
    q_width, kv_width, experts = (
        c.n_heads * c.head_dim,
        c.n_kv_heads * c.head_dim,
        _moe(c).n_experts,
    )
    parts = []
    for n in range(c.n_layers):
        ours, theirs = f"blocks.{n}", f"model.layers.{n}"
        attn, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        up_names = [
            f"{mlp}.experts.{e}.{name}_proj.weight"
            for name in ("gate", "up")
            for e in range(experts)
        ]
        down_names = [f"{mlp}.experts.{e}.down_proj.weight" for e in range(experts)]
        parts += [
            Part(f"{ours}.attn_norm.weight", (f"{theirs}.input_layernorm.weight",), (c.d_model,)),
            Part(f"{ours}.attn.q.weight", (f"{attn}.q_proj.weight",), (q_width, c.d_model)),
            Part(f"{ours}.attn.k.weight", (f"{attn}.k_proj.weight",), (kv_width, c.d_model)),
            Part(f"{ours}.attn.v.weight", (f"{attn}.v_proj.weight",), (kv_width, c.d_model)),
            Part(f"{ours}.attn.o.weight", (f"{attn}.o_proj.weight",), (c.d_model, q_width)),
            Part(f"{ours}.attn.q_norm.weight", (f"{attn}.q_norm.weight",), (c.head_dim,)),
            Part(f"{ours}.attn.k_norm.weight", (f"{attn}.k_norm.weight",), (c.head_dim,)),
            Part(
                f"{ours}.ffn_norm.weight",
                (f"{theirs}.post_attention_layernorm.weight",),
                (c.d_model,),
            ),
            Part(f"{ours}.ffn.router.weight", (f"{mlp}.gate.weight",), (experts, c.d_model)),
            Part(
                f"{ours}.ffn.up.weight",
                tuple(up_names),
                (c.d_ff, c.d_model),
                read=_stack_gate_up,
                write=lambda w: [
                    m.contiguous() for half in w.chunk(2, dim=1) for m in half.unbind(0)
                ],
                copies=True,
            ),
            Part(
                f"{ours}.ffn.down.weight",
                tuple(down_names),
                (c.d_model, c.d_ff),
                read=torch.stack,
                write=lambda w: [m.contiguous() for m in w.unbind(0)],
                copies=True,
            ),
        ]
    parts += _ends(c, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    return Layout("Qwen3-MoE", tuple(parts))


def _stack_gate_up(tensors: list[Tensor]) -> Tensor:
    """Join E gates and E ups to [E, 2F, in]."""
    experts = len(tensors) // 2
    return torch.cat((torch.stack(tensors[:experts]), torch.stack(tensors[experts:])), dim=1)


def _ends(c: ModelConfig, embed: str, norm: str, unembed: str) -> list[Part]:
    parts = [
        Part("embed.weight", (embed,), (c.vocab_size, c.d_model)),
        Part("norm.weight", (norm,), (c.d_model,)),
    ]
    if not c.tied:
        parts.append(Part("unembed.weight", (unembed,), (c.vocab_size, c.d_model)))
    return parts


def _moe(c: ModelConfig) -> MoEConfig:
    assert c.moe is not None, "this layout belongs to mixtures of experts"
    return c.moe
