"""One frozen description of a Transformer: which parts it has, and how large they are.

GPT-2, every rung of the ladder, gpt-oss and Qwen3-MoE differ only in these fields. No code in
this package asks for a model's name.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeGuard

from gptoss_lite.errors import ConfigError

CHOICES = {
    "norm": ("layernorm", "rmsnorm", "rmsnorm_cast_first"),
    "positions": ("learned", "rope"),
    "ffn": ("gelu", "swiglu", "clamped_swiglu"),
    "dtype": ("float32", "bfloat16"),
    "expert_dtype": ("float32", "bfloat16", "mxfp4"),
}
MXFP4_BLOCK = 32  # weights that share one scale byte, along the input dimension
LAYER_LETTERS = {"sliding_attention": "S", "full_attention": "F"}  # of `layer_types`


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts: E feed-forward networks, of which each token uses A.

    Source:
        gpt-oss model card, section 2.2 (router, top-4, softmax over the selected experts).
    """

    n_experts: int  # E
    n_active: int  # A, experts per token
    router_bias: bool = False

    def __post_init__(self) -> None:
        _check_switches(self, "router_bias")
        are_whole = _is_whole(self.n_experts) and _is_whole(self.n_active)
        if not are_whole or not 1 <= self.n_active <= self.n_experts:
            raise ConfigError(
                f"n_active={self.n_active} experts cannot be chosen out of "
                f"n_experts={self.n_experts}. Use whole numbers, 1 <= n_active <= n_experts."
            )


@dataclass(frozen=True)
class YarnConfig:
    """YaRN: stretch RoPE to `factor` times the context it was trained at.

    Source:
        Peng et al. 2023, sections 3.2 to 3.4; gpt-oss `rope_scaling` in config.json.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0  # pairs that turn more often than this keep their frequency
    beta_slow: float = 1.0  # pairs that turn less often are slowed down by `factor`
    truncate: bool = False  # True rounds the ends of the ramp outwards; gpt-oss does not

    def __post_init__(self) -> None:
        _check_switches(self, "truncate")
        are_numbers = all(map(_is_number, (self.factor, self.beta_fast, self.beta_slow)))
        if (
            not (are_numbers and _is_whole(self.original_context))
            or self.factor < 1
            or self.original_context < 1
            or self.beta_slow <= 0
        ):
            raise ConfigError(
                f"YarnConfig needs factor >= 1, original_context >= 1 and beta_slow > 0, got "
                f"{self.factor!r}, {self.original_context!r} and {self.beta_slow!r}."
            )
        if self.beta_fast <= self.beta_slow:
            raise ConfigError(
                f"YarnConfig needs beta_fast > beta_slow, got {self.beta_fast} and "
                f"{self.beta_slow}. The published values are 32 and 1."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every switch and every size of one model. Letters are those of the book's notation page.

    Raises:
        ConfigError: fields that contradict each other, with both values and what to change.

    Example:
        >>> tiny = ModelConfig(vocab_size=64, d_model=16, n_layers=2, n_heads=4, n_kv_heads=4,
        ...                    head_dim=4, d_ff=64, context=32)
        >>> tiny.but(n_kv_heads=2).q_per_kv
        2
    """

    # Sizes
    vocab_size: int  # V
    d_model: int  # D, width of the residual stream
    n_layers: int  # L
    n_heads: int  # H, query heads
    n_kv_heads: int  # K, key and value heads
    head_dim: int  # hd; H * hd need not equal D
    d_ff: int  # F, hidden width of the MLP or of one expert
    context: int  # longest sequence the model is meant for

    # Switches
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    positions: str = "learned"
    rope_theta: float = 10_000.0
    yarn: YarnConfig | None = None
    ffn: str = "gelu"
    swiglu_alpha: float = 1.702  # clamped_swiglu only: slope inside the sigmoid
    swiglu_limit: float = 7.0  # clamped_swiglu only: where gate and up are cut
    moe: MoEConfig | None = None
    attn_bias: bool = True  # on q, k, v and o
    ffn_bias: bool = True  # on every matrix of the MLP or of the experts
    qk_norm: bool = False  # the norm over each head's q and k too, before the rotation
    sinks: bool = False
    sliding_window: int | None = None  # keys a query sees in an "S" layer, itself included
    layer_pattern: str = "F"  # S = sliding, F = full; repeated over the layers
    tied: bool = True  # the output head is the embedding
    dropout: float = 0.0

    # What the published files hold; the model computes in whatever dtype it is loaded in
    dtype: str = "bfloat16"
    expert_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_choices(self)
        _check_combinations(self)

    @property
    def q_per_kv(self) -> int:
        """G, the query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    def window(self, layer: int) -> int | None:
        """Return how many keys a query of this layer sees; None means all before it."""
        kind = self.layer_pattern[layer % len(self.layer_pattern)]
        return self.sliding_window if kind == "S" else None

    def but(self, **changes: Any) -> "ModelConfig":
        """Return a copy with some fields changed: one rung of the ladder.

        Raises:
            ConfigError: a name that is not a field, or a combination that is not allowed.
        """
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ConfigError(f"ModelConfig has no field {unknown}. Fields: {sorted(known)}.")
        return replace(self, **changes)

    @classmethod
    def from_hf(cls, source: str | Path | dict[str, Any]) -> "ModelConfig":
        """Read a config.json: GPT-2's, gpt-oss's (either layout) or Qwen3-MoE's.

        Args:
            source: the parsed dict, the file, or the folder that holds it.

        Raises:
            ConfigError: no such file, no JSON, a missing key, or an unknown architecture.
        """
        raw = source if isinstance(source, dict) else _read_json(Path(source))
        for recognises, reader in _READERS:
            if recognises(raw):
                try:
                    return cls(**reader(raw))
                except KeyError as missing:
                    raise ConfigError(
                        f"config.json of a {raw.get('model_type', 'gpt-oss original')!r} model "
                        f"lacks the key {missing}. Download the file again."
                    ) from None
                except ConfigError:
                    raise
                except (TypeError, ValueError, AttributeError, ArithmeticError) as problem:
                    raise ConfigError(
                        f"config.json of a {raw.get('model_type', 'gpt-oss original')!r} model has "
                        f"a value of the wrong kind: {problem}. Download the file again."
                    ) from None
        raise ConfigError(
            f"Unknown architecture: model_type={raw.get('model_type')!r}. This package reads "
            "'gpt2', 'gpt_oss' and 'qwen3_moe', and the config.json of gpt-oss's original/ folder."
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the config.json that transformers reads for this model.

        Raises:
            ConfigError: a mix of parts that no published architecture has (most rungs).
        """
        raw = _WRITERS[self.family](self)
        if _same_model(ModelConfig.from_hf(raw), self):
            return raw
        raise ConfigError(
            "No published architecture has this mix of parts, so there is no config.json for it. "
            "Only GPT-2, gpt-oss and Qwen3-MoE configurations can be written: start from PRESETS."
        )

    def to_original(self) -> dict[str, Any]:
        """Return the config.json of OpenAI's own `original/` folder for this model.

        Raises:
            ConfigError: anything but gpt-oss with MXFP4 experts, which is all that file can say.

        Source:
            openai/gpt-oss-20b, original/config.json.
        """
        if self.yarn and self.moe:
            raw = _to_original(self, self.yarn, self.moe)
            if _same_model(ModelConfig.from_hf(raw), self):
                return raw
        raise ConfigError(
            "OpenAI's original/ layout holds gpt-oss with YaRN and MXFP4 experts and nothing else. "
            "Write this model in the Hugging Face layout."
        )

    @property
    def family(self) -> str:
        """The published architecture these switches come closest to: whose file names to use."""
        if self.positions == "learned":
            return "gpt2"
        return "qwen3_moe" if self.qk_norm else "gpt_oss"


def require_config(value: object) -> ModelConfig:
    """Return a config, and say of anything else where to get one.

    Raises:
        ConfigError: the name of a model, or whatever else is no config.
    """
    if isinstance(value, ModelConfig):
        return value
    raise ConfigError(
        f"A ModelConfig is needed, got {str(value)[:40]!r} of type {type(value).__name__}. "
        "Give one of gptoss_lite.PRESETS, a rung's `.config` or a model's `.config`."
    )


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return (_is_whole(value) or isinstance(value, float)) and -math.inf < value < math.inf


def _check_whole(c: object, *names: str) -> None:
    for name in names:
        value = getattr(c, name)
        if not _is_whole(value) or value < 1:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least 1.")


def _check_numbers(c: object, *names: str) -> None:
    for name in names:
        value = getattr(c, name)
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"{name}={value!r} must be a number above 0, and finite.")


def _check_switches(c: object, *names: str) -> None:
    for name in names:
        if not isinstance(value := getattr(c, name), bool):
            raise ConfigError(f"{name}={value!r} must be True or False.")


def _check_sizes(c: ModelConfig) -> None:
    sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
    _check_whole(c, *sizes, "context")
    _check_numbers(c, "norm_eps", "rope_theta", "swiglu_alpha", "swiglu_limit")
    _check_switches(c, "attn_bias", "ffn_bias", "qk_norm", "sinks", "tied")
    if c.n_heads % c.n_kv_heads:
        allowed = [k for k in range(1, c.n_heads + 1) if c.n_heads % k == 0]
        raise ConfigError(
            f"n_heads={c.n_heads} cannot be shared by n_kv_heads={c.n_kv_heads}: "
            f"{c.n_heads} / {c.n_kv_heads} is not whole. Use n_kv_heads in {allowed}."
        )
    if not 0 <= c.dropout < 1:
        raise ConfigError(f"dropout={c.dropout} must be at least 0 and less than 1.")


def _check_choices(c: ModelConfig) -> None:
    for name, allowed in CHOICES.items():
        if (value := getattr(c, name)) not in allowed:
            raise ConfigError(f"{name}={value!r} is unknown. Use one of {list(allowed)}.")
    if not c.layer_pattern or set(c.layer_pattern) - set("SF"):
        raise ConfigError(
            f"layer_pattern={c.layer_pattern!r} must be made of S (sliding) and F (full): 'SF'."
        )


def _check_combinations(c: ModelConfig) -> None:
    if c.head_dim % 2:
        raise ConfigError(f"head_dim={c.head_dim} must be even: a rotation turns pairs.")
    if c.yarn and c.positions != "rope":
        raise ConfigError(f"yarn scales a rotation, but positions={c.positions!r}. Use 'rope'.")
    window = c.sliding_window
    if "S" in c.layer_pattern and (not _is_whole(window) or window < 1):
        raise ConfigError(
            f"layer_pattern={c.layer_pattern!r} has sliding layers, but "
            f"sliding_window={window!r}. Give a whole number of tokens, at least 1."
        )
    if "S" not in c.layer_pattern and c.sliding_window is not None:
        raise ConfigError(
            f"sliding_window={c.sliding_window} is used by no layer of "
            f"layer_pattern={c.layer_pattern!r}. Use 'SF', or sliding_window=None."
        )
    if c.expert_dtype == "mxfp4":
        if c.moe is None:
            raise ConfigError("expert_dtype='mxfp4' stores experts, but moe is None.")
        for name in ("d_model", "d_ff"):
            if getattr(c, name) % MXFP4_BLOCK:
                raise ConfigError(
                    f"{name}={getattr(c, name)} is not a multiple of {MXFP4_BLOCK}, so an expert's "
                    "rows cannot be cut into MXFP4 blocks."
                )


def _same_model(a: ModelConfig, b: ModelConfig) -> bool:
    """Compare two configs; patterns that give each layer the same window count as equal."""
    if a.n_layers != b.n_layers or any(a.window(n) != b.window(n) for n in range(a.n_layers)):
        return False
    return replace(a, layer_pattern=b.layer_pattern, sliding_window=b.sliding_window) == b


# --- config.json in ------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        path = path / "config.json" if path.is_dir() else path
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"No config.json at {path}. Give a folder that holds one.") from None
    except OSError as problem:
        raise ConfigError(
            f"{path} cannot be read: {problem.strerror}. Give a folder that holds a config.json."
        ) from None
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"{path} is not JSON ({problem}). Download it again.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, not an object. Download it again.")
    return raw


def _from_gpt2(raw: dict[str, Any]) -> dict[str, Any]:
    if (act := raw.get("activation_function", "gelu_new")) not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ConfigError(f"activation_function={act!r} is not GPT-2's tanh GELU, 'gelu_new'.")
    usual = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    for key, value in usual.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"{key}={raw[key]} is not GPT-2's {value}, and is not computed here.")
    _quant_method(raw)
    width, heads = raw["n_embd"], raw["n_head"]
    if width % heads:
        raise ConfigError(
            f"n_embd={width} cannot be cut into n_head={heads} heads: {width} / {heads} is not "
            "whole. Download config.json again."
        )
    return {
        "vocab_size": raw["vocab_size"],
        "d_model": width,
        "n_layers": raw["n_layer"],
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": width // heads,
        "d_ff": raw.get("n_inner") or 4 * width,
        "context": raw["n_positions"],
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "dropout": raw.get("resid_pdrop", 0.1),
        "dtype": _dtype_name(raw, "float32"),
        "expert_dtype": _dtype_name(raw, "float32"),
    }


def _from_gpt_oss(raw: dict[str, Any]) -> dict[str, Any]:
    rope = _rope_entries(raw)
    if "rope_type" not in rope and "type" not in rope:
        raise ConfigError(
            "rope_scaling is empty in this gpt_oss config.json, which some readers take for plain "
            "RoPE and others for YaRN x 32. Write {'rope_type': 'default'} or the YaRN numbers."
        )
    layers, kinds = raw["num_hidden_layers"], raw.get("layer_types")
    if kinds and len(kinds) != layers:
        raise ConfigError(
            f"layer_types has {len(kinds)} entries for num_hidden_layers={layers}. There must be "
            "one a layer: download config.json again."
        )
    dtype = _dtype_name(raw, "bfloat16")
    pattern = _pattern(kinds) if kinds else "SF"[:layers]
    return {
        **_shared_sizes(raw),
        "d_ff": raw["intermediate_size"],
        "norm": "rmsnorm",
        "norm_eps": raw["rms_norm_eps"],
        "positions": "rope",
        "rope_theta": _float(rope, "rope_theta"),
        "yarn": _yarn(rope),
        "ffn": "clamped_swiglu",
        "swiglu_alpha": raw.get("swiglu_alpha", 1.702),
        "swiglu_limit": raw["swiglu_limit"],
        "moe": MoEConfig(raw["num_local_experts"], raw["num_experts_per_tok"], router_bias=True),
        "attn_bias": raw.get("attention_bias", True),
        "sinks": True,
        "layer_pattern": pattern,
        "sliding_window": raw["sliding_window"] if "S" in pattern else None,
        "tied": raw.get("tie_word_embeddings", False),
        "dtype": dtype,
        "expert_dtype": "mxfp4" if _quant_method(raw, "mxfp4") else dtype,
    }


def _from_original(raw: dict[str, Any]) -> dict[str, Any]:
    """Read the 16 keys of OpenAI's own config.json; its code fixes everything else."""
    factor = raw["rope_scaling_factor"]
    yarn = YarnConfig(
        factor=factor,
        original_context=raw["initial_context_length"],
        beta_fast=_float(raw, "rope_ntk_beta"),
        beta_slow=_float(raw, "rope_ntk_alpha"),
    )
    moe = MoEConfig(raw["num_experts"], raw["experts_per_token"], router_bias=True)
    return {
        "vocab_size": raw["vocab_size"],
        "d_model": raw["hidden_size"],
        "n_layers": raw["num_hidden_layers"],
        "n_heads": raw["num_attention_heads"],
        "n_kv_heads": raw["num_key_value_heads"],
        "head_dim": raw["head_dim"],
        "d_ff": raw["intermediate_size"],
        "context": int(raw["initial_context_length"] * factor),
        "norm": "rmsnorm",
        "positions": "rope",
        "rope_theta": _float(raw, "rope_theta"),
        "yarn": yarn if factor > 1 else None,
        "ffn": "clamped_swiglu",
        "swiglu_limit": raw["swiglu_limit"],
        "moe": moe,
        "sinks": True,
        "sliding_window": raw["sliding_window"],
        "layer_pattern": "SF",
        "tied": False,
        "expert_dtype": "mxfp4",
    }


def _from_qwen3_moe(raw: dict[str, Any]) -> dict[str, Any]:
    _refuse_unread_qwen3_switches(raw)
    _quant_method(raw)
    return {
        **_shared_sizes(raw),
        "d_ff": raw["moe_intermediate_size"],
        "norm": "rmsnorm_cast_first",
        "norm_eps": raw["rms_norm_eps"],
        "positions": "rope",
        "rope_theta": _float(_rope_entries(raw), "rope_theta"),
        "ffn": "swiglu",
        "moe": MoEConfig(
            raw.get("num_experts") or raw["num_local_experts"], raw["num_experts_per_tok"]
        ),
        "attn_bias": raw.get("attention_bias", False),
        "ffn_bias": False,
        "qk_norm": True,
        "tied": raw.get("tie_word_embeddings", False),
        "dtype": _dtype_name(raw, "bfloat16"),
        "expert_dtype": _dtype_name(raw, "bfloat16"),
    }


def _refuse_unread_qwen3_switches(raw: dict[str, Any]) -> None:
    wanted = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    for key, value in wanted.items():
        if raw.get(key, value) != value:
            raise ConfigError(
                f"{key}={raw[key]!r} is not Qwen3-30B-A3B's {value!r}, and this package does not "
                "compute it. Use a published Qwen3-30B-A3B."
            )
    if _yarn(_rope_entries(raw)) or raw.get("use_sliding_window"):
        raise ConfigError(
            "This Qwen3-MoE config scales its rotation or slides a window; "
            "the published model does neither, and this package does not compute it."
        )


def _shared_sizes(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": raw["vocab_size"],
        "d_model": raw["hidden_size"],
        "n_layers": raw["num_hidden_layers"],
        "n_heads": raw["num_attention_heads"],
        "n_kv_heads": raw["num_key_value_heads"],
        "head_dim": raw["head_dim"],
        "context": raw["max_position_embeddings"],
    }


def _rope_entries(raw: dict[str, Any]) -> dict[str, Any]:
    """Join rope_theta and rope_scaling, which transformers 5 writes as one rope_parameters."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    # No default: the families have different ones, and a wrong base fails silently.
    return {key: raw[key] for key in ("rope_theta",) if key in raw} | scaling


def _yarn(rope: dict[str, Any]) -> YarnConfig | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ConfigError(
            f"rope_type={kind!r} is not one this package computes: 'yarn' or 'default'."
        )
    if given := [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key)]:
        raise ConfigError(
            f"rope_scaling sets {given[0]}={rope[given[0]]}, but this package always computes "
            "0.1 ln(factor) + 1, as gpt-oss does. Remove the key only if that is its value."
        )
    return YarnConfig(
        factor=_float(rope, "factor"),
        original_context=rope["original_max_position_embeddings"],
        beta_fast=_float({"beta_fast": 32.0, **rope}, "beta_fast"),
        beta_slow=_float({"beta_slow": 1.0, **rope}, "beta_slow"),
        truncate=rope.get("truncate", True),  # transformers rounds when the key is missing
    )


def _pattern(kinds: list[str]) -> str:
    """Turn a list of layer types into the shortest pattern that repeats to it."""
    if unknown := [kind for kind in kinds if kind not in list(LAYER_LETTERS)]:
        raise ConfigError(
            f"layer_types has {unknown[0]!r}, which this package does not compute: it knows "
            f"{' and '.join(map(repr, LAYER_LETTERS))}."
        )
    letters = "".join(LAYER_LETTERS[kind] for kind in kinds)
    for size in range(1, len(letters) + 1):
        if (letters[:size] * len(letters))[: len(letters)] == letters:
            return letters[:size]
    raise ConfigError("layer_types is empty: there must be one entry a layer.")


def _float(raw: dict[str, Any], key: str) -> float:
    """Read a number; `float` alone would take the text "1e4" and true for one."""
    value = raw[key]
    if not _is_number(value):
        raise ConfigError(f"{key}={value!r} must be a finite number. Download config.json again.")
    return float(value)


def _quant_method(raw: dict[str, Any], *known: str) -> str | None:
    """Return how config.json says that the weights are packed, if it is a way known here."""
    if not (packing := raw.get("quantization_config")):
        return None
    if (method := packing.get("quant_method")) not in known:
        raise ConfigError(
            f"quant_method={method!r} of this {raw['model_type']} config.json is not read by this "
            f"package: it takes {' or '.join(map(repr, known)) or 'unpacked weights'} here."
        )
    return method


def _dtype_name(raw: dict[str, Any], default: str) -> str:
    name = raw.get("dtype") or raw.get("torch_dtype") or default
    return name if name in CHOICES["dtype"] else default


_READERS = (
    (lambda raw: raw.get("model_type") == "gpt2", _from_gpt2),
    (lambda raw: raw.get("model_type") == "gpt_oss", _from_gpt_oss),
    (lambda raw: raw.get("model_type") == "qwen3_moe", _from_qwen3_moe),
    (lambda raw: "model_type" not in raw and "rope_ntk_beta" in raw, _from_original),
)


# --- config.json out -----------------------------------------------------------------------------


def _to_gpt2(c: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "bos_token_id": c.vocab_size - 1,
        "eos_token_id": c.vocab_size - 1,
        "layer_norm_epsilon": c.norm_eps,
        "n_ctx": c.context,
        "n_positions": c.context,
        "n_embd": c.d_model,
        "n_head": c.n_heads,
        "n_inner": None if c.d_ff == 4 * c.d_model else c.d_ff,
        "n_layer": c.n_layers,
        "tie_word_embeddings": True,
        "torch_dtype": c.dtype,
        "vocab_size": c.vocab_size,
    }


def _to_gpt_oss(c: ModelConfig) -> dict[str, Any]:
    moe = c.moe or MoEConfig(1, 1)
    kinds = {True: "full_attention", False: "sliding_attention"}
    raw = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": c.attn_bias,
        "attention_dropout": 0.0,
        "experts_per_token": moe.n_active,
        "num_experts_per_tok": moe.n_active,
        "num_local_experts": moe.n_experts,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.d_model,
        "initial_context_length": c.yarn.original_context if c.yarn else c.context,
        "initializer_range": 0.02,
        "intermediate_size": c.d_ff,
        "layer_types": [kinds[c.window(layer) is None] for layer in range(c.n_layers)],
        "max_position_embeddings": c.context,
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers,
        "num_key_value_heads": c.n_kv_heads,
        "rms_norm_eps": c.norm_eps,
        "rope_scaling": _rope_scaling(c.yarn),
        "rope_theta": c.rope_theta,
        # transformers wants a number even if no layer slides
        "sliding_window": c.sliding_window or c.context,
        "swiglu_alpha": c.swiglu_alpha,
        "swiglu_limit": c.swiglu_limit,
        "tie_word_embeddings": c.tied,
        "torch_dtype": c.dtype,
        "use_cache": True,
        "vocab_size": c.vocab_size,
    }
    if c.expert_dtype == "mxfp4":
        kept = [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ]
        raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    return raw


def _to_original(c: ModelConfig, yarn: YarnConfig, moe: MoEConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": c.n_layers,
        "num_experts": moe.n_experts,
        "experts_per_token": moe.n_active,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "swiglu_limit": c.swiglu_limit,
        "head_dim": c.head_dim,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "sliding_window": c.sliding_window,
        "initial_context_length": yarn.original_context,
        "rope_theta": c.rope_theta,
        "rope_scaling_factor": yarn.factor,
        "rope_ntk_alpha": yarn.beta_slow,
        "rope_ntk_beta": yarn.beta_fast,
    }


def _rope_scaling(yarn: YarnConfig | None) -> dict[str, Any]:
    if yarn is None:
        # null would make transformers fill in gpt-oss's own YaRN numbers
        return {"rope_type": "default"}
    raw = asdict(yarn)
    return {
        "rope_type": "yarn",
        "original_max_position_embeddings": raw.pop("original_context"),
        **raw,
    }


def _to_qwen3_moe(c: ModelConfig) -> dict[str, Any]:
    moe = c.moe or MoEConfig(1, 1)
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": c.attn_bias,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff * moe.n_active,
        "max_position_embeddings": c.context,
        "mlp_only_layers": [],
        "moe_intermediate_size": c.d_ff,
        "norm_topk_prob": True,
        "num_attention_heads": c.n_heads,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "num_hidden_layers": c.n_layers,
        "num_key_value_heads": c.n_kv_heads,
        "rms_norm_eps": c.norm_eps,
        "rope_scaling": None,
        "rope_theta": c.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": c.tied,
        "torch_dtype": c.dtype,
        "use_sliding_window": False,
        "vocab_size": c.vocab_size,
    }


_WRITERS = {"gpt2": _to_gpt2, "gpt_oss": _to_gpt_oss, "qwen3_moe": _to_qwen3_moe}
