"""gpt-oss, number by number, against transformers' GptOssForCausalLM."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gptoss_lite import KVCache, ModelConfig, MoEConfig, Transformer, YarnConfig, record, trace
from tests.hostile import (
    GPT_OSS,
    TOLERANCE,
    hostile,
    router_margin,
    tokens,
    without_type_checks,
)

transformers = pytest.importorskip("transformers")

# The numbers of the published model, at small sizes otherwise.
REAL_ROPE = GPT_OSS.but(
    head_dim=64,
    context=131_072,
    rope_theta=150_000.0,
    yarn=YarnConfig(factor=32.0, original_context=4_096),
)
# name: (config, batch, length)
CASES = {
    "one token": (GPT_OSS, 2, 1),
    "inside the window": (GPT_OSS, 2, 6),
    "one past the window": (GPT_OSS, 2, 8),
    "many windows": (GPT_OSS, 2, 45),
    "to the end of the stretched context": (GPT_OSS, 1, 128),
    "window 4": (GPT_OSS.but(sliding_window=4), 2, 30),
    "window 1": (GPT_OSS.but(sliding_window=1), 2, 13),
    "full layers slide instead": (GPT_OSS.but(layer_pattern="FS"), 2, 30),
    "every layer slides": (GPT_OSS.but(layer_pattern="S"), 2, 30),
    "uneven pattern": (GPT_OSS.but(layer_pattern="SFF"), 2, 30),
    "no window": (GPT_OSS.but(layer_pattern="F", sliding_window=None), 2, 30),
    "rope only": (GPT_OSS.but(yarn=None), 2, 45),
    "yarn with rounded ends": (
        GPT_OSS.but(yarn=YarnConfig(8.0, 16, 2.0, 0.25, truncate=True)),
        2,
        45,
    ),
    "yarn whose ramp is a step": (
        GPT_OSS.but(yarn=YarnConfig(8.0, 16, 5.0, 3.25, truncate=True)),
        2,
        45,
    ),
    "yarn whose ramp ends before the first pair": (GPT_OSS.but(yarn=YarnConfig(8.0, 1)), 2, 45),
    "yarn of factor 1": (GPT_OSS.but(yarn=YarnConfig(1.0, 16)), 2, 45),
    "as many kv heads as heads": (GPT_OSS.but(n_kv_heads=6), 2, 30),
    "one kv head": (GPT_OSS.but(n_kv_heads=1), 2, 30),
    "top 1 of 5": (GPT_OSS.but(moe=MoEConfig(5, 1, router_bias=True)), 2, 30),
    "all experts": (GPT_OSS.but(moe=MoEConfig(5, 5, router_bias=True)), 2, 30),
    "no attention biases": (GPT_OSS.but(attn_bias=False), 2, 30),
    "tied": (GPT_OSS.but(tied=True), 2, 30),
    "another slope and the published clamp": (
        GPT_OSS.but(swiglu_alpha=1.1, swiglu_limit=7.0),
        2,
        30,
    ),
    "published rope": (REAL_ROPE, 2, 45),
    "published rope and window": (REAL_ROPE.but(n_layers=2, sliding_window=128), 1, 289),
}


def reference(model: Transformer) -> torch.nn.Module:
    """Build transformers' model of the same weights, copied by hand."""
    c = model.config
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.yarn:
        rope |= {
            "rope_type": "yarn",
            "factor": c.yarn.factor,
            "beta_fast": c.yarn.beta_fast,
            "beta_slow": c.yarn.beta_slow,
            "truncate": c.yarn.truncate,
            "original_max_position_embeddings": c.yarn.original_context,
        }
    slides = {"S": "sliding_attention", "F": "full_attention"}
    config = transformers.GptOssConfig(
        num_hidden_layers=c.n_layers,
        num_local_experts=c.moe.n_experts,
        num_experts_per_tok=c.moe.n_active,
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        head_dim=c.head_dim,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        sliding_window=c.sliding_window or 999,  # they need one even if no layer slides
        tie_word_embeddings=c.tied,
        max_position_embeddings=c.context,
        rms_norm_eps=c.norm_eps,
        rope_parameters=rope,
        swiglu_alpha=c.swiglu_alpha,
        swiglu_limit=c.swiglu_limit,
        layer_types=[slides[(c.layer_pattern * c.n_layers)[i]] for i in range(c.n_layers)],
        attention_bias=c.attn_bias,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    )
    theirs = transformers.GptOssForCausalLM(config).eval()
    ours = dict(model.named_parameters())
    ours.setdefault("unembed.weight", model.embed.weight)

    def interleaved(rows: Tensor) -> Tensor:
        """Turn [E, gate | up, ...] into gate and up rows in turn."""
        gate, up = rows.chunk(2, dim=1)
        return torch.stack((gate, up), dim=2).flatten(1, 2)

    weights = {
        "model.embed_tokens.weight": ours["embed.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["unembed.weight"],
    }
    for layer in range(c.n_layers):
        a, b = f"model.layers.{layer}.", f"blocks.{layer}."
        weights[f"{a}input_layernorm.weight"] = ours[f"{b}attn_norm.weight"]
        weights[f"{a}post_attention_layernorm.weight"] = ours[f"{b}ffn_norm.weight"]
        weights[f"{a}self_attn.sinks"] = ours[f"{b}attn.sinks"]
        for part in ("weight", "bias") if c.attn_bias else ("weight",):
            for letter in "qkvo":
                weights[f"{a}self_attn.{letter}_proj.{part}"] = ours[f"{b}attn.{letter}.{part}"]
        for part in ("weight", "bias"):
            weights[f"{a}mlp.router.{part}"] = ours[f"{b}ffn.router.{part}"]
        up, down = interleaved(ours[f"{b}ffn.up.weight"]), ours[f"{b}ffn.down.weight"]
        weights[f"{a}mlp.experts.gate_up_proj"] = up.mT  # theirs: [E, in, out]
        weights[f"{a}mlp.experts.down_proj"] = down.mT
        weights[f"{a}mlp.experts.gate_up_proj_bias"] = interleaved(ours[f"{b}ffn.up.bias"])
        weights[f"{a}mlp.experts.down_proj_bias"] = ours[f"{b}ffn.down.bias"]
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


@pytest.mark.parametrize("start", [4_000, 100_000, 131_040])
def test_logits_far_into_the_context_equal_those_of_transformers(start: int) -> None:
    """Positions up to the last one of the published model, without the tokens before them."""
    model = hostile(REAL_ROPE)
    ids = tokens(REAL_ROPE, 2, 32)
    cache = KVCache(REAL_ROPE)
    cache.n_seen = start
    with torch.no_grad():
        ours = model(ids, cache)
        theirs = reference(model)(
            ids, position_ids=torch.arange(start, start + 32)[None], use_cache=False
        ).logits
    difference = (ours - theirs).abs().max().item()
    print(f"from {start}: difference {difference:.1e}, logits std {ours.std():.2f}")
    assert difference <= TOLERANCE


def test_cached_steps_equal_cached_steps_of_transformers() -> None:
    """Prompt in chunks that straddle the window, then one token at a time."""
    model = hostile(GPT_OSS)
    theirs = reference(model)
    ids = tokens(GPT_OSS, 2, 40)
    cache, past, worst = KVCache(GPT_OSS), None, 0.0
    with torch.no_grad():
        for chunk in ids.split([11, 3, 9, *[1] * 17], dim=1):
            output = theirs(chunk, past_key_values=past, use_cache=True)
            past = output.past_key_values
            worst = max(worst, (model(chunk, cache) - output.logits).abs().max().item())
    print(f"cached: difference {worst:.1e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize(
    "case", ["many windows", "full layers slide instead", "published rope and window"]
)
def test_recorded_sinks_are_what_their_attention_lacks(case: str) -> None:
    """Sink mass = sigmoid(sink - lse), from the recorded numbers; theirs is 1 minus a row's sum.

    Both are float32 sums of up to 289 probabilities, each rounded to 6e-8 of itself at most.
    """
    config, _, length = CASES[case]
    model = hostile(config)
    ids = tokens(config, 1, length)
    with without_type_checks():  # of the tokenizer: only names are asked of it
        run = record(model, SimpleNamespace(token=str), ids[0].tolist())
    with torch.no_grad():
        rows = reference(model)(ids, output_attentions=True, use_cache=False).attentions
    theirs = torch.stack([1 - layer[0].double().sum(-1) for layer in rows])  # [L H T]
    sink, lse = (torch.from_numpy(run.arrays[name]).double() for name in ("sink", "lse"))
    ours = torch.sigmoid(sink[..., None] - lse)
    assert ours.shape == theirs.shape
    window = config.sliding_window
    assert length > 2 * window
    past = (ours - theirs).abs()[..., window:]  # a sliding layer has lost keys there
    for layer in range(config.n_layers):
        kind = "full" if config.window(layer) is None else "sliding"
        print(f"{case}, layer {layer}, {kind}: {past[layer].max():.1e} of {ours[layer].mean():.2f}")
        assert 1e-3 < ours[layer, :, window:].mean() < 0.8  # a thousand tolerances
    assert {config.window(layer) for layer in range(config.n_layers)} == {None, window}
    assert (ours - theirs).abs().max() <= 1e-6
    assert abs(run.arrays["sink_mass"] - theirs.numpy()).max() <= 1e-6


def test_hostile_weights_reach_every_part() -> None:
    """What the parity cases rest on: clamps bite, sinks take a share, experts all work."""
    model = hostile(GPT_OSS)
    ids = tokens(GPT_OSS, 2, 45)
    before_act: list[Tensor] = []
    act = model.blocks[0].ffn.activation

    def watch(x: Tensor) -> Tensor:
        before_act.append(x)
        return act(x)

    model.blocks[0].ffn.activation = watch
    with torch.no_grad(), trace(model, "sink_mass", "expert_ids") as seen:
        model(ids)
    gate, up = torch.cat(before_act).chunk(2, dim=-1)
    limit = GPT_OSS.swiglu_limit
    for outside in (gate > limit, up > limit, up < -limit):
        assert 0.02 < outside.float().mean() < 0.5
    for mass in seen.per_layer("sink_mass"):
        assert 0.05 < mass.mean() < 0.6
    for chosen in seen.per_layer("expert_ids"):
        assert chosen.unique().numel() == GPT_OSS.moe.n_experts
    assert len(_sizes(GPT_OSS)) == len(set(_sizes(GPT_OSS)))


def _sizes(c: ModelConfig) -> list[int]:
    sizes = [c.vocab_size, c.d_model, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff]
    return [*sizes, c.moe.n_experts, c.moe.n_active, c.sliding_window, c.q_per_kv + 100]
