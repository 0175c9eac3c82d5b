import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_lite import PRESETS, ModelConfig, MoEConfig, Transformer, YarnConfig, account
from gptoss_lite.errors import ConfigError
from tests.hostile import GPT_OSS, GPT_OSS_MXFP4, hostile, packed, without_type_checks

GOLDEN = json.loads((Path(__file__).parent / "golden" / "totals.json").read_text(encoding="utf-8"))
GIB = 2**30
OSS_20B = PRESETS["gpt-oss-20b"]


def golden(key: str) -> Any:
    return pytest.mark.parametrize("name", sorted(GOLDEN[key]))


def rounds_to(value: float, shown: float) -> bool:
    """Is `shown` what `value` looks like with as many digits (at least three)?"""
    return value == pytest.approx(shown, rel=5e-3, abs=6e-4)


# --- published numbers ---------------------------------------------------------------------------


@golden("parameters")
def test_parameters_are_the_published_ones(name: str) -> None:
    assert account.parameters(PRESETS[name]) == GOLDEN["parameters"][name]


@golden("active")
def test_active_parameters_are_the_published_ones(name: str) -> None:
    assert account.parameters(PRESETS[name], active=True) == GOLDEN["active"][name]


@golden("active_with_embedding")
def test_active_parameters_with_the_embedding(name: str) -> None:
    got = account.parameters(PRESETS[name], active=True, embedding=True)
    assert got == GOLDEN["active_with_embedding"][name]


@golden("weight_bytes")
def test_weight_bytes_are_those_of_the_published_files(name: str) -> None:
    assert account.weight_bytes(PRESETS[name]) == GOLDEN["weight_bytes"][name]


@golden("bfloat16_bytes")
def test_weight_bytes_in_bfloat16(name: str) -> None:
    got = account.weight_bytes(PRESETS[name], dense="bfloat16", experts="bfloat16")
    assert got == GOLDEN["bfloat16_bytes"][name] == 2 * account.parameters(PRESETS[name])


@golden("mlp_share_percent")
def test_share_of_the_mlp(name: str) -> None:
    table = account.parameter_table(PRESETS[name])
    mlp = sum(n for part, n in table.items() if part.startswith(("expert", "ffn", "router")))
    share = 100 * mlp / sum(table.values())
    assert share == pytest.approx(GOLDEN["mlp_share_percent"][name], abs=0.06)


@golden("kv_gib")
def test_kv_gib(name: str) -> None:
    for context, expected in zip(GOLDEN["contexts"], GOLDEN["kv_gib"][name], strict=True):
        assert rounds_to(account.kv_bytes(PRESETS[name], context) / GIB, expected)


@golden("kv_gib_without_window")
def test_kv_gib_without_a_window(name: str) -> None:
    expected = GOLDEN["kv_gib_without_window"][name]
    for context, gib in zip(GOLDEN["contexts"], expected, strict=True):
        assert rounds_to(account.kv_bytes(PRESETS[name], context, rolling=False) / GIB, gib)
        no_window = PRESETS[name].but(layer_pattern="F", sliding_window=None)
        assert rounds_to(account.kv_bytes(no_window, context) / GIB, gib)


@golden("kv_gib_without_window_or_grouping")
def test_kv_gib_without_window_or_grouping(name: str) -> None:
    many = PRESETS[name].but(n_kv_heads=64)
    expected = GOLDEN["kv_gib_without_window_or_grouping"][name]
    for context, gib in zip(GOLDEN["contexts"], expected, strict=True):
        assert rounds_to(account.kv_bytes(many, context, rolling=False) / GIB, gib)


@golden("kv_kib_per_token_at_length")
def test_kv_bytes_grow_by_this_much_a_token(name: str) -> None:
    step = account.kv_bytes(PRESETS[name], 5_001) - account.kv_bytes(PRESETS[name], 5_000)
    assert step == 1024 * GOLDEN["kv_kib_per_token_at_length"][name]


def test_kv_bytes_of_20b_are_a_constant_and_a_slope() -> None:
    """12 full layers of 2,048 bytes a token, and 12 sliding ones that stop at 128 tokens."""
    for context in (128, 129, 4_096, 131_072):
        assert account.kv_bytes(OSS_20B, context) == 12 * 2_048 * context + 3_145_728
    assert account.kv_bytes(OSS_20B, 127) == 24 * 2_048 * 127
    assert account.kv_bytes(OSS_20B, 0) == 0
    assert account.kv_bytes(OSS_20B, 999, batch=3) == 3 * account.kv_bytes(OSS_20B, 999)
    twice = account.kv_bytes(OSS_20B, 999, dtype="float32")
    assert twice == 2 * account.kv_bytes(OSS_20B, 999)


@golden("matmul_gflop")
def test_flops_of_one_token(name: str) -> None:
    assert round(account.matmul_flops(PRESETS[name]) / 1e9, 2) == GOLDEN["matmul_gflop"][name]
    assert account.flops(PRESETS[name]) == account.matmul_flops(PRESETS[name])


@golden("attention_gflop")
def test_flops_of_attention(name: str) -> None:
    expected = GOLDEN["attention_gflop"][name]
    for context, gflop in zip(GOLDEN["contexts"], expected, strict=True):
        got = account.attention_flops(PRESETS[name], context)
        assert rounds_to(got / 1e9, gflop)
        assert account.flops(PRESETS[name], context) == got + account.matmul_flops(PRESETS[name])


@pytest.mark.parametrize(
    ("name", "width"),
    [("gpt2-xl", 4.0), ("gpt-oss-20b", 4.0), ("gpt-oss-120b", 4.0), ("qwen3-30b-a3b", 3.0)],
)
def test_width_of_the_active_mlp(name: str, width: float) -> None:
    config = PRESETS[name]
    active = config.moe.n_active if config.moe else 1
    assert active * config.d_ff / config.d_model == width


# --- against real models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_as_many_parameters_as_their_models(name: str) -> None:
    """On the meta device a 120b model takes no memory."""
    config = PRESETS[name].but(expert_dtype="bfloat16")
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == account.parameters(PRESETS[name])


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Draw any legal mix of parts."""
    n_kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    positions = draw(st.sampled_from(["learned", "rope"]))
    n_experts = draw(st.integers(1, 4))
    experts = st.none() | st.builds(
        MoEConfig, st.just(n_experts), st.integers(1, n_experts), st.booleans()
    )
    pattern = draw(st.sampled_from(["F", "S", "SF", "FFS"]))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 9)),
        d_model=draw(st.integers(1, 9)),
        n_layers=draw(st.integers(1, 4)),
        n_heads=groups * n_kv_heads,
        n_kv_heads=n_kv_heads,
        head_dim=2 * draw(st.integers(1, 4)),
        d_ff=draw(st.integers(1, 9)),
        context=draw(st.integers(1, 20)),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm", "rmsnorm_cast_first"])),
        positions=positions,
        yarn=draw(st.sampled_from([None, YarnConfig(2.0, 8)])) if positions == "rope" else None,
        ffn=draw(st.sampled_from(["gelu", "swiglu", "clamped_swiglu"])),
        moe=draw(experts),
        attn_bias=draw(st.booleans()),
        ffn_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        sinks=draw(st.booleans()),
        sliding_window=draw(st.integers(1, 9)) if "S" in pattern else None,
        layer_pattern=pattern,
        tied=draw(st.booleans()),
    )


@settings(max_examples=50)
@given(config=configs())
def test_any_mix_of_parts_has_as_many_parameters_as_its_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    count = {name: p.numel() for name, p in model.named_parameters()}
    table = account.parameter_table(config)
    assert sum(table.values()) == account.parameters(config) == sum(count.values())

    def part(*words: str) -> int:
        return sum(n for name, n in count.items() if any(word in name for word in words))

    assert table["attention"] == part(".attn.")
    assert table["norms"] == part("attn_norm", "ffn_norm", "norm.") - part("q_norm", "k_norm")
    assert table["router"] == part("router")
    kind = "expert" if config.moe else "ffn"
    assert table[f"{kind}_weights"] == part("up.weight", "down.weight")
    assert table[f"{kind}_biases"] == part("up.bias", "down.bias")
    assert table["unembedding"] == part("unembed")
    assert table["embedding"] == part("embed.weight") - part("unembed")
    assert table["positions"] == part("positions")


@settings(max_examples=50)
@given(config=configs())
def test_active_parameters_are_those_a_token_meets(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    active = 0
    for name, p in model.named_parameters():
        if ".ffn.up." in name or ".ffn.down." in name:
            share = config.moe.n_active / config.moe.n_experts if config.moe else 1
            active += round(p.numel() * share)
        elif name not in ("embed.weight", "positions.weight") or (
            name == "embed.weight" and config.tied
        ):
            active += p.numel()
    assert account.parameters(config, active=True) == active


@settings(max_examples=50)
@given(config=configs(), context=st.integers(0, 30))
def test_flops_count_each_weight_a_token_meets_twice(config: ModelConfig, context: int) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    weights = 0
    for name, p in model.named_parameters():
        if p.ndim > 1 and name not in ("embed.weight", "positions.weight"):
            expert = config.moe and (".ffn.up." in name or ".ffn.down." in name)
            if expert and name.endswith("bias"):
                continue
            share = config.moe.n_active / config.moe.n_experts if expert else 1
            weights += round(p.numel() * share)
    weights += config.vocab_size * config.d_model if config.tied else 0
    assert account.matmul_flops(config) == 2 * weights
    seen = 0
    for layer in range(config.n_layers):
        seen += min(context, config.window(layer) or context)
    assert account.attention_flops(config, context) == 4 * config.n_heads * config.head_dim * seen


def test_weight_bytes_are_those_of_a_packed_model() -> None:
    """Codes and scales of the expert matrices, four bytes for anything else."""
    model = packed(hostile(GPT_OSS_MXFP4))
    held = [*model.parameters(), *model.buffers()]
    assert sum(x.nbytes for x in held) == account.weight_bytes(GPT_OSS_MXFP4)
    model = model.bfloat16()
    held = [*model.parameters(), *model.buffers()]
    halved = account.weight_bytes(GPT_OSS_MXFP4, dense="bfloat16")
    assert sum(x.nbytes for x in held) == halved
    dense = account.weight_bytes(GPT_OSS_MXFP4, experts="float32")
    assert dense == 4 * account.parameters(GPT_OSS_MXFP4)


# --- fit -----------------------------------------------------------------------------------------


def test_a_step_of_20b_reads_these_bytes() -> None:
    """3.70 GB of weights: attention 1.275, experts 1.27, unembedding 1.158."""
    read = account.step_bytes(PRESETS["gpt-oss-20b"], 1_024)
    assert read["attention"] == pytest.approx(1.275e9, rel=1e-3)
    assert read["experts"] == pytest.approx(1.271e9, rel=1e-3)
    assert read["unembedding"] == 201_088 * 2_880 * 2
    assert read["cache"] == account.kv_bytes(PRESETS["gpt-oss-20b"], 1_024)
    assert sum(read.values()) - read["cache"] == pytest.approx(3.71e9, rel=1e-3)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_step_reads_the_active_parameters(name: str) -> None:
    """At one width for everything, the bytes are those of the active parameters."""
    config = PRESETS[name]
    read = account.step_bytes(config, dense="float32", experts="float32")
    assert sum(read.values()) == pytest.approx(4 * account.parameters(config, active=True))


def test_a_batch_shares_dense_matrices_and_some_experts() -> None:
    config = PRESETS["gpt-oss-20b"]
    one, two, many = (account.step_bytes(config, 100, batch=b) for b in (1, 2, 1_000))
    assert two["attention"] == one["attention"]
    assert two["experts"] == pytest.approx(one["experts"] * 7.5 / 4)
    assert two["cache"] == 2 * one["cache"]
    assert many["experts"] == pytest.approx(one["experts"] * 32 / 4)
    with pytest.raises(ConfigError, match="batch=0 must be at least 1"):
        account.step_bytes(config, batch=0)


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    config = PRESETS["gpt-oss-20b"]
    read = sum(account.step_bytes(config, 1_024).values())
    assert account.step_limit(config, 3e12, 1e18) == pytest.approx(3e12 / read)
    assert account.step_limit(config, 1e18, 8e14) == pytest.approx(
        8e14 / account.flops(config, 1_024)
    )
    # at batch 1024 arithmetic is the limit, and two sequences share what they read
    assert account.step_limit(config, 3e12, 8e14, batch=1_024) < 8e14 / account.flops(config)
    one, two = (account.step_limit(config, 34e9, 1e15, batch=b) for b in (1, 2))
    assert one < two < 2 * one


def test_20b_in_16_gb_holds_this_many_tokens() -> None:
    """47,275 with 1 GiB to spare; half as many without the window, a sixteenth without grouping."""
    fit = account.fit(OSS_20B, 16e9)
    assert fit.fits
    assert fit.longest_context_tokens == 47_275
    room = 16_000_000_000 - fit.weight_bytes - fit.overhead_bytes
    longest = 23_701
    assert account.kv_bytes(OSS_20B, longest, rolling=False) <= room
    assert account.kv_bytes(OSS_20B, longest + 1, rolling=False) > room
    many = OSS_20B.but(n_kv_heads=64)
    assert account.kv_bytes(many, 2_962, rolling=False) <= room
    assert account.kv_bytes(many, 2_963, rolling=False) > room


@given(
    gib=st.floats(0.1, 200),
    context=st.integers(1, 131_072),
    batch=st.integers(1, 9),
    name=st.sampled_from(["gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b", "gpt2-xl"]),
)
def test_the_longest_context_fits_and_one_more_does_not(
    gib: float, context: int, batch: int, name: str
) -> None:
    config = PRESETS[name]
    fit = account.fit(config, gib * GIB, context_tokens=context, batch=batch)
    assert fit.needed_bytes == fit.weight_bytes + fit.kv_bytes + account.GIB
    assert fit.fits == (fit.needed_bytes <= fit.memory_bytes)
    assert fit.weight_bytes == account.weight_bytes(config)
    room, longest = fit.memory_bytes - fit.weight_bytes - GIB, fit.longest_context_tokens
    dtype = "float32" if name == "gpt2-xl" else "bfloat16"
    assert 0 <= longest <= config.context
    if longest:
        assert account.kv_bytes(config, longest, batch=batch, dtype=dtype) <= room
    if longest < config.context:
        assert account.kv_bytes(config, longest + 1, batch=batch, dtype=dtype) > room
    if longest:
        assert fit.fits == (min(context, config.context) <= longest)
    else:
        assert not fit.fits


def test_fit_says_what_it_found() -> None:
    assert str(account.fit(OSS_20B, 16e9)) == (
        "It fits: 12.82 GiB weights + 0.10 GiB KV cache at 4,096 tokens + 1.00 GiB overhead = "
        "13.91 GiB of 14.90 GiB. Longest context: 47,275 tokens."
    )
    assert str(account.fit(OSS_20B, 16e9, context_tokens=131_072)) == (
        "It does not fit: 12.82 GiB weights + 3.00 GiB KV cache at 131,072 tokens + 1.00 GiB "
        "overhead = 16.82 GiB of 14.90 GiB, short by 1.92 GiB. A context of 47,275 tokens would "
        "fit."
    )
    assert str(account.fit(OSS_20B, 8e9)) == (
        "It does not fit: 12.82 GiB weights + 0.10 GiB KV cache at 4,096 tokens + 1.00 GiB "
        "overhead = 13.91 GiB of 7.45 GiB, short by 6.46 GiB. No context fits beside the weights."
    )


def test_fit_says_that_a_model_reads_less_than_was_asked() -> None:
    fit = account.fit(OSS_20B, 80e9, context_tokens=999_999_999)
    assert (fit.context_tokens, fit.asked_tokens) == (131_072, 999_999_999)
    assert "at 131,072 tokens (the most this model reads; asked for 999,999,999) + " in str(fit)
    assert "asked" not in str(account.fit(OSS_20B, 80e9, context_tokens=131_072))
    usual = account.fit(PRESETS["gpt-oss-nano"], 16e9)  # nobody asked for 4,096
    assert (usual.context_tokens, usual.asked_tokens) == (1_024, 1_024)
    assert "asked" not in str(usual)


def test_fit_counts_what_the_options_ask_for() -> None:
    fit = account.fit(OSS_20B, 80e9, dense="float32", experts="bfloat16", overhead_bytes=0)
    expected = account.weight_bytes(OSS_20B, dense="float32", experts="bfloat16")
    assert fit.weight_bytes == expected
    assert fit.needed_bytes == expected + fit.kv_bytes
    assert fit.context_tokens == 4_096
    assert json.loads(json.dumps(fit.to_dict()))["needed_bytes"] == fit.needed_bytes


@pytest.mark.parametrize(
    ("dense", "cached"),
    [
        (None, "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("mxfp4", "bfloat16"),
    ],
)
def test_the_cache_follows_the_dense_weights(dense: str | None, cached: str) -> None:
    fit = account.fit(OSS_20B, 20e9, context_tokens=1_000, dense=dense)
    assert account.cache_dtype(OSS_20B, dense) == cached
    assert fit.kv_bytes == account.kv_bytes(OSS_20B, 1_000, dtype=cached)
    assert account.step_bytes(OSS_20B, 1_000, dense=dense)["cache"] == fit.kv_bytes
    room, longest = fit.memory_bytes - fit.weight_bytes - GIB, fit.longest_context_tokens
    assert account.kv_bytes(OSS_20B, longest, dtype=cached) <= room
    assert longest == 131_072 or account.kv_bytes(OSS_20B, longest + 1, dtype=cached) > room


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: account.weight_bytes(GPT_OSS, dense="int3"),
            "dtype 'int3' has no known width here. "
            "Use one of ['bfloat16', 'float16', 'float32', 'mxfp4'].",
        ),
        (
            lambda: account.kv_bytes(GPT_OSS, -1),
            "context_tokens=-1 and batch=1 cannot be negative.",
        ),
        (
            lambda: account.kv_bytes(GPT_OSS, 5, batch=-2),
            "context_tokens=5 and batch=-2 cannot be negative.",
        ),
        (
            lambda: account.fit(GPT_OSS, 0),
            "memory_bytes=0 must be positive: 16e9 is 16 GB.",
        ),
        (
            lambda: account.fit(GPT_OSS, math.nan),
            "memory_bytes=nan must be positive: 16e9 is 16 GB.",
        ),
        (
            lambda: account.fit(GPT_OSS, math.inf),
            "memory_bytes=inf must be below 2**63: 16e9 is 16 GB.",
        ),
        (lambda: account.fit(GPT_OSS, 1e9, batch=0), "batch=0 must be at least 1."),
        (
            lambda: account.fit(GPT_OSS, 1e9, overhead_bytes=-1),
            "overhead_bytes=-1 cannot be negative.",
        ),
        (lambda: account.flops(GPT_OSS, -100), "context_tokens=-100 cannot be negative."),
        (
            lambda: account.step_limit(GPT_OSS, 0, 1),
            "bandwidth=0 must be a positive number, such as 1e12 a second.",
        ),
        (
            lambda: account.step_limit(GPT_OSS, 1, math.nan),
            "flops_per_s=nan must be a positive number, such as 1e12 a second.",
        ),
    ],
    ids=[
        "dtype",
        "tokens",
        "batch",
        "memory",
        "nan",
        "inf",
        "no sequence",
        "overhead",
        "flops",
        "bandwidth",
        "speed",
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        call()
    assert str(problem.value) == message


@pytest.mark.parametrize(
    "call",
    [
        lambda name: account.fit(name, 16e9),
        account.parameters,
        account.flops,
        lambda name: account.kv_bytes(name, 5),
        lambda name: account.attention_flops(name, 5),
        lambda name: account.step_limit(name, 1e12, 1e12),
    ],
)
def test_a_name_is_not_a_config(call: Any) -> None:
    with without_type_checks(), pytest.raises(ConfigError) as problem:
        call("gpt-oss-20b")
    assert str(problem.value).startswith(
        "A ModelConfig is needed, got 'gpt-oss-20b' of type str. Give one of gptoss_lite.PRESETS"
    )


def test_account_needs_no_torch() -> None:
    """The arithmetic is also run where no model is, such as while a page is built."""
    code = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('gptoss_lite')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['gptoss_lite'] = package\n"
        "import gptoss_lite.account, gptoss_lite.presets\n"
        "assert 'torch' not in sys.modules\n"
    )
    folder = Path(account.__file__).parent
    subprocess.run([sys.executable, "-c", code, folder], check=True)
