"""GPT-2, number by number, against transformers' GPT2LMHeadModel."""

from collections.abc import Callable

import pytest
import torch

from gptoss_lite import KVCache, Transformer
from tests.hostile import GPT2, TOLERANCE, hostile, tokens

transformers = pytest.importorskip("transformers")

# name: (config, batch, length)
CASES = {
    "one token": (GPT2, 2, 1),
    "short": (GPT2, 2, 13),
    "the whole table": (GPT2, 2, 61),
    "published widths of the MLP": (GPT2.but(d_ff=120), 3, 29),
    "one head": (GPT2.but(n_heads=1, n_kv_heads=1, head_dim=30), 2, 29),
    "another eps": (GPT2.but(norm_eps=1e-2), 2, 29),
}


def reference(model: Transformer) -> torch.nn.Module:
    """Build transformers' model of the same weights, copied by hand."""
    c = model.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.context,
        n_embd=c.d_model,
        n_layer=c.n_layers,
        n_head=c.n_heads,
        n_inner=c.d_ff,
        activation_function="gelu_new",
        layer_norm_epsilon=c.norm_eps,
        bos_token_id=c.vocab_size - 1,
        eos_token_id=c.vocab_size - 1,
        attn_implementation="eager",
        dtype=torch.float32,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = dict(model.named_parameters())
    weights = {
        "transformer.wte.weight": ours["embed.weight"],
        "transformer.wpe.weight": ours["positions.weight"],
        "transformer.ln_f.weight": ours["norm.weight"],
        "transformer.ln_f.bias": ours["norm.bias"],
        "lm_head.weight": ours["embed.weight"],
    }
    for layer in range(c.n_layers):
        a, b = f"transformer.h.{layer}.", f"blocks.{layer}."
        for part in ("weight", "bias"):
            qkv = torch.cat([ours[f"{b}attn.{letter}.{part}"] for letter in "qkv"])
            # Their matrices are stored [in, out].
            weights[f"{a}attn.c_attn.{part}"] = qkv.T if part == "weight" else qkv
            for name, mine in (
                ("attn.c_proj", "attn.o"),
                ("mlp.c_fc", "ffn.up"),
                ("mlp.c_proj", "ffn.down"),
            ):
                value = ours[f"{b}{mine}.{part}"]
                weights[f"{a}{name}.{part}"] = value.T if part == "weight" else value
            weights[f"{a}ln_1.{part}"] = ours[f"{b}attn_norm.{part}"]
            weights[f"{a}ln_2.{part}"] = ours[f"{b}ffn_norm.{part}"]
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
    with torch.no_grad():
        ours, theirs = model(ids), reference(model)(ids, use_cache=False).logits
    difference = (ours - theirs).abs().max().item()
    record_property("difference", difference)
    record_property("logits_std", ours.std().item())
    print(f"{case}: difference {difference:.1e}, logits std {ours.std():.2f}")
    assert 0.5 < ours.std() < 2
    assert difference <= TOLERANCE


def test_cached_steps_equal_cached_steps_of_transformers() -> None:
    model = hostile(GPT2)
    theirs = reference(model)
    cache, past, worst = KVCache(GPT2), None, 0.0
    with torch.no_grad():
        for chunk in tokens(GPT2, 2, 61).split([7, 1, 20, *[1] * 33], dim=1):
            output = theirs(chunk, past_key_values=past, use_cache=True)
            past = output.past_key_values
            worst = max(worst, (model(chunk, cache) - output.logits).abs().max().item())
    print(f"cached: difference {worst:.1e}")
    assert worst <= TOLERANCE
