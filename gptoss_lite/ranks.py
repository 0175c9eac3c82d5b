"""Sizes of a model that several devices share (see `parallel`): bytes of one rank, and traffic.

Pure arithmetic on integers; no torch. A rank is one of P processes, each with a device of its own.
"""

import math

from gptoss_lite import account
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ConfigError


def check_ranks(config: ModelConfig, n_ranks: int) -> None:
    """Refuse to share a model that cannot be dealt out evenly.

    Every rank needs as many key/value heads, and as many experts (or hidden features of a dense
    MLP), as any other. The vocabulary may be cut unevenly.

    Raises:
        ConfigError: with the numbers, and how many ranks would do.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> check_ranks(PRESETS["gpt-oss-120b"], 8)
    """
    name, size = ("n_experts", config.moe.n_experts) if config.moe else ("d_ff", config.d_ff)
    common = math.gcd(config.n_kv_heads, size)
    if n_ranks < 1 or common % n_ranks:
        fitting = [n for n in range(1, common + 1) if common % n == 0]
        raise ConfigError(
            f"n_kv_heads={config.n_kv_heads} and {name}={size} cannot be dealt out evenly to "
            f"{n_ranks} ranks. Use {' or '.join(map(str, fitting))}."
        )


def rank_parameter_table(config: ModelConfig, n_ranks: int) -> dict[str, int]:
    """Count the parameters that one rank holds, by part; keys as in `account.parameter_table`.

    Norms, the router, a learned position table and the biases that are added once (of o, and of a
    dense MLP's down) are whole on every rank; the rest is split.

    Raises:
        ConfigError: a model that cannot be dealt out evenly.
    """
    check_ranks(config, n_ranks)
    c, table = config, account.parameter_table(config)
    per_norm = 2 if c.norm == "layernorm" else 1
    head_norms = 2 * c.head_dim * per_norm * c.qk_norm
    whole = dict.fromkeys(table, 0) | {part: table[part] for part in ("positions", "norms")}
    whole |= {"router": table["router"]}
    whole["attention"] = c.n_layers * (c.d_model * c.attn_bias + head_norms)
    if not c.moe:
        whole["ffn_biases"] = c.n_layers * c.d_model * c.ffn_bias
    held = {part: whole[part] + (table[part] - whole[part]) // n_ranks for part in table}
    rows = c.d_model * -(-c.vocab_size // n_ranks)  # the last rank may hold fewer
    return held | {"embedding": rows, "unembedding": 0 if c.tied else rows}


def rank_weight_bytes(
    config: ModelConfig, n_ranks: int, *, dense: str | None = None, experts: str | None = None
) -> int:
    """Count the bytes of the weights that one rank holds.

    Args:
        config: the model.
        n_ranks: P, processes that share it.
        dense: as for `account.weight_bytes`, as is `experts`.
        experts: dtype of expert matrices.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> [round(rank_weight_bytes(PRESETS["gpt-oss-120b"], p) / 1e9, 2) for p in (1, 2, 4, 8)]
        [65.25, 32.64, 16.33, 8.18]
    """
    table = rank_parameter_table(config, n_ranks)
    matrices = table.get("expert_weights", 0)
    rest_bits = account.dtype_bits(dense or config.dtype) * (sum(table.values()) - matrices)
    return int((rest_bits + account.dtype_bits(experts or config.expert_dtype) * matrices) / 8)


def rank_kv_bytes(
    config: ModelConfig, n_ranks: int, context_tokens: int, *, dtype: str = "bfloat16"
) -> int:
    """Count the bytes of keys and values that one rank holds: those of its own heads."""
    check_ranks(config, n_ranks)
    return account.kv_bytes(config, context_tokens, dtype=dtype) // n_ranks


def sent_bytes(config: ModelConfig, n_ranks: int, dtype: str = "bfloat16") -> int:
    """Count the bytes that one rank sends for one decoded token.

    A sum over the ranks for the embedding and two in each layer, of D numbers each, of which a
    ring sends 2 (P - 1) / P; then each rank's logits go to P - 1 others.

    Source:
        Thakur et al. 2005, sections 4.1 and 4.5 (ring all-gather and all-reduce).

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> sent_bytes(PRESETS["gpt-oss-120b"], 2)
        621568
    """
    check_ranks(config, n_ranks)
    summed = (2 * config.n_layers + 1) * config.d_model
    own_logits = -(-config.vocab_size // n_ranks)
    numbers = 2 * summed * (n_ranks - 1) / n_ranks + own_logits * (n_ranks - 1)
    return int(numbers * account.dtype_bits(dtype) / 8)
