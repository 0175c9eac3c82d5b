"""Qwen3-MoE, number by number, against transformers' Qwen3MoeForCausalLM."""

from collections.abc import Callable

import pytest
import torch

from gptoss_lite import KVCache, MoEConfig, Transformer
from tests.hostile import QWEN3, TOLERANCE, hostile, router_margin, tokens

transformers = pytest.importorskip("transformers")

# name: (config, batch, length)
CASES = {
    "one token": (QWEN3, 2, 1),
    "short": (QWEN3, 2, 13),
    "long": (QWEN3, 2, 64),
    "published theta and head_dim": (QWEN3.but(rope_theta=1e6, head_dim=128), 2, 40),
    "one kv head": (QWEN3.but(n_kv_heads=1), 2, 30),
    "top 1": (QWEN3.but(moe=MoEConfig(7, 1)), 2, 30),
    "all experts": (QWEN3.but(moe=MoEConfig(7, 7)), 2, 30),
    "attention biases": (QWEN3.but(attn_bias=True), 2, 30),
    "tied": (QWEN3.but(tied=True), 2, 30),
}


def reference(model: Transformer) -> torch.nn.Module:
    """Build transformers' model of the same weights, copied by hand."""
    c = model.config
    config = transformers.Qwen3MoeConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=999,  # of dense layers, and there are none
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.context,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        attention_bias=c.attn_bias,
        tie_word_embeddings=c.tied,
        moe_intermediate_size=c.d_ff,
        num_experts_per_tok=c.moe.n_active,
        num_experts=c.moe.n_experts,
        norm_topk_prob=True,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    )
    theirs = transformers.Qwen3MoeForCausalLM(config).eval()
    ours = dict(model.named_parameters())
    ours.setdefault("unembed.weight", model.embed.weight)
    weights = {
        "model.embed_tokens.weight": ours["embed.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["unembed.weight"],
    }
    for layer in range(c.n_layers):
        a, b = f"model.layers.{layer}.", f"blocks.{layer}."
        weights[f"{a}input_layernorm.weight"] = ours[f"{b}attn_norm.weight"]
        weights[f"{a}post_attention_layernorm.weight"] = ours[f"{b}ffn_norm.weight"]
        weights[f"{a}self_attn.q_norm.weight"] = ours[f"{b}attn.q_norm.weight"]
        weights[f"{a}self_attn.k_norm.weight"] = ours[f"{b}attn.k_norm.weight"]
        for letter in "qkvo":
            weights[f"{a}self_attn.{letter}_proj.weight"] = ours[f"{b}attn.{letter}.weight"]
            if c.attn_bias:
                weights[f"{a}self_attn.{letter}_proj.bias"] = ours[f"{b}attn.{letter}.bias"]
        weights[f"{a}mlp.gate.weight"] = ours[f"{b}ffn.router.weight"]
        # Theirs are [E, out, in] with gate rows first, as ours.
        weights[f"{a}mlp.experts.gate_up_proj"] = ours[f"{b}ffn.up.weight"]
        weights[f"{a}mlp.experts.down_proj"] = ours[f"{b}ffn.down.weight"]
    weights = {name: value.detach().contiguous() for name, value in weights.items()}
    theirs.load_state_dict(weights, strict=True)
    return theirs


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(
    case: str, record_property: Callable[[str, object], None]
) -> None:
    config, batch, length = CASES[case]
    model = hostile(config)
    ids = tokens(config, batch, length)
    assert router_margin(model, ids) > 1e-4
    with torch.no_grad():
        ours, theirs = model(ids), reference(model)(ids, use_cache=False).logits
    difference = (ours - theirs).abs().max().item()
    record_property("difference", difference)
    record_property("logits_std", ours.std().item())
    print(f"{case}: difference {difference:.1e}, logits std {ours.std():.2f}")
    assert 0.5 < ours.std() < 2
    assert difference <= TOLERANCE


def test_cached_steps_equal_cached_steps_of_transformers() -> None:
    model = hostile(QWEN3)
    theirs = reference(model)
    cache, past, worst = KVCache(QWEN3), None, 0.0
    with torch.no_grad():
        for chunk in tokens(QWEN3, 2, 40).split([7, 1, 20, *[1] * 12], dim=1):
            output = theirs(chunk, past_key_values=past, use_cache=True)
            past = output.past_key_values
            worst = max(worst, (model(chunk, cache) - output.logits).abs().max().item())
    print(f"cached: difference {worst:.1e}")
    assert worst <= TOLERANCE
