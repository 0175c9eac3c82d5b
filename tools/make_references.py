"""Write gptoss_lite/data/references: tiny models and what published classes make of them.

Usage, from the root of the repository: `python -m tools.make_references`. Needs transformers.
With the same versions the same bytes come out. Each case names a rung, a class of transformers,
and what has to be changed in the rung or done to the class for the two to be one function.
"""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save
from torch import Tensor, nn

from gptoss_lite import LADDER, PRESETS, ModelConfig, MoEConfig, Transformer, YarnConfig, trace
from gptoss_lite.mxfp4 import PackedExpertLinear, quantize
from gptoss_lite.parity import FOLDER, TOLERANCE, Reference, compare, rebuild

Weights = dict[str, Tensor]

MARGIN = 1e-4  # least gap between the last chosen expert and the next, far above rounding
# Ramp from pair 0.4 to pair 4.2 of 6: some kept, some blended, some slowed down.
YARN = YarnConfig(factor=8.0, original_context=16, beta_fast=2.0, beta_slow=0.16)
MOE = MoEConfig(5, 3)
GPT2_SIZES = {
    "vocab_size": 41, "d_model": 30, "n_layers": 2, "n_heads": 5, "n_kv_heads": 5, "head_dim": 6,
    "d_ff": 44, "context": 73,
}  # fmt: skip
SIZES = {
    "vocab_size": 41, "d_model": 20, "n_layers": 2, "n_heads": 6, "n_kv_heads": 6, "head_dim": 12,
    "d_ff": 14, "context": 128, "rope_theta": 50.0,
}  # fmt: skip
YARN_SIZES = {**SIZES, "yarn": YARN}
# Classes whose heads fill the width: head_dim = d_model / n_heads.
SQUARE_SIZES = {
    **YARN_SIZES, "d_model": 32, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "d_ff": 10
}  # fmt: skip
CLAMPED_SIZES = {**YARN_SIZES, "swiglu_limit": 2.5}
MOE_SIZES = {**CLAMPED_SIZES, "moe": MOE}
GQA_SIZES = {**MOE_SIZES, "n_kv_heads": 2}
WINDOW_SIZES = {**GQA_SIZES, "sliding_window": 7}
SINK_SIZES = {**WINDOW_SIZES, "moe": MoEConfig(5, 3, router_bias=True)}
# Rows that can be cut into MXFP4 blocks of 32.
PACKED_SIZES = {**SINK_SIZES, "d_model": 32, "d_ff": 64}
# The published head width, rotation, window and clamp stay.
REAL_SIZES = {
    "vocab_size": 17, "d_model": 32, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "d_ff": 96,
    "moe": MoEConfig(7, 4, router_bias=True),
}  # fmt: skip
QWEN3_SIZES = {
    **SIZES, "n_kv_heads": 2, "moe": MoEConfig(7, 3), "dtype": "float32", "expert_dtype": "float32"
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One comparison: which rung, which class, and what makes them meet."""

    name: str  # of the file
    rung: str
    published: str
    sizes: dict[str, Any]
    why: str
    changes: dict[str, Any] = field(default_factory=dict)  # switches that the class lacks
    zero: str = "$^"  # parameters that the class lacks, held at zero
    setup: str = ""
    length: int = 72
    training: bool = False
    gain: float = 1.0  # on what goes into the activation

    @property
    def config(self) -> ModelConfig:
        rungs = {rung.name: rung.config for rung in LADDER} | {
            "Qwen3-MoE": PRESETS["qwen3-30b-a3b"]
        }
        return rungs[self.rung].but(**{**self.sizes, **self.changes})


UNCLAMPED = 0.6  # a product without a clamp gets long tails, and rounding errors with it
NO_BIASES = {"attn_bias": False, "ffn_bias": False}
NORM_BIASES = r"norm\.bias$"
LAST_NORM_BIAS = r"^norm\.bias$"
NO_SINKS = "its sinks at minus infinity"
FOLDED = (
    "LayerNorm folded into its weights: what writes to the stream has its mean taken out, and each "
    "norm's bias is carried into the next matrix's bias"
)

CASES = (
    Case("gpt-2.gpt2", "GPT-2", "GPT2LMHeadModel", GPT2_SIZES, "the starting point itself"),
    Case(
        "no-dropout.gpt2", "no dropout", "GPT2LMHeadModel", GPT2_SIZES,
        "both run in training mode, where dropout would act",
        training=True,
    ),
    Case(
        "rope.starcoder2", "RoPE", "Starcoder2ForCausalLM", SIZES,
        "GPT-2's blocks with rotated queries and keys",
    ),
    Case(
        "yarn.starcoder2", "YaRN", "Starcoder2ForCausalLM", YARN_SIZES,
        "positions run to 4.5 times the original context",
    ),
    Case(
        "swiglu.stablelm", "SwiGLU", "StableLmForCausalLM", SQUARE_SIZES,
        "gate and up keep their places; only biases are left out",
        changes={"ffn_bias": False}, zero=r"attn\.o\.bias$", gain=UNCLAMPED,
        setup="its rotation over the whole head (partial_rotary_factor=1)",
    ),
    Case(
        "clamped-swiglu.gpt-oss", "clamped SwiGLU", "GptOssForCausalLM", CLAMPED_SIZES,
        "one dense MLP is a mixture of one expert",
        zero=LAST_NORM_BIAS, setup=f"with one expert, {NO_SINKS}, {FOLDED}",
    ),
    Case(
        "mixture-of-experts.gpt-oss", "mixture of experts", "GptOssForCausalLM", MOE_SIZES,
        "router, top-k and the experts' biases, all on LayerNorm",
        zero=LAST_NORM_BIAS, setup=f"{NO_SINKS}, {FOLDED}",
    ),
    Case(
        "mixture-of-experts.dbrx", "mixture of experts", "DbrxForCausalLM",
        {**SQUARE_SIZES, "moe": MOE},
        "a published LayerNorm mixture; routing and mixing do not depend on the activation",
        changes={"ffn": "swiglu", **NO_BIASES}, zero=NORM_BIASES, gain=UNCLAMPED,
        setup="its head a copy of the embedding, its clipping of q, k and v out of reach",
    ),
    Case(
        "grouped-query-attention.gpt-oss", "grouped-query attention", "GptOssForCausalLM",
        GQA_SIZES, "6 query heads on 2 key/value heads, on LayerNorm",
        zero=LAST_NORM_BIAS, setup=f"{NO_SINKS}, {FOLDED}",
    ),
    Case(
        "grouped-query-attention.dbrx", "grouped-query attention", "DbrxForCausalLM",
        {**SQUARE_SIZES, "moe": MOE, "n_kv_heads": 2},
        "a published LayerNorm model with grouped queries; heads do not depend on the activation",
        changes={"ffn": "swiglu", **NO_BIASES}, zero=NORM_BIASES, gain=UNCLAMPED,
        setup="its head a copy of the embedding, its clipping of q, k and v out of reach",
    ),
    Case(
        "sliding-window.gpt-oss", "sliding window", "GptOssForCausalLM", WINDOW_SIZES,
        "sliding and full layers in turn, over 10 windows, on LayerNorm",
        zero=LAST_NORM_BIAS, setup=f"{NO_SINKS}, {FOLDED}",
    ),
    Case(
        "sliding-window.starcoder2", "sliding window", "Starcoder2ForCausalLM",
        {**YARN_SIZES, "n_kv_heads": 2, "sliding_window": 7},
        "a published LayerNorm model with the same window, though in every layer",
        changes={"layer_pattern": "S", "ffn": "gelu", "moe": None},
    ),
    Case(
        "rmsnorm.gpt-oss", "RMSNorm", "GptOssForCausalLM", WINDOW_SIZES,
        "the norm as it is, no longer by way of LayerNorm",
        setup=f"{NO_SINKS}, its router's bias at zero",
    ),
    Case(
        "rmsnorm.mixtral", "RMSNorm", "MixtralForCausalLM", WINDOW_SIZES,
        "another published RMSNorm mixture with a window; it casts first, the same in float32",
        changes={"ffn": "swiglu", "layer_pattern": "S", **NO_BIASES}, gain=UNCLAMPED,
    ),
    Case(
        "sinks-and-router-bias.gpt-oss", "sinks and router bias", "GptOssForCausalLM", SINK_SIZES,
        "sinks and every bias are random",
    ),
    Case(
        "untied-head.gpt-oss", "untied head", "GptOssForCausalLM", SINK_SIZES,
        "embedding and head are two random matrices",
    ),
    Case(
        "mxfp4.gpt-oss", "MXFP4", "GptOssForCausalLM", PACKED_SIZES,
        "the same bytes, decoded here and there by each library's own code",
    ),
    Case(
        "gpt-oss-20b.gpt-oss", "gpt-oss-20b", "GptOssForCausalLM", REAL_SIZES,
        "published head width, rotation, window and clamp, over 4 windows; other sizes are tiny",
        length=520, gain=2.2,
    ),
    Case(
        "qwen3-moe.qwen3-moe", "Qwen3-MoE", "Qwen3MoeForCausalLM", QWEN3_SIZES,
        "its norm of queries and keys, and softmax before the choice",
        gain=UNCLAMPED,
    ),
)  # fmt: skip


# --- our side ------------------------------------------------------------------------------------


# With default initialisation most bugs are invisible: biases and sinks are zero, norms are one and
# the clamp never bites. Pattern of the name: (centre, scale, whether to divide by sqrt(inputs)).
SCALES = {
    r"norm\.weight$": (1.0, 0.3, False),
    r"norm\.bias$": (0.0, 0.3, False),
    r"attn\.[qk]\.weight$": (0.0, 0.6, True),  # a softmax that is neither flat nor all on one key
    r"attn\.[qk]\.bias$": (0.0, 0.3, False),
    r"sinks$": (1.0, 1.5, False),
    r"bias$": (0.0, 0.5, False),
    r"^embed\.weight$": (0.0, 0.03, False),  # small, so that the norm's eps counts
    r"^positions\.weight$": (0.0, 0.02, False),
    r"up\.weight$": (0.0, 1.6, True),  # so large that the clamp bites
    r"down\.weight$": (0.0, 0.6, True),
    r"router\.weight$": (0.0, 2.0, True),  # so that its choice is clear
    r"weight$": (0.0, 1.0, True),
}


def draw(case: Case, seed: int) -> Reference:
    """Draw a model in which every mistake shows, its weights bfloat16 numbers; no logits yet."""
    c = case.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(c.vocab_size, (2, case.length), generator=generator)
    model = randomise(Transformer(c), case, generator).eval()
    with torch.no_grad():
        spread = model(ids).std()
        # A tied table stays small, for the norm's eps to count, and the last norm makes up.
        for parameter in model.norm.parameters() if c.tied else [model.unembed.weight]:
            parameter /= spread
    weights = {
        name: value.bfloat16().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in model.state_dict().items()
        if not (c.tied and name == "unembed.weight")
    }
    return Reference(
        rung=case.rung,
        published=case.published,
        config=c,
        weights=weights,
        tokens=ids,
        logits=torch.zeros(*ids.shape, c.vocab_size),
        training=case.training,
        setup=case.setup and f"{case.published}: {case.setup}",
        why=case.why,
        made_by=f"tools/make_references.py, transformers {transformers.__version__}",
    )


def randomise(model: Transformer, case: Case, generator: torch.Generator) -> Transformer:
    """Draw every parameter anew, none at a value that hides it, and pack experts if need be."""
    for name, parameter in model.named_parameters():
        scales = next(row for pattern, row in SCALES.items() if re.search(pattern, name))
        centre, scale, by_inputs = scales
        scale *= case.gain if "ffn.up" in name else 1.0
        scale /= math.sqrt(parameter.shape[-1]) if by_inputs else 1.0
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = centre + scale * noise
        if re.search(case.zero, name):
            parameter.data.zero_()
    if case.config.expert_dtype == "mxfp4":
        for block in model.blocks:
            for name in ("up", "down"):
                dense = getattr(block.ffn, name)
                packed = PackedExpertLinear(*quantize(dense.weight.detach()), dense.bias.detach())
                setattr(block.ffn, name, packed)
    return model


def make(case: Case, seed: int = 0, limit: float = TOLERANCE / 3) -> Reference:
    """Return the reference of the first good seed, from `seed` on in steps of 100.

    Good means that no two experts are nearly tied, and that rounding differently, as another
    machine may, moves the logits by less than `limit`.
    """
    for attempt in range(seed, seed + 2_000, 100):
        reference = draw(case, attempt)
        if case.config.moe and router_margin(reference) < MARGIN:
            continue
        reference = Reference(**{**vars(reference), "logits": published_logits(reference)})
        if rounding(reference) < limit:
            return reference
    raise ValueError(f"{case.name}: no seed gives a model that is safe from rounding")


def router_margin(reference: Reference) -> float:
    """Return the smallest gap between the last chosen expert and the first one left out."""
    model = rebuild(reference)
    with torch.no_grad(), trace(model, "router_logits") as seen:
        model(reference.tokens)
    last = reference.config.moe.n_active
    ordered = [logits.sort(descending=True).values for logits in seen.per_layer("router_logits")]
    return min((x[:, last - 1] - x[:, last]).min().item() for x in ordered)


def rounding(reference: Reference) -> float:
    """Return how far the published logits move if our float64 model computes them."""
    with torch.no_grad():
        wide = rebuild(reference).double()(reference.tokens)
    return (wide - reference.logits).abs().max().item()


# --- their side ----------------------------------------------------------------------------------


def published_logits(reference: Reference) -> Tensor:
    """Compute a reference's logits with its published class."""
    builder = BUILDERS[reference.published]
    ours = {n: w.float() if w.is_floating_point() else w for n, w in reference.weights.items()}
    ours.setdefault("unembed.weight", ours["embed.weight"])
    model, weights = builder(reference.config, ours)
    if lost := [name for name, value in ours.items() if value.any()]:
        raise ValueError(f"{reference.published} was not given {lost}")
    weights = {name: value.contiguous() for name, value in weights.items()}
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return model.train(reference.training)(reference.tokens, use_cache=False).logits


def build(name: str, **settings: Any) -> nn.Module:
    """Build a class of transformers; which operations it uses does not depend on the machine."""
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return getattr(transformers, name)(config(**settings, **eager, dtype=torch.float32))


def shared_settings(c: ModelConfig) -> dict[str, Any]:
    """Return the settings that all classes but GPT-2's and DBRX's call by the same names."""
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.context,
        "sliding_window": c.sliding_window,
        "tie_word_embeddings": c.tied,
        "rope_parameters": rope_settings(c),
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def rope_settings(c: ModelConfig) -> dict[str, Any]:
    if c.yarn is None:
        return {"rope_type": "default", "rope_theta": c.rope_theta}
    numbers = asdict(c.yarn)
    original = {"original_max_position_embeddings": numbers.pop("original_context")}
    return {"rope_type": "yarn", "rope_theta": c.rope_theta, **numbers, **original}


def shared_weights(c: ModelConfig, ours: Weights) -> Weights:
    """Take from ours the weights whose names all classes but GPT-2's and DBRX's share."""
    pairs = {
        "model.embed_tokens": "embed",
        "lm_head": "unembed",
        "model.norm": "norm",
    }
    for n in range(c.n_layers):
        theirs, mine = f"model.layers.{n}.", f"blocks.{n}."
        pairs[f"{theirs}input_layernorm"] = f"{mine}attn_norm"
        pairs[f"{theirs}post_attention_layernorm"] = f"{mine}ffn_norm"
        for letter in "qkvo":
            pairs[f"{theirs}self_attn.{letter}_proj"] = f"{mine}attn.{letter}"
    return take(ours, pairs)


def take(ours: Weights, pairs: dict[str, str]) -> Weights:
    """Move weight and bias of each of our modules to the name of theirs."""
    return {
        f"{theirs}.{part}": ours.pop(f"{mine}.{part}")
        for theirs, mine in pairs.items()
        for part in ("weight", "bias")
        if f"{mine}.{part}" in ours
    }


def per_layer(c: ModelConfig, pairs: dict[str, str]) -> dict[str, str]:
    return {
        theirs.format(n): f"blocks.{n}.{mine}"
        for n in range(c.n_layers)
        for theirs, mine in pairs.items()
    }


def gpt2(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.context,
        n_embd=c.d_model,
        n_layer=c.n_layers,
        n_head=c.n_heads,
        n_inner=c.d_ff,
        layer_norm_epsilon=c.norm_eps,
        attn_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        resid_pdrop=c.dropout,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
        dtype=torch.float32,
    )
    ends = {"transformer.wte": "embed", "transformer.wpe": "positions", "lm_head": "unembed"}
    weights = take(ours, {**ends, "transformer.ln_f": "norm"})
    h = "transformer.h.{}."
    norms = {f"{h}ln_1": "attn_norm", f"{h}ln_2": "ffn_norm"}
    weights |= take(ours, per_layer(c, norms))
    for n in range(c.n_layers):
        for part in ("weight", "bias"):
            rows = [ours.pop(f"blocks.{n}.attn.{letter}.{part}") for letter in "qkv"]
            ours[f"blocks.{n}.attn.qkv.{part}"] = torch.cat(rows)
    linear = {  # theirs: [in, out]
        f"{h}attn.c_attn": "attn.qkv",
        f"{h}attn.c_proj": "attn.o",
        f"{h}mlp.c_fc": "ffn.up",
        f"{h}mlp.c_proj": "ffn.down",
    }
    for name, value in take(ours, per_layer(c, linear)).items():
        weights[name] = value.mT if value.ndim == 2 else value
    return transformers.GPT2LMHeadModel(config), weights


def starcoder2(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    model = build(
        "Starcoder2ForCausalLM", **shared_settings(c), norm_epsilon=c.norm_eps, use_bias=c.attn_bias
    )
    mlp = {"model.layers.{}.mlp.c_fc": "ffn.up", "model.layers.{}.mlp.c_proj": "ffn.down"}
    return model, shared_weights(c, ours) | take(ours, per_layer(c, mlp))


def stablelm(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    settings = shared_settings(c)
    settings["rope_parameters"]["partial_rotary_factor"] = 1.0
    model = build(
        "StableLmForCausalLM", **settings, layer_norm_eps=c.norm_eps, use_qkv_bias=c.attn_bias
    )
    held = {name: ours.pop(name) for name in list(ours) if name.endswith("attn.o.bias")}
    weights = shared_weights(c, ours)
    ours |= held  # it has none: they must be zero
    for n in range(c.n_layers):
        mlp = f"model.layers.{n}.mlp."
        gate, up = ours.pop(f"blocks.{n}.ffn.up.weight").chunk(2)
        weights |= {f"{mlp}gate_proj.weight": gate, f"{mlp}up_proj.weight": up}
        weights[f"{mlp}down_proj.weight"] = ours.pop(f"blocks.{n}.ffn.down.weight")
    return model, weights


def dbrx(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    model = build(
        "DbrxForCausalLM",
        vocab_size=c.vocab_size,
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        max_seq_len=c.context,
        rope_parameters=rope_settings(c),
        attn_config={"kv_n_heads": c.n_kv_heads, "rope_theta": c.rope_theta, "clip_qkv": 1e9},
        ffn_config={
            "ffn_hidden_size": c.d_ff,
            "moe_num_experts": c.moe.n_experts,
            "moe_top_k": c.moe.n_active,
        },
    )
    ends = {"transformer.wte": "embed", "transformer.norm_f": "norm", "lm_head": "unembed"}
    block = "transformer.blocks.{}."
    pairs = {
        f"{block}norm_attn_norm.norm_1": "attn_norm",
        f"{block}norm_attn_norm.norm_2": "ffn_norm",
        f"{block}norm_attn_norm.attn.out_proj": "attn.o",
        f"{block}ffn.router.layer": "ffn.router",
    }
    held = {name: ours.pop(name) for name in list(ours) if name.endswith("norm.bias")}
    weights = take(ours, {**ends, **per_layer(c, pairs)})
    ours |= held  # it has none: they must be zero
    for n in range(c.n_layers):
        theirs, mine = block.format(n), f"blocks.{n}."
        qkv = torch.cat([ours.pop(f"{mine}attn.{letter}.weight") for letter in "qkv"])
        gate, up = ours.pop(f"{mine}ffn.up.weight").chunk(2, dim=1)
        down = ours.pop(f"{mine}ffn.down.weight").mT  # theirs: [in, out]
        weights[f"{theirs}norm_attn_norm.attn.Wqkv.weight"] = qkv
        for name, value in {"w1": gate, "v1": up, "w2": down}.items():
            weights[f"{theirs}ffn.experts.mlp.{name}"] = value.flatten(0, 1)
    return model, weights


def mixtral(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    model = build(
        "MixtralForCausalLM",
        **shared_settings(c),
        rms_norm_eps=c.norm_eps,
        num_local_experts=c.moe.n_experts,
        num_experts_per_tok=c.moe.n_active,
    )
    return model, shared_weights(c, ours) | concatenated_experts(c, ours)


def qwen3_moe(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    model = build(
        "Qwen3MoeForCausalLM",
        **shared_settings(c),
        rms_norm_eps=c.norm_eps,
        attention_bias=c.attn_bias,
        moe_intermediate_size=c.d_ff,
        num_experts=c.moe.n_experts,
        num_experts_per_tok=c.moe.n_active,
        norm_topk_prob=True,
    )
    layer = "model.layers.{}.self_attn."
    norms = {f"{layer}{letter}_norm": f"attn.{letter}_norm" for letter in "qk"}
    weights = shared_weights(c, ours) | take(ours, per_layer(c, norms))
    return model, weights | concatenated_experts(c, ours)


def concatenated_experts(c: ModelConfig, ours: Weights) -> Weights:
    """Take experts for the classes that store them as we do, [E, gate | up, in]."""
    weights = {}
    for n in range(c.n_layers):
        theirs, mine = f"model.layers.{n}.mlp.", f"blocks.{n}.ffn."
        weights[f"{theirs}gate.weight"] = ours.pop(f"{mine}router.weight")
        weights[f"{theirs}experts.gate_up_proj"] = ours.pop(f"{mine}up.weight")
        weights[f"{theirs}experts.down_proj"] = ours.pop(f"{mine}down.weight")
    return weights


def gpt_oss(c: ModelConfig, ours: Weights) -> tuple[nn.Module, Weights]:
    folded = c.norm == "layernorm"
    slides = [c.window(n) is not None for n in range(c.n_layers)]
    settings = {
        **shared_settings(c),
        "tie_word_embeddings": c.tied and not folded,
        "sliding_window": c.sliding_window or 999,  # it wants one even if no layer slides
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
    }
    model = build(
        "GptOssForCausalLM",
        **settings,
        rms_norm_eps=c.norm_eps,
        num_local_experts=c.moe.n_experts if c.moe else 1,
        num_experts_per_tok=c.moe.n_active if c.moe else 1,
        swiglu_alpha=c.swiglu_alpha,
        swiglu_limit=c.swiglu_limit,
        attention_bias=c.attn_bias,
    )
    complete_for_gpt_oss(c, ours)
    if folded:
        fold_layernorm(c, ours)
    weights = shared_weights(c, ours)
    for n in range(c.n_layers):
        theirs, mine = f"model.layers.{n}.", f"blocks.{n}."
        weights[f"{theirs}self_attn.sinks"] = ours.pop(f"{mine}attn.sinks")
        weights |= take(ours, {f"{theirs}mlp.router": f"{mine}ffn.router"})
        experts = f"{theirs}mlp.experts."
        up, down = (ours.pop(f"{mine}ffn.{name}.weight") for name in ("up", "down"))
        weights[f"{experts}gate_up_proj"] = interleaved(up).mT  # theirs: [E, in, out]
        weights[f"{experts}down_proj"] = down.mT
        weights[f"{experts}gate_up_proj_bias"] = interleaved(ours.pop(f"{mine}ffn.up.bias"))
        weights[f"{experts}down_proj_bias"] = ours.pop(f"{mine}ffn.down.bias")
    return model, weights


def interleaved(rows: Tensor) -> Tensor:
    """Turn [E, gate | up, ...] into gate and up rows in turn."""
    gate, up = rows.chunk(2, dim=1)
    return torch.stack((gate, up), dim=2).flatten(1, 2)


def complete_for_gpt_oss(c: ModelConfig, ours: Weights) -> None:
    """Add what gpt-oss has and an earlier rung has not, at values that change nothing."""
    for n in range(c.n_layers):
        attn, ffn = f"blocks.{n}.attn.", f"blocks.{n}.ffn."
        ours.setdefault(f"{attn}sinks", torch.full((c.n_heads,), -torch.inf))
        if c.moe is None:
            ours[f"{ffn}router.weight"] = torch.zeros(1, c.d_model)
            for name in ("up.weight", "up.bias", "down.weight", "down.bias"):
                ours[f"{ffn}{name}"] = ours[f"{ffn}{name}"][None]
        ours.setdefault(f"{ffn}router.bias", torch.zeros(len(ours[f"{ffn}router.weight"])))
        if c.expert_dtype == "mxfp4":
            for name in ("up", "down"):
                parts = [ours.pop(f"{ffn}{name}.{part}") for part in ("blocks", "scales")]
                ours[f"{ffn}{name}.weight"] = decoded_by_transformers(*parts)


def decoded_by_transformers(blocks: Tensor, scales: Tensor) -> Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).mT


def fold_layernorm(c: ModelConfig, ours: Weights) -> None:
    """Rewrite weights so that RMSNorm computes what LayerNorm did, exactly.

    LayerNorm takes the mean out, divides by the root mean square, scales, and adds a bias. If all
    that is added to the stream has mean 0, so has the stream. And a bias b before a matrix W is
    the bias W b after it. The last norm has no bias after it, so its own must be zero.
    """
    for name in ours:
        ours[name] = ours[name].double()
    ours["embed.weight"] = centred(ours["embed.weight"], -1)
    for n in range(c.n_layers):
        attn, ffn = f"blocks.{n}.attn", f"blocks.{n}.ffn"
        for module in (f"{attn}.o", f"{ffn}.down"):
            ours[f"{module}.weight"] = centred(ours[f"{module}.weight"], -2)
            ours[f"{module}.bias"] = centred(ours[f"{module}.bias"], -1)
        shift = ours.pop(f"{attn}_norm.bias")
        for letter in "qkv":
            ours[f"{attn}.{letter}.bias"] += ours[f"{attn}.{letter}.weight"] @ shift
        shift = ours.pop(f"{ffn}_norm.bias")
        for module in ("router", "up"):
            ours[f"{ffn}.{module}.bias"] += ours[f"{ffn}.{module}.weight"] @ shift
    if ours.pop("norm.bias").any():
        raise ValueError("the last norm's bias must be zero")
    for name in ours:
        ours[name] = ours[name].float()


def centred(x: Tensor, axis: int) -> Tensor:
    return x - x.mean(axis, keepdim=True)


BUILDERS: dict[str, Callable[[ModelConfig, Weights], tuple[nn.Module, Weights]]] = {
    "GPT2LMHeadModel": gpt2,
    "Starcoder2ForCausalLM": starcoder2,
    "StableLmForCausalLM": stablelm,
    "DbrxForCausalLM": dbrx,
    "MixtralForCausalLM": mixtral,
    "GptOssForCausalLM": gpt_oss,
    "Qwen3MoeForCausalLM": qwen3_moe,
}


# --- files ---------------------------------------------------------------------------------------


def to_bytes(reference: Reference) -> bytes:
    """Return the file of a reference: the order of its tensors is fixed, its metadata one key."""
    about = {**vars(reference), "config": asdict(reference.config)}
    tensors = about.pop("weights")
    tensors = {**tensors, "tokens": about.pop("tokens"), "logits": about.pop("logits")}
    return save(tensors, metadata={"about": json.dumps(about, sort_keys=True)})


def main() -> int:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = {FOLDER / f"{case.name}.safetensors": case for case in CASES}
    for stale in set(FOLDER.glob("*.safetensors")) - set(wanted):
        stale.unlink()
    total, failed = 0, 0
    for path, case in wanted.items():
        reference = make(case)
        data = to_bytes(reference)
        Path(path).write_bytes(data)
        row = compare(reference)
        print(f"{len(data):>8,} bytes  {row}")
        total, failed = total + len(data), failed + (not row.ok)
    print(f"{total:>8,} bytes in {len(wanted)} files")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
