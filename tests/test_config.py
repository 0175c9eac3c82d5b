import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_lite import PRESETS, ModelConfig, MoEConfig, YarnConfig
from gptoss_lite.errors import ConfigError, GptOssLiteError
from gptoss_lite.experiments_data import published_config
from tests.hostile import GPT2, GPT_OSS, GPT_OSS_MXFP4, QWEN3, without_type_checks

FIELDS = [
    "attn_bias",
    "context",
    "d_ff",
    "d_model",
    "dropout",
    "dtype",
    "expert_dtype",
    "ffn",
    "ffn_bias",
    "head_dim",
    "layer_pattern",
    "moe",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "norm",
    "norm_eps",
    "positions",
    "qk_norm",
    "rope_theta",
    "sinks",
    "sliding_window",
    "swiglu_alpha",
    "swiglu_limit",
    "tied",
    "vocab_size",
    "yarn",
]

# name: (where to start, fields to change, what it says)
MISTAKES: dict[str, tuple[ModelConfig, dict[str, Any], str]] = {
    "no layers": (GPT2, {"n_layers": 0}, "n_layers=0 must be a whole number of at least 1."),
    "negative width": (
        GPT2,
        {"d_model": -30},
        "d_model=-30 must be a whole number of at least 1.",
    ),
    "size as text": (
        GPT2,
        {"vocab_size": "89"},
        "vocab_size='89' must be a whole number of at least 1.",
    ),
    "half a head": (
        GPT2,
        {"n_heads": 2.5},
        "n_heads=2.5 must be a whole number of at least 1.",
    ),
    "no context": (GPT2, {"context": 0}, "context=0 must be a whole number of at least 1."),
    "heads that cannot be shared": (
        GPT_OSS,
        {"n_kv_heads": 4},
        "n_heads=6 cannot be shared by n_kv_heads=4: 6 / 4 is not whole. "
        "Use n_kv_heads in [1, 2, 3, 6].",
    ),
    "more kv heads than heads": (
        GPT_OSS,
        {"n_kv_heads": 12},
        "n_heads=6 cannot be shared by n_kv_heads=12: 6 / 12 is not whole. "
        "Use n_kv_heads in [1, 2, 3, 6].",
    ),
    "all dropped": (
        GPT2,
        {"dropout": 1.0},
        "dropout=1.0 must be at least 0 and less than 1.",
    ),
    "unknown norm": (
        GPT2,
        {"norm": "batchnorm"},
        "norm='batchnorm' is unknown. Use one of ['layernorm', 'rmsnorm', 'rmsnorm_cast_first'].",
    ),
    "unknown positions": (
        GPT2,
        {"positions": "alibi"},
        "positions='alibi' is unknown. Use one of ['learned', 'rope'].",
    ),
    "unknown ffn": (
        GPT2,
        {"ffn": "relu"},
        "ffn='relu' is unknown. Use one of ['gelu', 'swiglu', 'clamped_swiglu'].",
    ),
    "unknown dtype": (
        GPT2,
        {"dtype": "float16"},
        "dtype='float16' is unknown. Use one of ['float32', 'bfloat16'].",
    ),
    "unknown expert dtype": (
        GPT2,
        {"expert_dtype": "int4"},
        "expert_dtype='int4' is unknown. Use one of ['float32', 'bfloat16', 'mxfp4'].",
    ),
    "unknown layer kind": (
        GPT_OSS,
        {"layer_pattern": "SLF"},
        "layer_pattern='SLF' must be made of S (sliding) and F (full): 'SF'.",
    ),
    "empty pattern": (
        GPT_OSS,
        {"layer_pattern": ""},
        "layer_pattern='' must be made of S (sliding) and F (full): 'SF'.",
    ),
    "odd head": (GPT_OSS, {"head_dim": 15}, "head_dim=15 must be even: a rotation turns pairs."),
    "yarn without rope": (
        GPT2,
        {"yarn": YarnConfig(2.0, 8)},
        "yarn scales a rotation, but positions='learned'. Use 'rope'.",
    ),
    "sliding without a window": (
        GPT_OSS,
        {"sliding_window": None},
        "layer_pattern='SF' has sliding layers, but sliding_window=None. "
        "Give a whole number of tokens, at least 1.",
    ),
    "window of nothing": (
        GPT_OSS,
        {"sliding_window": 0},
        "layer_pattern='SF' has sliding layers, but sliding_window=0. "
        "Give a whole number of tokens, at least 1.",
    ),
    "half a token": (
        GPT_OSS,
        {"sliding_window": 7.5},
        "layer_pattern='SF' has sliding layers, but sliding_window=7.5. "
        "Give a whole number of tokens, at least 1.",
    ),
    "window that is a switch": (
        GPT_OSS,
        {"sliding_window": True},
        "layer_pattern='SF' has sliding layers, but sliding_window=True. "
        "Give a whole number of tokens, at least 1.",
    ),
    "size that is a switch": (
        GPT2,
        {"n_heads": True},
        "n_heads=True must be a whole number of at least 1.",
    ),
    "epsilon as text": (
        GPT_OSS,
        {"norm_eps": "1e-5"},
        "norm_eps='1e-5' must be a number above 0, and finite.",
    ),
    "negative epsilon": (
        GPT2,
        {"norm_eps": -1},
        "norm_eps=-1 must be a number above 0, and finite.",
    ),
    "base of 0": (
        GPT_OSS,
        {"rope_theta": 0.0},
        "rope_theta=0.0 must be a number above 0, and finite.",
    ),
    "base that is no number": (
        GPT_OSS,
        {"rope_theta": float("nan")},
        "rope_theta=nan must be a number above 0, and finite.",
    ),
    "no limit": (
        GPT_OSS,
        {"swiglu_limit": None},
        "swiglu_limit=None must be a number above 0, and finite.",
    ),
    "limit without end": (
        GPT_OSS,
        {"swiglu_limit": float("inf")},
        "swiglu_limit=inf must be a number above 0, and finite.",
    ),
    "slope that is a switch": (
        GPT_OSS,
        {"swiglu_alpha": True},
        "swiglu_alpha=True must be a number above 0, and finite.",
    ),
    "switch as text": (GPT_OSS, {"tied": "false"}, "tied='false' must be True or False."),
    "window that no layer uses": (
        GPT_OSS,
        {"layer_pattern": "F"},
        "sliding_window=7 is used by no layer of layer_pattern='F'. "
        "Use 'SF', or sliding_window=None.",
    ),
    "mxfp4 without experts": (
        GPT2,
        {"expert_dtype": "mxfp4"},
        "expert_dtype='mxfp4' stores experts, but moe is None.",
    ),
    "mxfp4 rows that cannot be cut": (
        GPT_OSS_MXFP4,
        {"d_ff": 48},
        "d_ff=48 is not a multiple of 32, so an expert's rows cannot be cut into MXFP4 blocks.",
    ),
    "mxfp4 columns that cannot be cut": (
        GPT_OSS_MXFP4,
        {"d_model": 24},
        "d_model=24 is not a multiple of 32, so an expert's rows cannot be cut into MXFP4 blocks.",
    ),
    "no such field": (
        GPT2,
        {"n_head": 3, "bias": True},
        f"ModelConfig has no field ['bias', 'n_head']. Fields: {FIELDS}.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_say_what_is_wrong_and_what_to_do(mistake: str) -> None:
    config, changes, message = MISTAKES[mistake]
    with without_type_checks(), pytest.raises(ConfigError) as problem:
        config.but(**changes)
    assert str(problem.value) == message
    assert isinstance(problem.value, GptOssLiteError)
    assert isinstance(problem.value, ValueError)


@pytest.mark.parametrize(("n_experts", "n_active"), [(4, 5), (4, 0), (0, 0), (4, -1)])
def test_experts_that_cannot_be_chosen(n_experts: int, n_active: int) -> None:
    with pytest.raises(ConfigError) as problem:
        MoEConfig(n_experts, n_active)
    assert str(problem.value) == (
        f"n_active={n_active} experts cannot be chosen out of n_experts={n_experts}. "
        "Use whole numbers, 1 <= n_active <= n_experts."
    )


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            (0.5, 16),
            "YarnConfig needs factor >= 1, original_context >= 1 and beta_slow > 0, "
            "got 0.5, 16 and 1.0.",
        ),
        (
            (2.0, 0),
            "YarnConfig needs factor >= 1, original_context >= 1 and beta_slow > 0, "
            "got 2.0, 0 and 1.0.",
        ),
        (
            (2.0, 16, 32.0, 0.0),
            "YarnConfig needs factor >= 1, original_context >= 1 and beta_slow > 0, "
            "got 2.0, 16 and 0.0.",
        ),
        (
            (2.0, 16, 1.0, 32.0),
            "YarnConfig needs beta_fast > beta_slow, got 1.0 and 32.0. "
            "The published values are 32 and 1.",
        ),
        (
            (2.0, 16, 4.0, 4.0),
            "YarnConfig needs beta_fast > beta_slow, got 4.0 and 4.0. "
            "The published values are 32 and 1.",
        ),
    ],
)
def test_yarn_numbers_that_contradict_each_other(numbers: tuple, message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        YarnConfig(*numbers)
    assert str(problem.value) == message


# --- the dataclass -------------------------------------------------------------------------------


def test_configs_are_frozen_equal_by_value_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPT2.d_model = 1
    again = GPT_OSS.but(sliding_window=9).but(sliding_window=7)
    assert again == GPT_OSS
    assert again is not GPT_OSS
    assert len({GPT_OSS, again, GPT2}) == 2
    assert GPT_OSS.but() == GPT_OSS


def test_but_checks_the_whole_copy_and_leaves_the_original() -> None:
    with pytest.raises(ConfigError):
        GPT_OSS.but(n_kv_heads=5)
    assert GPT_OSS.n_kv_heads == 2


@given(pattern=st.text(alphabet="SF", min_size=1, max_size=5), layer=st.integers(0, 20))
def test_window_follows_the_repeated_pattern(pattern: str, layer: int) -> None:
    window = 7 if "S" in pattern else None
    config = GPT_OSS.but(n_layers=21, layer_pattern=pattern, sliding_window=window)
    kind = (pattern * 21)[layer]
    assert config.window(layer) == (7 if kind == "S" else None)


def test_even_layers_of_gpt_oss_slide_and_the_last_is_full() -> None:
    for name, layers in (("gpt-oss-20b", 24), ("gpt-oss-120b", 36)):
        windows = [PRESETS[name].window(layer) for layer in range(layers)]
        assert windows == [128, None] * (layers // 2)


def test_the_two_gpt_oss_differ_in_two_numbers() -> None:
    small, large = PRESETS["gpt-oss-20b"], PRESETS["gpt-oss-120b"]
    assert small.but(n_layers=36, moe=MoEConfig(128, 4, router_bias=True)) == large


# --- config.json ---------------------------------------------------------------------------------

HF_GPT_OSS_20B = published_config()["config"]
ORIGINAL_GPT_OSS_20B = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}
HF_QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
HF_GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "vocab_size": 50257,
}
PUBLISHED = {
    "gpt-oss-20b": HF_GPT_OSS_20B,
    "gpt-oss-20b, original layout": ORIGINAL_GPT_OSS_20B,
    "qwen3-30b-a3b": HF_QWEN3,
    "gpt2": HF_GPT2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_files_are_the_presets(name: str, tmp_path: Path) -> None:
    expected = PRESETS[name.removesuffix(", original layout")]
    assert ModelConfig.from_hf(PUBLISHED[name]) == expected
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
    assert ModelConfig.from_hf(tmp_path) == expected
    assert ModelConfig.from_hf(str(tmp_path / "config.json")) == expected


def test_what_to_hf_writes_for_gpt_oss_is_what_openai_published() -> None:
    written = PRESETS["gpt-oss-20b"].to_hf()
    shared = written.keys() & HF_GPT_OSS_20B.keys()
    assert {key: written[key] for key in shared} == {key: HF_GPT_OSS_20B[key] for key in shared}
    assert written.keys() - shared == {"swiglu_alpha", "torch_dtype"}


def test_the_dropouts_that_chapter_02_shows() -> None:
    """Claim C04: in three places of GPT-2, and zero in the one that gpt-oss's file names."""
    named = {key: value for key, value in HF_GPT_OSS_20B.items() if "dropout" in key}
    assert named == {"attention_dropout": 0}
    assert PRESETS["gpt-oss-20b"].dropout == 0
    transformers = pytest.importorskip("transformers")
    published, written = transformers.GPT2Config(), PRESETS["gpt2-xl"].to_hf()
    for key in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        assert getattr(published, key) == written[key] == 0.1


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        GPT2,
        GPT_OSS_MXFP4,
        GPT_OSS,
        QWEN3,
        GPT_OSS.but(yarn=None),
        GPT_OSS.but(tied=True),
        GPT_OSS.but(attn_bias=False),
        GPT_OSS.but(layer_pattern="FFS"),
        GPT_OSS.but(layer_pattern="F", sliding_window=None),
        GPT_OSS.but(layer_pattern="S"),
        GPT_OSS.but(swiglu_alpha=1.5, swiglu_limit=3.0),
        GPT_OSS.but(dtype="bfloat16", expert_dtype="bfloat16"),
        GPT_OSS.but(yarn=YarnConfig(8.0, 16, 2.0, 0.25, truncate=True)),
        QWEN3.but(attn_bias=True, tied=True),
        GPT2.but(d_ff=120, dropout=0.2),
    ],
    ids=lambda c: f"{c.family}-{c.d_model}",
)
def test_what_to_hf_writes_reads_back_the_same(config: ModelConfig) -> None:
    raw = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(raw) == config


@pytest.mark.parametrize("config", [GPT2, GPT_OSS, QWEN3, GPT_OSS.but(yarn=None)])
def test_transformers_reads_what_to_hf_writes(config: ModelConfig) -> None:
    """And what it writes again, with its newer keys, still reads back the same."""
    transformers = pytest.importorskip("transformers")
    raw = config.to_hf()
    theirs = transformers.AutoConfig.for_model(**raw)
    assert theirs.model_type == config.family
    assert theirs.num_hidden_layers == config.n_layers
    assert theirs.vocab_size == config.vocab_size
    if config.family == "gpt_oss":
        rope = theirs.rope_parameters
        assert rope["rope_type"] == ("yarn" if config.yarn else "default")
        assert rope["rope_theta"] == config.rope_theta
    assert ModelConfig.from_hf(json.loads(theirs.to_json_string(use_diff=False))) == config


def test_yarn_ends_are_rounded_when_the_file_does_not_say_otherwise() -> None:
    """As transformers does; the published gpt-oss says `false`."""
    scaling = {k: v for k, v in HF_GPT_OSS_20B["rope_scaling"].items() if k != "truncate"}
    config = ModelConfig.from_hf({**HF_GPT_OSS_20B, "rope_scaling": scaling})
    assert config.yarn.truncate
    assert not ModelConfig.from_hf(HF_GPT_OSS_20B).yarn.truncate


def test_new_rope_parameters_win_over_the_old_keys() -> None:
    """Reading the old keys only made one engine run plain RoPE in silence."""
    raw = {k: v for k, v in HF_GPT_OSS_20B.items() if k not in ("rope_scaling", "rope_theta")}
    raw["rope_parameters"] = {**HF_GPT_OSS_20B["rope_scaling"], "rope_theta": 150_000.0}
    assert ModelConfig.from_hf(raw) == PRESETS["gpt-oss-20b"]


def test_missing_layer_types_alternate_from_sliding() -> None:
    raw = {k: v for k, v in HF_GPT_OSS_20B.items() if k != "layer_types"}
    assert ModelConfig.from_hf(raw) == PRESETS["gpt-oss-20b"]


WITHOUT_ROPE_THETA = {k: v for k, v in HF_GPT_OSS_20B.items() if k != "rope_theta"}
BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "empty": (
        {},
        "Unknown architecture: model_type=None. This package reads 'gpt2', 'gpt_oss' and "
        "'qwen3_moe', and the config.json of gpt-oss's original/ folder.",
    ),
    "another model": (
        {"model_type": "llama", "hidden_size": 8},
        "Unknown architecture: model_type='llama'. This package reads 'gpt2', 'gpt_oss' and "
        "'qwen3_moe', and the config.json of gpt-oss's original/ folder.",
    ),
    "missing key": (
        {k: v for k, v in HF_GPT2.items() if k != "n_layer"},
        "config.json of a 'gpt2' model lacks the key 'n_layer'. Download the file again.",
    ),
    "missing key of the original layout": (
        {k: v for k, v in ORIGINAL_GPT_OSS_20B.items() if k != "head_dim"},
        "config.json of a 'gpt-oss original' model lacks the key 'head_dim'. "
        "Download the file again.",
    ),
    "missing rope_theta": (
        WITHOUT_ROPE_THETA,
        "config.json of a 'gpt_oss' model lacks the key 'rope_theta'. Download the file again.",
    ),
    "gelu of another form": (
        {**HF_GPT2, "activation_function": "gelu"},
        "activation_function='gelu' is not GPT-2's tanh GELU, 'gelu_new'.",
    ),
    "heads that do not divide the width": (
        {**HF_GPT2, "n_head": 10},
        "n_embd=768 cannot be cut into n_head=10 heads: 768 / 10 is not whole. "
        "Download config.json again.",
    ),
    "empty rope_scaling": (
        {**HF_GPT_OSS_20B, "rope_scaling": None},
        "rope_scaling is empty in this gpt_oss config.json, which some readers take for plain "
        "RoPE and others for YaRN x 32. Write {'rope_type': 'default'} or the YaRN numbers.",
    ),
    "another rotation": (
        {**HF_GPT_OSS_20B, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope_type='llama3' is not one this package computes: 'yarn' or 'default'.",
    ),
    "sizes as text": (
        {**HF_GPT_OSS_20B, "hidden_size": "2880"},
        "d_model='2880' must be a whole number of at least 1.",
    ),
    "qwen3 without renormalising": (
        {**HF_QWEN3, "norm_topk_prob": False},
        "norm_topk_prob=False is not Qwen3-30B-A3B's True, and this package does not compute it. "
        "Use a published Qwen3-30B-A3B.",
    ),
    "qwen3 with dense layers": (
        {**HF_QWEN3, "mlp_only_layers": [0, 3]},
        "mlp_only_layers=[0, 3] is not Qwen3-30B-A3B's [], and this package does not compute it. "
        "Use a published Qwen3-30B-A3B.",
    ),
    "qwen3 with a window": (
        {**HF_QWEN3, "use_sliding_window": True},
        "This Qwen3-MoE config scales its rotation or slides a window; "
        "the published model does neither, and this package does not compute it.",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_config_files_that_cannot_be_read_say_why(case: str) -> None:
    raw, message = BAD_FILES[case]
    with without_type_checks(), pytest.raises(ConfigError) as problem:
        ModelConfig.from_hf(raw)
    assert str(problem.value) == message


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as problem:
        ModelConfig.from_hf(tmp_path)
    path = tmp_path / "config.json"
    assert str(problem.value) == f"No config.json at {path}. Give a folder that holds one."


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "<html>"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as problem:
        ModelConfig.from_hf(tmp_path)
    assert str(problem.value).startswith(f"{path} is not JSON (")
    assert str(problem.value).endswith("). Download it again.")


def test_json_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ConfigError) as problem:
        ModelConfig.from_hf(tmp_path)
    path = tmp_path / "config.json"
    assert str(problem.value) == f"{path} holds a list, not an object. Download it again."


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layernorm"},
        {"ffn": "gelu"},
        {"moe": None},
        {"moe": MoEConfig(5, 3, router_bias=False)},
        {"sinks": False},
        {"ffn_bias": False},
        {"dropout": 0.1},
        {"positions": "learned", "yarn": None},
        {"qk_norm": True},
    ],
    ids=str,
)
def test_a_mix_that_nobody_published_has_no_config_file(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as problem:
        GPT_OSS.but(**changes).to_hf()
    assert str(problem.value) == (
        "No published architecture has this mix of parts, so there is no config.json for it. "
        "Only GPT-2, gpt-oss and Qwen3-MoE configurations can be written: start from PRESETS."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer_types": ["full_attention"] * 3},
            "layer_types has 3 entries for num_hidden_layers=24",
        ),
        (
            {"rope_scaling": {**PRESETS["gpt-oss-20b"].to_hf()["rope_scaling"], "mscale": 2.0}},
            "rope_scaling sets mscale=2.0, but this package always computes",
        ),
    ],
)
def test_what_would_be_read_wrong_is_refused(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.from_hf({**PRESETS["gpt-oss-20b"].to_hf(), **change})


def test_gpt2_attention_scaled_otherwise_is_refused():
    raw = {**PRESETS["gpt2"].to_hf(), "scale_attn_by_inverse_layer_idx": True}
    with pytest.raises(ConfigError, match="scale_attn_by_inverse_layer_idx=True is not GPT-2's"):
        ModelConfig.from_hf(raw)


# Each loaded without a word, or broke off deep inside the model.
WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"rms_norm_eps": "1e-5"}, "norm_eps='1e-5' must be a number above 0"),
    ({"rms_norm_eps": -1}, "norm_eps=-1 must be a number above 0"),
    ({"swiglu_limit": "7"}, "swiglu_limit='7' must be a number above 0"),
    ({"swiglu_limit": None}, "swiglu_limit=None must be a number above 0"),
    ({"rope_theta": 0}, "rope_theta=0.0 must be a number above 0"),
    ({"rope_theta": -5}, "rope_theta=-5.0 must be a number above 0"),
    ({"rope_theta": float("nan")}, "rope_theta=nan must be a finite number"),
    ({"rope_theta": "150000"}, "rope_theta='150000' must be a finite number"),
    ({"rope_theta": 10**400}, "a value of the wrong kind: int too large to convert to float"),
    ({"sliding_window": 32.5}, "sliding_window=32.5. Give a whole number"),
    ({"num_attention_heads": True}, "n_heads=True must be a whole number"),
    ({"num_local_experts": 32.0}, "n_experts=32.0. Use whole numbers"),
    ({"num_hidden_layers": -1, "layer_types": None}, "n_layers=-1 must be a whole number"),
    ({"attention_bias": "false"}, "attn_bias='false' must be True or False"),
    (
        {"layer_types": ["chunked_attention"] * 24},
        "layer_types has 'chunked_attention', which this package does not compute: it knows "
        "'sliding_attention' and 'full_attention'.",
    ),
    ({"layer_types": [["full_attention"]] * 24}, "layer_types has ['full_attention'], which"),
    (
        {"quantization_config": {"quant_method": "fp8"}},
        "quant_method='fp8' of this gpt_oss config.json is not read by this package: it takes "
        "'mxfp4' here.",
    ),
    ({"quantization_config": "mxfp4"}, "a value of the wrong kind"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_VALUES, ids=lambda x: str(x)[:40])
def test_values_that_the_model_cannot_mean_are_refused(change: dict[str, Any], message: str):
    raw = {**PRESETS["gpt-oss-20b"].to_hf(), **change}
    with without_type_checks(), pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize("name", ["gpt2", "qwen3-30b-a3b"])
def test_packed_weights_of_other_families_are_refused(name: str):
    raw = {**PRESETS[name].to_hf(), "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(ConfigError, match=r"quant_method='fp8'.*it takes unpacked weights here"):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [("factor", float("nan")), ("factor", "4"), ("original_context", 256.5), ("beta_slow", True)],
)
def test_yarn_numbers_of_another_kind_are_refused(field: str, value: Any):
    raw = {"factor": 4.0, "original_context": 256, field: value}
    with without_type_checks(), pytest.raises(ConfigError, match=f"needs .* got .*{value!r}"):
        YarnConfig(**raw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_text("[" * 100_000), "is not JSON (maximum recursion depth"),
        (lambda path: path.write_text("1" * 5_000), "is not JSON (Exceeds the limit"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    ],
    ids=["folder", "nested", "long number", "link to itself"],
)
def test_a_config_that_cannot_be_read_is_named(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'config.json'} {message}")):
        ModelConfig.from_hf(tmp_path)


def test_places_where_no_config_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"No config\.json at "):
        ModelConfig.from_hf(tmp_path / "file" / "model")
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        ModelConfig.from_hf(tmp_path / ("x" * 5_000))


@pytest.mark.parametrize(
    "change", [{"rope_scaling": 3}, {"num_local_experts": None}, {"layer_types": 7}]
)
def test_values_of_the_wrong_kind_are_one_sentence(change):
    with pytest.raises(ConfigError):
        ModelConfig.from_hf({**PRESETS["gpt-oss-20b"].to_hf(), **change})


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5])
def test_any_number_of_layers_can_be_written(n_layers):
    """One layer of the pattern SF reads back as S, which is the same model."""
    config = PRESETS["gpt-oss-20b"].but(n_layers=n_layers)
    again = ModelConfig.from_hf(config.to_hf())
    assert [again.window(n) for n in range(n_layers)] == [config.window(n) for n in range(n_layers)]
