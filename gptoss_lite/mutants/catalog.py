"""The mistakes: each with a name, the model it is planted in, and what plants it.

Those with a description are the exhibits of the book's bug museum. `seen` says where the mistake
was made, or is easily made, in public; `hides` says which tests cannot see it. To add a mistake,
add a row; the tests then ask that it moves the logits.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gptoss_lite import ffn
from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig
from gptoss_lite.mutants import stand_ins as wrong
from gptoss_lite.mutants.hostile import (
    GPT2,
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    TOLERANCE,
    VISIBLE,
)
from gptoss_lite.mutants.stand_ins import Plant, change, swap

PARTS = {
    "positions": "Positions",
    "attention": "Attention",
    "experts": "MLP and experts",
    "mxfp4": "MXFP4",
    "norms": "Norms and block",
    "loading": "Loading",
}
REFERENCE = re.compile(r"[\w.-]+/[\w.-]+#\d+")  # of an issue or a pull request on GitHub


@dataclass(frozen=True, eq=False)  # equal to itself only, and so a key for caches
class Mutant:
    """One mistake: the right model, and what makes it wrong."""

    name: str
    part: str  # a key of PARTS
    config: ModelConfig
    plant: Plant
    what: str = ""  # what is wrong, in a sentence or two; exhibits only
    seen: str = ""  # where it was made in public; `owner/repository#number` becomes a link
    hides: str = ""  # which tests cannot see it
    needs_cache: bool = False  # shows only when a prompt goes through in several calls
    visible: float = VISIBLE  # how far it must move the logits

    @property
    def references(self) -> tuple[str, ...]:
        """The public issues and pull requests that `seen` names."""
        return tuple(REFERENCE.findall(self.seen))


def _yarn(original: int = 16, fast: float = 2.0, slow: float = 0.25, **more: bool) -> Plant:
    return change(yarn=YarnConfig(8.0, original, fast, slow, **more))


SHORT = "Every prompt that is no longer than the window."
ONE_CALL = "Every test that puts the whole prompt through in one call."
ZEROS = "Initial weights: the biases are zero."

# --- the exhibits --------------------------------------------------------------------------------

EXHIBITS: tuple[Mutant, ...] = (
    Mutant(
        "YaRN's ramp rounded",
        "positions",
        GPT_OSS,
        _yarn(truncate=True),
        what="The two ends of YaRN's ramp are rounded to whole pairs. gpt-oss's file says not to.",
        seen="vllm-project/vllm#27722 (mended in vllm-project/vllm#28244) and "
        "sgl-project/sglang#14270. ggml, below llama.cpp, always rounds.",
        hides="Short prompts: only the slower pairs change, and they have hardly turned yet.",
    ),
    Mutant(
        "no YaRN",
        "positions",
        GPT_OSS,
        change(yarn=None),
        what="Plain RoPE: the scaling is looked up under a key that the file does not have.",
        seen="NVIDIA/TensorRT-Model-Connect#399: read `rope_parameters`, the file says "
        "`rope_scaling`; fine up to 128 tokens.",
        hides="Short prompts with small weights: nearly every angle is still small.",
    ),
    Mutant(
        "YaRN without attention factor",
        "positions",
        GPT_OSS,
        wrong.frequencies(factor_power=0.0),
        what="The frequencies are right, but cosines and sines are not stretched by "
        "0.1 ln(factor) + 1.",
        seen="NVIDIA/TensorRT-Model-Connect#399: its YaRN table had no such factor.",
        hides="Tests of the frequencies alone.",
    ),
    Mutant(
        "pairs interleaved, not halves",
        "positions",
        GPT_OSS,
        wrong.rotate(interleaved=True),
        what="Pairs (0, 1), (2, 3) ... are turned, not (i, i + half). Both are RoPE; the weights "
        "fit one.",
        seen="No bug report. OpenAI's converter to its Metal format permutes the rows for the "
        "other pairing.",
        hides="Tests of the rotation alone: lengths and relative angles are as they should be.",
    ),
    Mutant(
        "positions restart in every call",
        "positions",
        GPT_OSS,
        wrong.positions_restart(),
        what="Positions count from 0 in each call, not from the number of cached tokens.",
        seen="A trap, not a report.",
        hides=ONE_CALL,
        needs_cache=True,
    ),
    Mutant(
        "window one too wide",
        "attention",
        GPT_OSS,
        change(sliding_window=8),
        what="A sliding layer sees one key too many: 129 in gpt-oss. 128 counts the token itself.",
        seen="NVIDIA/Megatron-LM#2771, NVIDIA-NeMo/Megatron-Bridge#2656 and ml-explore/mlx-lm#390.",
        hides=SHORT + " gpt-oss needs 129 tokens.",
    ),
    Mutant(
        "no window",
        "attention",
        GPT_OSS,
        change(sliding_window=None, layer_pattern="F"),
        what="Every layer sees everything.",
        seen="NVIDIA/TensorRT-Model-Connect#399: all layers got the same mask.",
        hides=SHORT,
    ),
    Mutant(
        "odd layers slide",
        "attention",
        GPT_OSS,
        change(layer_pattern="FS"),
        what="The right half of the layers is the wrong half: in gpt-oss layer 0 slides.",
        seen='A trap: "half of the layers" does not say which.',
        hides=SHORT,
    ),
    Mutant(
        "kv heads tiled, not grouped",
        "attention",
        GPT_OSS,
        wrong.attend(heads="tiled"),
        what="Query head j reads kv head j % K instead of j // (H / K).",
        seen="A trap: `repeat` where `repeat_interleave` is meant.",
        hides="Models with as many kv heads as query heads, or with one.",
    ),
    Mutant(
        "query heads divided by K",
        "attention",
        GPT_OSS.but(n_heads=8, n_kv_heads=4),
        wrong.attend(heads="divided by K"),
        what="Query head j reads kv head j // K instead of j // (H / K).",
        seen="The Triton model of openai/gpt-oss has these two axes exchanged, and is right: its "
        "H / K equals its K.",
        hides="gpt-oss itself, at both sizes: 64 / 8 is 8.",
    ),
    Mutant(
        "no key bias",
        "attention",
        GPT_OSS,
        wrong.attention_forward(no_key_bias=True),
        what='The key\'s bias is left out as "redundant". With RoPE or a sink it is not.',
        seen="A claim that this book checks, C25.",
        hides=ZEROS,
    ),
    Mutant(
        "no sinks",
        "attention",
        GPT_OSS,
        change(sinks=False),
        what="A plain softmax: the learned sinks are not loaded, or not handed on.",
        seen="TransformerLensOrg/TransformerLens#1618.",
        hides="Tests that look at shapes or at fluent text only.",
    ),
    Mutant(
        "sink renormalized away",
        "attention",
        GPT_OSS,
        wrong.attend(renormalize=True),
        what="The sink takes its share, and then the rest is divided by its sum: nothing is left "
        "of it.",
        seen="A trap: rows that sum to less than 1 look like a bug to mend.",
        hides="A test that rows sum to 1. It even demands this bug.",
    ),
    Mutant(
        "sink added to the first token",
        "attention",
        GPT_OSS,
        wrong.attend(sink_on_first_token=True),
        what="The sink is added to the score of the first key instead of having a column.",
        seen="A reading of popular descriptions, which call sinks biases of the scores.",
        hides="A picture of attention: in many models the first token draws attention anyway.",
    ),
    Mutant(
        "sink fixed at 0 (off by one)",
        "attention",
        GPT_OSS,
        wrong.attend(sink_scale=0.0),
        what="1 is added to the softmax's denominator, whatever was learned.",
        seen='A trap: this is "softmax off by one", a relative of the learned sink.',
        hides="Initial weights: a sink of 0 is exactly this.",
    ),
    Mutant(
        "mask of a later piece starts at 0",
        "attention",
        GPT_OSS,
        wrong.attend(chunk_from_start=True),
        what="When several new tokens meet a filled cache, the causal mask is aligned with the "
        "first key, not with the last.",
        seen="rasbt/LLMs-from-scratch#1013 (a prompt read in several pieces).",
        hides="A whole prompt in one call, and single tokens after it: the two usual cases.",
        needs_cache=True,
    ),
    Mutant(
        "cache forgets one key too early",
        "attention",
        GPT_OSS,
        wrong.sliding_cache_keeps(n_fewer=1),
        what="A sliding layer's cache keeps window - 2 old keys. The new token makes window - 1.",
        seen="A trap: does the window count the new token?",
        hides=ONE_CALL,
        needs_cache=True,
    ),
    Mutant(
        "no + 1",
        "experts",
        GPT_OSS,
        wrong.clamped_swiglu(plus_one=False),
        what="gate * sigmoid(alpha gate) * up: the usual SwiGLU, without gpt-oss's up + 1.",
        seen="The generic snippet that articles print as gpt-oss's.",
        hides="Nothing, once logits are compared at all.",
    ),
    Mutant(
        "gate and up interleaved",
        "experts",
        GPT_OSS,
        wrong.clamped_swiglu(interleaved=True),
        what="The activation takes features in turn (gate, up, gate ...), the weights are in "
        "halves; or the other way around.",
        seen="ROCm/ATOM#885: the kernel expected rows in turn and got halves.",
        hides="Nothing numeric. All shapes are right, so a test of shapes is content.",
    ),
    Mutant(
        "alpha 1 (plain silu)",
        "experts",
        GPT_OSS,
        change(swiglu_alpha=1.0),
        what="sigmoid(gate) instead of sigmoid(1.702 gate).",
        seen='A trap: gpt-oss\'s config.json says `hidden_act: "silu"`, and it is not computed.',
        hides="A loose tolerance.",
    ),
    Mutant(
        "gate not clamped",
        "experts",
        GPT_OSS,
        wrong.clamped_swiglu(clamp_gate=False),
        what="The clamp at 7 is left out for the gate.",
        seen="A trap: the limit is a constant that rarely bites.",
        hides="Initial weights: no feature comes near the limit.",
    ),
    Mutant(
        "no router bias",
        "experts",
        GPT_OSS,
        change(moe=MoEConfig(5, 3, router_bias=False)),
        what="The router's bias is not loaded.",
        seen="A trap: Qwen3's router has none.",
        hides=ZEROS,
    ),
    Mutant(
        "softmax before top-k",
        "experts",
        GPT_OSS,
        wrong.route(how="softmax of all"),
        what="The weights are taken from a softmax over all experts, and no longer sum to 1.",
        seen="A trap: the order is right in Qwen3, which divides by the sum afterwards.",
        hides="A model whose experts are all active.",
    ),
    Mutant(
        "Qwen3 without renormalizing",
        "experts",
        QWEN3,
        wrong.route(how="softmax of all"),
        what="Qwen3's weights after a softmax over all experts are not divided by their sum.",
        seen="A trap: `norm_topk_prob` is true in the published file and False in the class's "
        "defaults.",
        hides="A test that builds the model from the defaults, on both sides.",
    ),
    Mutant(
        "expert biases not weighted",
        "experts",
        GPT_OSS,
        wrong.expert_bias_not_weighted(),
        what="Each chosen expert's output bias is added in full, not times the router's weight.",
        seen="A trap: the bias is added after the weighted product.",
        hides=ZEROS,
    ),
    Mutant(
        "nibbles swapped",
        "mxfp4",
        GPT_OSS_MXFP4,
        wrong.byte_table(swap_nibbles=True),
        what="The high half of each byte comes first.",
        seen="A trap: nothing in the file says which half comes first.",
        hides="Tests of the mean, the spread or the histogram of the weights.",
    ),
    Mutant(
        "nibbles in GGUF's order",
        "mxfp4",
        GPT_OSS_MXFP4,
        wrong.dequantize(halves=True),
        what="A block's low halves first, then its high halves: how GGUF orders the same 16 bytes.",
        seen="kekzl/imp#567 (the same confusion, the other way around).",
        hides="A round trip through one's own quantizer, if both make the mistake.",
    ),
    Mutant(
        "scale bias off by two",
        "mxfp4",
        GPT_OSS_MXFP4,
        wrong.scale_table(bias=129),
        what="The scale byte's bias differs by 2 between writer and reader: weights come out a "
        "quarter as large.",
        seen="vllm-project/compressed-tensors#538 stored scales with bias 125, and readers "
        "expect 127. vllm-project/vllm#43557 mended how a kernel computes scales.",
        hides="A round trip through one's own quantizer, again.",
    ),
    Mutant(
        "eps outside the root",
        "norms",
        GPT_OSS,
        wrong.rms_norm(eps_outside=True),
        what="sqrt(mean square) + eps instead of sqrt(mean square + eps).",
        seen="A trap.",
        hides="A residual stream that is not small: eps is lost beside it.",
    ),
    Mutant(
        "1 + scale",
        "norms",
        GPT_OSS,
        wrong.rms_norm(one_plus=True),
        what="The norm multiplies by 1 + scale, as some other models do.",
        seen="A trap: gpt-oss's scale is used as it is.",
        hides="Nothing, once logits are compared.",
    ),
    Mutant(
        "q and k norm after the rotation",
        "norms",
        QWEN3,
        wrong.attention_forward(norm_after_rotation=True),
        what="Qwen3's norm of queries and keys comes after RoPE instead of before it.",
        seen="A trap.",
        hides="Initial weights: with all scales equal, a rotation and the norm commute.",
    ),
    Mutant(
        "down matrix transposed",
        "loading",
        GPT_OSS.but(d_ff=24),
        wrong.transposed("ffn.down.weight"),
        what="The experts' down matrix is turned once too often, or not often enough.",
        seen="A trap: OpenAI keeps [out, in], transformers keeps [in, out] in memory, and in "
        "gpt-oss both are 2880.",
        hides="No test of shapes can see it where hidden and inner width are equal.",
    ),
    Mutant(
        "layers in text order",
        "loading",
        GPT_OSS.but(n_layers=11),
        wrong.layers_as_text(),
        what="Layers are stacked in the order of their names: 0, 1, 10, 2 ...",
        seen="A trap: gpt-oss's files list the layers so.",
        hides="Every model of ten layers or fewer.",
    ),
    Mutant(
        "GPT-2's square matrix not turned",
        "loading",
        GPT2,
        wrong.transposed("attn.o.weight"),
        what="GPT-2 stores [in, out]. Most matrices stop a loader that forgets it; this one is "
        "square.",
        seen="A trap of GPT-2's `Conv1D` layers.",
        hides="A check that all shapes agree.",
    ),
)

# --- the storage room ----------------------------------------------------------------------------

OTHERS: tuple[Mutant, ...] = (
    Mutant("rotation backwards", "positions", GPT_OSS, wrong.rotate(sign=-1.0)),
    Mutant("half of the rotation forgotten", "positions", GPT_OSS, wrong.rotate(first=0.0)),
    Mutant("half of the rotation backwards", "positions", GPT_OSS, wrong.rotate(first=-1.0)),
    Mutant(
        "queries not rotated",
        "positions",
        GPT_OSS,
        wrong.attention_forward(rotate_queries=False),
    ),
    Mutant("values rotated", "positions", GPT_OSS, wrong.attention_forward(rotate_values=True)),
    Mutant("another theta", "positions", GPT_OSS, change(rope_theta=51.0)),
    Mutant(
        "YaRN's attention factor once, not on q and k",
        "positions",
        GPT_OSS,
        wrong.frequencies(factor_power=0.5),
    ),
    Mutant("YaRN's ramp upside down", "positions", GPT_OSS, wrong.frequencies(inverted_ramp=True)),
    Mutant(
        "all pairs slowed (linear scaling)",
        "positions",
        GPT_OSS,
        wrong.frequencies(slow_all=True),
    ),
    Mutant("another original context", "positions", GPT_OSS, _yarn(original=17)),
    Mutant("another beta_fast", "positions", GPT_OSS, _yarn(fast=2.2)),
    Mutant("another beta_slow", "positions", GPT_OSS, _yarn(slow=0.3)),
    Mutant("positions from 1", "positions", GPT2, wrong.learned_positions(shift=1)),
    Mutant("window one too narrow", "attention", GPT_OSS, change(sliding_window=6)),
    Mutant("every layer slides", "attention", GPT_OSS, change(layer_pattern="S")),
    Mutant("not causal", "attention", GPT_OSS, wrong.attend(causal=False)),
    Mutant("kv heads tiled in Qwen3", "attention", QWEN3, wrong.attend(heads="tiled")),
    Mutant("scores not scaled", "attention", GPT_OSS, wrong.attend(scale=lambda width: 1.0)),
    Mutant(
        "scores scaled by 1 / head_dim",
        "attention",
        GPT_OSS,
        wrong.attend(scale=lambda width: 1 / width),
    ),
    Mutant("no attention biases", "attention", GPT_OSS, change(attn_bias=False)),
    Mutant("sink scaled like a score", "attention", GPT_OSS, wrong.attend(sink_scale=1 / 4)),
    Mutant("sink slightly off", "attention", GPT_OSS, wrong.attend(sink_offset=0.05)),
    Mutant("gate and up exchanged", "experts", GPT_OSS, wrong.clamped_swiglu(swapped=True)),
    Mutant("no clamp", "experts", GPT_OSS, change(swiglu_limit=1e9)),
    Mutant("up not clamped", "experts", GPT_OSS, wrong.clamped_swiglu(clamp_up="")),
    Mutant(
        "up clamped from above only", "experts", GPT_OSS, wrong.clamped_swiglu(clamp_up="above")
    ),
    Mutant(
        "sigmoid of the unclamped gate",
        "experts",
        GPT_OSS,
        wrong.clamped_swiglu(activation_of_clamped=False),
    ),
    Mutant("alpha 1.7", "experts", GPT_OSS, change(swiglu_alpha=1.7)),
    Mutant("plain SwiGLU", "experts", GPT_OSS, change(ffn="swiglu")),
    Mutant("one expert fewer", "experts", GPT_OSS, wrong.route(drop=1)),
    Mutant("sigmoid router", "experts", GPT_OSS, wrong.route(how="sigmoid")),
    Mutant("experts weighted equally", "experts", GPT_OSS, wrong.route(how="equal")),
    Mutant("smallest logits chosen", "experts", GPT_OSS, wrong.route(order=torch.neg)),
    Mutant("largest magnitudes chosen", "experts", GPT_OSS, wrong.route(order=torch.abs)),
    Mutant("no expert biases", "experts", GPT_OSS, change(ffn_bias=False)),
    Mutant("clamped SwiGLU in Qwen3", "experts", QWEN3, change(ffn="clamped_swiglu")),
    # The two curves differ by 5e-4 at most, so this one moves 1.3e-6 of rounding to 4e-4 only.
    Mutant("erf GELU", "experts", GPT2, swap(ffn, "gelu", F.gelu), visible=30 * TOLERANCE),
    Mutant(
        "sigmoid GELU",
        "experts",
        GPT2,
        swap(ffn, "gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ),
    Mutant("signs forgotten", "mxfp4", GPT_OSS_MXFP4, wrong.byte_table(sign=-1.0)),
    Mutant(
        "linear codes",
        "mxfp4",
        GPT_OSS_MXFP4,
        wrong.byte_table(table=[*map(float, range(8)), *(-float(n) for n in range(8))]),
    ),
    Mutant("scale bias off by one", "mxfp4", GPT_OSS_MXFP4, wrong.scale_table(bias=128)),
    Mutant("eps ten times smaller", "norms", GPT_OSS, change(norm_eps=1e-6)),
    Mutant("mean subtracted", "norms", GPT_OSS, wrong.rms_norm(centred=True)),
    Mutant("norm without scale", "norms", GPT_OSS, wrong.rms_norm(no_scale=True)),
    Mutant(
        "attention and experts in parallel",
        "norms",
        GPT_OSS,
        wrong.block_forward(parallel=True),
    ),
    Mutant("norm after the sublayer", "norms", GPT_OSS, wrong.block_forward(post_norm=True)),
    Mutant("no q and k norm", "norms", QWEN3, change(qk_norm=False)),
    Mutant(
        "q and k norm over all heads",
        "norms",
        QWEN3,
        wrong.attention_forward(norm_over_all_heads=True),
    ),
    Mutant("unbiased variance", "norms", GPT2, wrong.layer_norm(unbiased=True)),
    Mutant("LayerNorm's eps outside the root", "norms", GPT2, wrong.layer_norm(eps_outside=True)),
    Mutant("LayerNorm without bias", "norms", GPT2, wrong.layer_norm(no_bias=True)),
)

MUTANTS = EXHIBITS + OTHERS

# With nothing wrong, the stand-ins compute what the package does.
CONTROLS: tuple[Mutant, ...] = (
    Mutant("nothing", "positions", GPT_OSS, change()),
    Mutant("rotate", "positions", GPT_OSS, wrong.rotate()),
    Mutant("frequencies", "positions", GPT_OSS, wrong.frequencies()),
    Mutant("learned_positions", "positions", GPT2, wrong.learned_positions()),
    Mutant("attend", "attention", GPT_OSS, wrong.attend()),
    Mutant("attention_forward", "attention", GPT_OSS, wrong.attention_forward()),
    Mutant("attention_forward in Qwen3", "attention", QWEN3, wrong.attention_forward()),
    Mutant("sliding_cache_keeps", "attention", GPT_OSS, wrong.sliding_cache_keeps(n_fewer=0)),
    Mutant("clamped_swiglu", "experts", GPT_OSS, wrong.clamped_swiglu()),
    Mutant("route", "experts", GPT_OSS, wrong.route()),
    Mutant("byte_table", "mxfp4", GPT_OSS_MXFP4, wrong.byte_table()),
    Mutant("scale_table", "mxfp4", GPT_OSS_MXFP4, wrong.scale_table()),
    Mutant("dequantize", "mxfp4", GPT_OSS_MXFP4, wrong.dequantize()),
    Mutant("rms_norm", "norms", GPT_OSS, wrong.rms_norm()),
    Mutant("layer_norm", "norms", GPT2, wrong.layer_norm()),
    Mutant("block_forward", "norms", GPT_OSS, wrong.block_forward()),
    Mutant("layers_as_text", "loading", GPT_OSS, wrong.layers_as_text()),
)


def mutant(name: str) -> Mutant:
    """Find a mistake by its name."""
    return next(m for m in MUTANTS if m.name == name)
