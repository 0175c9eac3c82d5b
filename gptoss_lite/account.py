"""Every size in the book, from a config alone: parameters, bytes, KV cache, FLOPs, and what fits.

Pure arithmetic on integers; no torch. GiB is 2 ** 30 bytes, GB is 10 ** 9, and text says which.
"""

from dataclasses import asdict, dataclass

from gptoss_lite.config import MXFP4_BLOCK, ModelConfig, require_config
from gptoss_lite.errors import ConfigError

GIB = 2**30
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "mxfp4": 4 + 8 / MXFP4_BLOCK}
OVERHEAD_BYTES = GIB  # activations, kernels and the framework itself
NO_MEMORY = 2**63  # bytes; what is larger is a slip
USUAL_CONTEXT = 4_096  # tokens that `fit` asks for if it is not told


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Count the parameters by part; the values add up to `parameters(config)`.

    Returns:
        Keys: embedding, positions, attention, norms, router, expert_weights, expert_biases (or
        ffn_weights, ffn_biases without experts), unembedding (0 if tied).
    """
    require_config(config)
    c = config
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    attention = 2 * c.d_model * (q_width + kv_width)
    attention += (q_width + 2 * kv_width + c.d_model) * c.attn_bias
    per_norm = 2 if c.norm == "layernorm" else 1  # a scale, and LayerNorm's bias
    attention += c.n_heads * c.sinks + 2 * c.head_dim * per_norm * c.qk_norm
    norm = c.d_model * per_norm
    n_in = 1 if c.ffn == "gelu" else 2
    weights, biases = (n_in + 1) * c.d_model * c.d_ff, n_in * c.d_ff + c.d_model
    kind, copies = ("expert", c.moe.n_experts) if c.moe else ("ffn", 1)
    router = c.moe.n_experts * (c.d_model + c.moe.router_bias) if c.moe else 0
    return {
        "embedding": c.vocab_size * c.d_model,
        "positions": c.context * c.d_model if c.positions == "learned" else 0,
        "attention": c.n_layers * attention,
        "norms": (2 * c.n_layers + 1) * norm,
        "router": c.n_layers * router,
        f"{kind}_weights": c.n_layers * copies * weights,
        f"{kind}_biases": c.n_layers * copies * biases * c.ffn_bias,
        "unembedding": 0 if c.tied else c.vocab_size * c.d_model,
    }


def parameters(config: ModelConfig, *, active: bool = False, embedding: bool = False) -> int:
    """Count parameters.

    Args:
        config: the model.
        active: count only those one token uses: A of E experts, and the output head but not the
            embedding table, of which it reads one row (the rule of gpt-oss's model card).
        embedding: with `active`, count the embedding table too (Qwen's published 3.3B).

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> parameters(PRESETS["gpt-oss-20b"]), parameters(PRESETS["gpt-oss-20b"], active=True)
        (20914757184, 3608307264)
    """
    table = parameter_table(config)
    if not active:
        return sum(table.values())
    if config.moe:
        for part in ("expert_weights", "expert_biases"):
            table[part] = table[part] * config.moe.n_active // config.moe.n_experts
    if config.tied:  # one table serves both ends
        table["unembedding"], table["embedding"] = table["embedding"], 0
    if not embedding:
        table["embedding"] = 0
    table["positions"] = 0 if not embedding else table["positions"]
    return sum(table.values())


def weight_bytes(
    config: ModelConfig, *, dense: str | None = None, experts: str | None = None
) -> int:
    """Count the bytes of all weights.

    Args:
        config: the model; its dtype and expert_dtype are what the published files hold.
        dense: another dtype for everything but expert matrices ("bfloat16", "float32").
        experts: another dtype for expert matrices ("mxfp4", "bfloat16", "float32").

    Raises:
        ConfigError: a dtype without a known width.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> weight_bytes(PRESETS["gpt-oss-20b"])
        13761264768
    """
    table = parameter_table(config)
    expert_weights = table.get("expert_weights", 0)
    rest = sum(table.values()) - expert_weights
    dense_bits, expert_bits = (
        dtype_bits(dense or config.dtype),
        dtype_bits(experts or config.expert_dtype),
    )
    return int(rest * dense_bits / 8) + int(expert_weights * expert_bits / 8)


def embedding_bytes(config: ModelConfig, dense: str | None = None) -> int:
    """Count the bytes that a device saves if the embedding stays in another memory.

    Args:
        config: the model.
        dense: dtype of the weights outside the experts, if not the published one.

    Raises:
        ConfigError: a tied embedding: it is the output matrix, which every token reads whole.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> embedding_bytes(PRESETS["gpt-oss-20b"])
        1158266880
    """
    if config.tied:
        raise ConfigError(
            "This model's embedding is its output matrix, too, so it cannot be left on the CPU: "
            "every token reads all of it. Do without offload_embedding."
        )
    return int(parameter_table(config)["embedding"] * dtype_bits(dense or config.dtype) / 8)


def expert_bytes(config: ModelConfig) -> int:
    """Count the bytes of one expert as the files hold it: its matrices and its biases.

    Raises:
        ConfigError: a model without experts.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> expert_bytes(PRESETS["gpt-oss-20b"])
        13236480
    """
    if config.moe is None:
        raise ConfigError("This model has no experts: moe is None.")
    table, n = parameter_table(config), config.n_layers * config.moe.n_experts
    weights, biases = table["expert_weights"] // n, table["expert_biases"] // n
    return int(weights * dtype_bits(config.expert_dtype) / 8) + int(
        biases * dtype_bits(config.dtype) / 8
    )


def dtype_bits(dtype: str) -> float:
    """Return the width of one number; MXFP4's counts its share of a scale.

    Raises:
        ConfigError: a dtype without a known width.
    """
    if dtype not in BITS:
        raise ConfigError(f"dtype {dtype!r} has no known width here. Use one of {sorted(BITS)}.")
    return BITS[dtype]


def kv_bytes(
    config: ModelConfig,
    context_tokens: int,
    *,
    batch: int = 1,
    dtype: str = "bfloat16",
    rolling: bool = True,
) -> int:
    """Count the bytes of keys and values for a context.

    Args:
        config: the model.
        context_tokens: tokens held, prompt and answer together.
        batch: sequences.
        dtype: of the cache.
        rolling: sliding layers keep their window only; False counts every layer as full.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> kv_bytes(PRESETS["gpt-oss-20b"], 131_072) / 2**30
        3.0029296875
    """
    require_config(config)
    if context_tokens < 0 or batch < 0:
        raise ConfigError(f"context_tokens={context_tokens} and batch={batch} cannot be negative.")
    if dtype == "mxfp4":
        raise ConfigError("A KV cache in MXFP4 is not something this package has. Use 'bfloat16'.")
    held = 0
    for layer in range(config.n_layers):
        window = config.window(layer) if rolling else None
        held += min(context_tokens, window or context_tokens)
    per_token = 2 * config.n_kv_heads * config.head_dim * int(dtype_bits(dtype)) // 8
    return batch * held * per_token


def cache_dtype(config: ModelConfig, dense: str | None = None) -> str:
    """Return the dtype in which a model keeps keys and values: that of its activations.

    It is the dense weights' dtype, but for two that only store: float16 weights meet float32
    activations (see `checkpoint.held_dtype`), and MXFP4 weights those of the published dtype.

    Args:
        config: the model.
        dense: dtype of the weights outside the experts, if not the published one.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> cache_dtype(PRESETS["gpt-oss-20b"]), cache_dtype(PRESETS["gpt-oss-20b"], "float16")
        ('bfloat16', 'float32')
    """
    dtype = config.dtype if dense in (None, "mxfp4") else dense
    return "float32" if dtype == "float16" else dtype


def step_bytes(
    config: ModelConfig,
    context_tokens: int = 0,
    *,
    batch: int = 1,
    dense: str | None = None,
    experts: str | None = None,
) -> dict[str, int]:
    """Count the bytes that one decoding step reads: each weight it uses once, and the cache.

    A batch shares every dense matrix. Its tokens are taken to choose their experts evenly and
    without regard to each other, so that E * (1 - (1 - A / E) ** batch) different ones are read.

    Args:
        config: the model.
        context_tokens: tokens in the cache of each sequence.
        batch: sequences that are decoded together, one token each.
        dense: dtype of all but expert matrices; the published one if None. The cache follows it:
            see `cache_dtype`.
        experts: dtype of the expert matrices; the published one if None.

    Returns:
        Keys: experts, attention, unembedding, other (norms, router, biases), cache. Of the
        embedding and position tables a token reads a row, which is not counted.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> read = step_bytes(PRESETS["gpt-oss-20b"], 1_024)
        >>> round(read["experts"] / 1e9, 2), round(sum(read.values()) / 1e9, 2)
        (1.27, 3.74)
    """
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1.")
    table = parameter_table(config)
    dense_bits, expert_bits = (
        dtype_bits(dense or config.dtype),
        dtype_bits(experts or config.expert_dtype),
    )
    share = 1.0
    if config.moe:
        share = 1 - (1 - config.moe.n_active / config.moe.n_experts) ** batch
    weights, biases = (table.get(f"expert_{part}", 0) for part in ("weights", "biases"))
    dense_mlp = table.get("ffn_weights", 0) + table.get("ffn_biases", 0)
    bits = {
        "experts": share * (weights * expert_bits + biases * dense_bits) + dense_mlp * dense_bits,
        "attention": table["attention"] * dense_bits,
        "unembedding": table["embedding" if config.tied else "unembedding"] * dense_bits,
        "other": (table["norms"] + table["router"]) * dense_bits,
    }
    read = {part: int(n / 8) for part, n in bits.items()}
    cache = kv_bytes(config, context_tokens, batch=batch, dtype=cache_dtype(config, dense))
    return read | {"cache": cache}


def flops(config: ModelConfig, context_tokens: int = 0) -> int:
    """Count the floating-point operations of one new token's forward pass.

    A multiply-add is two. Matrix products, plus scores and value mixing over `context_tokens`
    visible keys (the window, where a layer slides); norms and activations are left out.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> round(flops(PRESETS["gpt-oss-20b"]) / 1e9, 2)
        7.21
    """
    return matmul_flops(config) + attention_flops(config, context_tokens)


def matmul_flops(config: ModelConfig) -> int:
    """Count the operations of one token's matrix products: 2 for each weight it meets."""
    require_config(config)
    c = config
    attention = 2 * c.d_model * (c.n_heads + c.n_kv_heads) * c.head_dim
    ffn = (2 if c.ffn == "gelu" else 3) * c.d_model * c.d_ff
    if c.moe:
        ffn = ffn * c.moe.n_active + c.d_model * c.moe.n_experts
    return 2 * (c.n_layers * (attention + ffn) + c.d_model * c.vocab_size)


def attention_flops(config: ModelConfig, context_tokens: int) -> int:
    """Count the operations of one token's scores and value mixing at a context length.

    Raises:
        ConfigError: a negative context.
    """
    require_config(config)
    if context_tokens < 0:
        raise ConfigError(f"context_tokens={context_tokens} cannot be negative.")
    total = 0
    for layer in range(config.n_layers):
        seen = min(context_tokens, config.window(layer) or context_tokens)
        total += 4 * config.n_heads * config.head_dim * seen
    return total


def step_limit(
    config: ModelConfig,
    bandwidth: float,
    flops_per_s: float,
    *,
    batch: int = 1,
    context_tokens: int = 1_024,
) -> float:
    """Return the most tokens/s that decoding `batch` sequences together can give.

    A step takes at least the longer of two times: reading its bytes, and its arithmetic.

    Args:
        config: the model.
        bandwidth: bytes per second that the memory delivers.
        flops_per_s: operations per second that large matrix products reach.
        batch: sequences decoded together.
        context_tokens: tokens in the cache of each.

    Raises:
        ConfigError: a rate that is not a positive number, or no sequence.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> round(step_limit(PRESETS["gpt-oss-20b"], 34e9, 412e9), 1)
        9.1
    """
    for name, rate in (("bandwidth", bandwidth), ("flops_per_s", flops_per_s)):
        if not 0 < rate < float("inf"):
            raise ConfigError(f"{name}={rate} must be a positive number, such as 1e12 a second.")
    read_s = sum(step_bytes(config, context_tokens, batch=batch).values()) / bandwidth
    compute_s = batch * flops(config, context_tokens) / flops_per_s
    return batch / max(read_s, compute_s)


@dataclass(frozen=True)
class Fit:
    """Whether a model fits a memory, and how long a context it leaves room for."""

    fits: bool
    memory_bytes: int
    weight_bytes: int
    kv_bytes: int
    overhead_bytes: int
    context_tokens: int
    longest_context_tokens: int  # 0 if not even the weights fit
    asked_tokens: int  # more than context_tokens where the model's context is shorter

    @property
    def needed_bytes(self) -> int:
        """Weights, cache and overhead together."""
        return self.weight_bytes + self.kv_bytes + self.overhead_bytes

    def to_dict(self) -> dict[str, int | bool]:
        """Return the fields and `needed_bytes`, as JSON can hold them."""
        return {**asdict(self), "needed_bytes": self.needed_bytes}

    def __str__(self) -> str:
        asked = ""
        if self.asked_tokens > self.context_tokens:
            asked = f" (the most this model reads; asked for {self.asked_tokens:,})"
        parts = (
            f"{readable_bytes(self.weight_bytes)} weights + {readable_bytes(self.kv_bytes)} "
            f"KV cache at {self.context_tokens:,} tokens{asked} + "
            f"{readable_bytes(self.overhead_bytes)} "
            f"overhead = {readable_bytes(self.needed_bytes)} of {readable_bytes(self.memory_bytes)}"
        )
        if self.fits:
            return f"It fits: {parts}. Longest context: {self.longest_context_tokens:,} tokens."
        short = readable_bytes(self.needed_bytes - self.memory_bytes)
        if self.longest_context_tokens:
            advice = f"A context of {self.longest_context_tokens:,} tokens would fit."
        else:
            advice = "No context fits beside the weights."
        return f"It does not fit: {parts}, short by {short}. {advice}"


def readable_bytes(n_bytes: int) -> str:
    """Write a size in GiB, or in MiB where that says more."""
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB // 100 else f"{n_bytes / 2**20:.2f} MiB"


def fit(
    config: ModelConfig,
    memory_bytes: float,
    *,
    context_tokens: int | None = None,
    batch: int = 1,
    dense: str | None = None,
    experts: str | None = None,
    offload_embedding: bool = False,
    overhead_bytes: int = OVERHEAD_BYTES,
) -> Fit:
    """Say whether weights, cache and overhead fit a memory, and the longest context that does.

    Args:
        config: the model.
        memory_bytes: of the device, e.g. 16e9 for a card sold as 16 GB.
        context_tokens: tokens to hold, at most the model's context; 4,096 if None.
        batch: sequences of that length.
        dense: dtype of the weights outside the experts, if not the published one. The cache
            follows it: see `cache_dtype`.
        experts: dtype of the expert matrices, if not the published one.
        offload_embedding: the embedding is in another memory, as `load` can leave it.
        overhead_bytes: kept free for activations and the framework.

    Raises:
        ConfigError: a memory, overhead or batch out of range, or an embedding that is the output
            matrix, too, to be left out.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> fit(PRESETS["gpt-oss-20b"], 16e9).longest_context_tokens
        47275
    """
    if not 0 < memory_bytes < NO_MEMORY:
        wrong = "below 2**63" if memory_bytes > 0 else "positive"
        raise ConfigError(f"memory_bytes={memory_bytes} must be {wrong}: 16e9 is 16 GB.")
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1.")
    if overhead_bytes < 0:
        raise ConfigError(f"overhead_bytes={overhead_bytes} cannot be negative.")
    weights = weight_bytes(config, dense=dense, experts=experts)
    if offload_embedding:
        weights -= embedding_bytes(config, dense)
    kept = cache_dtype(config, dense)
    asked = min(USUAL_CONTEXT, config.context) if context_tokens is None else context_tokens
    held = min(asked, config.context)
    cache = kv_bytes(config, held, batch=batch, dtype=kept)
    room = int(memory_bytes) - weights - overhead_bytes
    return Fit(
        fits=cache <= room,
        memory_bytes=int(memory_bytes),
        weight_bytes=weights,
        kv_bytes=cache,
        overhead_bytes=overhead_bytes,
        context_tokens=held,
        longest_context_tokens=_longest_context(config, room, batch, kept),
        asked_tokens=asked,
    )


def _longest_context(config: ModelConfig, room_bytes: int, batch: int, dtype: str) -> int:
    """Find the largest context whose cache fits, by bisection: kv_bytes only grows."""
    low, high = 0, config.context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high)
            if kv_bytes(config, middle, batch=batch, dtype=dtype) <= room_bytes
            else (low, middle - 1)
        )
    return low
