"""Exercises of chapter 00, the map: counting by hand what the ledger counts."""

from gptoss_lite import account
from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.presets import PRESETS


def block_parameters(d_model: int) -> int:
    """Count the parameters of one GPT-2 block of this width, biases and norms included.

    The block has two LayerNorms (scale and shift), four attention matrices of d_model x d_model
    (q, k, v, o) and an MLP that goes to 4 * d_model and back. Every matrix has a bias.
    """
    norms = 2 * 2 * d_model
    attention = 4 * (d_model * d_model + d_model)
    mlp = 2 * 4 * d_model * d_model + 4 * d_model + d_model
    return norms + attention + mlp


def _without_biases(d_model: int) -> int:
    return 12 * d_model * d_model + 4 * d_model


def cache_growth_bytes(config: ModelConfig) -> int:
    """Return by how many bytes the KV cache grows per token, once the context is long.

    Each layer stores one key and one value of head_dim numbers for each of its n_kv_heads, in
    bfloat16 (2 bytes). A layer with a sliding window forgets a token for each one it stores:
    `config.window(layer)` is None where a layer keeps everything.
    """
    full = sum(config.window(layer) is None for layer in range(config.n_layers))
    return full * 2 * config.n_kv_heads * config.head_dim * 2


def _every_layer(config: ModelConfig) -> int:
    return config.n_layers * 2 * config.n_kv_heads * config.head_dim * 2


def _every_query_head(config: ModelConfig) -> int:
    full = sum(config.window(layer) is None for layer in range(config.n_layers))
    return full * 2 * config.n_heads * config.head_dim * 2


def file_bytes(config: ModelConfig) -> int:
    """Count the bytes of a gpt-oss checkpoint: experts in MXFP4, everything else in bfloat16."""
    table = account.parameter_table(config)
    experts = table["expert_weights"]
    others = sum(table.values()) - experts
    return 2 * others + experts // 2 + experts // 32


def broken_file_bytes(config: ModelConfig) -> int:
    """Count the bytes of a gpt-oss checkpoint: experts in MXFP4, everything else in bfloat16."""
    table = account.parameter_table(config)
    experts = table["expert_weights"]
    others = sum(table.values()) - experts
    return 2 * others + experts // 2


def _biases_packed_too(config: ModelConfig) -> int:
    table = account.parameter_table(config)
    experts = table["expert_weights"] + table["expert_biases"]
    return 2 * (sum(table.values()) - experts) + experts * 17 // 32


EXERCISES = (
    Exercise(
        id="ch00.ex1",
        title="One block of GPT-2",
        minutes=5,
        level="easy",
        solution=block_parameters,
        cases=((768,), (1_600,)),
        hidden=((1,), (96,), (1_024,), (1_280,)),
        hints=(
            "The terms with d_model squared: 4 from attention, 8 from the MLP.",
            "Biases: 4 * d_model in attention, 5 * d_model in the MLP. Norms: 4 * d_model.",
        ),
        wrong=(_without_biases,),
    ),
    Exercise(
        id="ch00.ex2",
        title="What one more token costs",
        minutes=8,
        level="implement",
        solution=cache_growth_bytes,
        cases=((PRESETS["gpt2-xl"],), (PRESETS["gpt-oss-20b"],)),
        hidden=tuple((PRESETS[name],) for name in ("gpt-oss-120b", "qwen3-30b-a3b", "gpt2")),
        hints=(
            "Which layers still grow when the context is much longer than the window?",
            "A key and a value, n_kv_heads of them, head_dim numbers each, 2 bytes a number.",
        ),
        wrong=(_every_layer, _every_query_head),
    ),
    Exercise(
        id="ch00.ex3",
        title="The ledger that is 0.6 GB short",
        minutes=8,
        level="find the bug",
        solution=file_bytes,
        stub=broken_file_bytes,
        cases=((PRESETS["gpt-oss-20b"],),),
        hidden=((PRESETS["gpt-oss-120b"],), (PRESETS["gpt-oss-nano"],)),
        hints=(
            "MXFP4 holds more than 4 bits per weight.",
            "Every 32 weights share one scale, which is one byte.",
        ),
        wrong=(_biases_packed_too,),
    ),
)
