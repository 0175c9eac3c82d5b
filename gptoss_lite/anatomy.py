"""The parts of a model, read off its config: what each is, and how much of it there is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptoss_lite import account
from gptoss_lite.config import ModelConfig

NORM_NAMES = {
    "layernorm": ("LayerNorm", "less the mean; scale, bias"),
    "rmsnorm": ("RMSNorm", "scale only"),
    "rmsnorm_cast_first": ("RMSNorm", "scale only"),
}
# What a part is called where no one model is meant, from the output down to the input.
PARTS = {
    "head": "unembedding",
    "ffn": "MLP or experts",
    "router": "router",
    "adds": "residual adds",
    "sinks": "sinks",
    "mask": "mask",
    "rotation": "rotation",
    "heads": "heads",
    "norms": "norms",
    "dropout": "dropout",
    "positions": "learned positions",
    "embedding": "embedding",
    "files": "number format of the files",
}
FFN_NAMES = {"gelu": "GELU", "swiglu": "SwiGLU", "clamped_swiglu": "clamped SwiGLU"}


@dataclass(frozen=True)
class Part:
    """One part of the model, in all blocks together.

    Two parts are equal if nothing that is drawn or counted of them differs.
    """

    name: str  # the same in all models: "heads", "ffn"
    title: str  # what it is here: "MLP", "experts"
    notes: tuple[str, ...]
    what: str = field(compare=False)
    fields: tuple[tuple[str, str], ...]  # config fields that drive it, and their values
    parameters: int


def anatomy(config: ModelConfig) -> tuple[Part, ...]:
    """List the parts of a model from the output down to the input.

    Their parameters add up to `account.parameters(config)`.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> [part.title for part in anatomy(PRESETS["gpt2"])][:4]
        ['unembedding', 'MLP', 'residual adds', 'mask']
    """
    table = account.parameter_table(config)
    parts = (
        _head(config, table["unembedding"]),
        _ffn(config, table),
        _router(config, table["router"]),
        _adds(config),
        _sinks(config, _sink_count(config)),
        _mask(config),
        _rotation(config),
        _heads(config, table["attention"] - _sink_count(config)),
        _norms(config, table["norms"]),
        _dropout(config),
        _positions(config, table["positions"]),
        _embedding(config, table["embedding"]),
        _files(config),
    )
    return tuple(part for part in parts if part is not None)


def changed_parts(before: ModelConfig, after: ModelConfig) -> tuple[list[str], list[str]]:
    """Name the parts that are new or different in `after`, and those that are gone from it.

    Example:
        >>> from gptoss_lite.ladder import LADDER
        >>> changed_parts(LADDER[0].config, LADDER[1].config)
        ([], ['dropout'])
    """
    old, new = ({part.name: part for part in anatomy(config)} for config in (before, after))
    return [name for name in new if new[name] != old.get(name)], [n for n in old if n not in new]


def compare_parts(here: ModelConfig, there: ModelConfig) -> dict[str, str]:
    """Say of each part in which two models differ how it does, from the output down to the input.

    A part "differs" if any field that drives it does and is not a number in both models; if only
    numbers do, the part differs in "sizes". Others are "only here" or "only there".

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> found = compare_parts(PRESETS["gpt-oss-20b"], PRESETS["gpt-oss-120b"])
        >>> {name: how for name, how in found.items() if how != "sizes"}
        {}
        >>> compare_parts(PRESETS["gpt-oss-20b"], PRESETS["qwen3-30b-a3b"])["sinks"]
        'only here'
    """
    one, other = ({part.name: part for part in anatomy(config)} for config in (here, there))
    found = {name: _difference(one.get(name), other.get(name)) for name in PARTS}
    return {name: how for name, how in found.items() if how}


def _difference(one: Part | None, other: Part | None) -> str:
    if one is None or other is None:
        return "only here" if one else "only there" if other else ""
    a, b = dict(one.fields), dict(other.fields)
    unlike = [(a.get(n, ""), b.get(n, "")) for n in {**a, **b} if a.get(n) != b.get(n)]
    if not all(_NUMBER.fullmatch(value) for pair in unlike for value in pair):
        return "differs"
    return "sizes" if unlike or one.parameters != other.parameters else ""


_NUMBER = re.compile(r"[\d.,e-]+")


def field_value(config: ModelConfig, name: str) -> str:
    """Show the value of a field, or of one inside it, such as "moe.n_experts"."""
    value: object = config
    for step in name.split("."):
        value = getattr(value, step)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if type(value) is int else str(value)


# --- part by part --------------------------------------------------------------------------------


def _part(
    config: ModelConfig, name: str, title: str, notes: Sequence[str], what: str, fields: str,
    parameters: int = 0,
) -> Part:  # fmt: skip
    values = tuple((each, field_value(config, each)) for each in fields.split())
    return Part(name, title, tuple(notes), what, values, parameters)


def _head(c: ModelConfig, parameters: int) -> Part:
    note = "the embedding once more" if c.tied else f"a matrix of its own, {_table(c)}"
    what = "Scores every token of the vocabulary for coming next."
    return _part(c, "head", "unembedding", [note], what, "tied vocab_size d_model", parameters)


def _ffn(c: ModelConfig, table: dict[str, int]) -> Part:
    kind = FFN_NAMES[c.ffn]
    fields = "ffn d_ff d_model ffn_bias"
    if c.ffn == "clamped_swiglu":
        fields += " swiglu_alpha swiglu_limit"
    gate = "one matrix up, a curve, one matrix down"
    if c.ffn != "gelu":
        gate = "two matrices up, one gating the other, and one down"
    if c.moe is None:
        count = table["ffn_weights"] + table["ffn_biases"]
        what = f"Works on each token by itself: {gate}."
        return _part(c, "ffn", "MLP", [f"{kind}, {c.d_ff:,} wide"], what, fields, count)
    count = table["expert_weights"] + table["expert_biases"]
    notes = [f"{c.moe.n_active} work per token", f"{kind}, {c.d_ff:,} wide"]
    what = (
        f"{c.moe.n_experts} small MLPs in each block ({gate}); a token is sent through "
        f"{c.moe.n_active} of them, and their answers are mixed."
    )
    fields = f"moe.n_experts moe.n_active {fields} expert_dtype"
    title = f"{c.moe.n_experts} experts" + " in MXFP4" * (c.expert_dtype == "mxfp4")
    return _part(c, "ffn", title, notes, what, fields, count)


def _router(c: ModelConfig, parameters: int) -> Part | None:
    if c.moe is None:
        return None
    notes = [f"picks {c.moe.n_active}", "with bias" if c.moe.router_bias else "no bias"]
    what = "Scores the experts for each token, keeps the best, and weighs them by a softmax."
    fields = "moe.n_experts moe.n_active moe.router_bias"
    return _part(c, "router", "router", notes, what, fields, parameters)


def _adds(c: ModelConfig) -> Part:
    what = (
        "The residual stream: one vector per token, from the bottom to the top. Each part reads a "
        "normed copy of it and adds its answer."
    )
    return _part(c, "adds", "residual adds", [], what, "d_model n_layers")


def _sink_count(c: ModelConfig) -> int:
    with_and_without = (account.parameters(c), account.parameters(c.but(sinks=False)))
    return with_and_without[0] - with_and_without[1]


def _sinks(c: ModelConfig, parameters: int) -> Part | None:
    if not c.sinks:
        return None
    what = (
        "One learned score per head, beside those of the keys. It takes its share of the softmax "
        "and brings nothing, so a head can look at nothing."
    )
    return _part(c, "sinks", "sinks", ["per head"], what, "sinks n_heads", parameters)


def _mask(c: ModelConfig) -> Part:
    windows = [c.window(layer) for layer in range(min(c.n_layers, len(c.layer_pattern)))]
    notes = " | ".join("all" if w is None else f"{w:,} keys" for w in dict.fromkeys(windows))
    if any(windows):
        what = (
            f"A token sees itself and what came before: in layers marked S the last "
            f"{c.sliding_window:,} tokens, in those marked F all."
        )
    else:
        what = "A token sees itself and all that came before it."
    note = notes if any(windows) else "all before it"
    return _part(c, "mask", "mask", [note], what, "sliding_window layer_pattern")


def _rotation(c: ModelConfig) -> Part | None:
    if c.positions != "rope":
        return None
    what = "Turns queries and keys by their position, so that a score depends on the distance."
    title, note, fields = "RoPE", f"base {c.rope_theta:,.0f}", "positions rope_theta head_dim"
    if c.yarn:
        title, note = "RoPE", f"YaRN × {c.yarn.factor:g}"
        what += f" YaRN slows the slow turns down, for a context {c.yarn.factor:g} times as long."
        fields += " yarn.factor yarn.original_context context"
    return _part(c, "rotation", title, [note], what, fields)


def _heads(c: ModelConfig, parameters: int) -> Part:
    notes = [f"{c.n_kv_heads} key/value heads"]
    what = (
        "Four matrices: queries, keys, values, and the output. Heads compare queries with keys "
        "and mix values"
    )
    if c.n_kv_heads == c.n_heads:
        what += "; each has keys and values of its own."
    else:
        what += f"; {c.q_per_kv} heads share each pair of keys and values."
    if c.qk_norm:
        notes.append("q and k normed")
    fields = "n_heads n_kv_heads head_dim d_model attn_bias" + " qk_norm" * c.qk_norm
    return _part(c, "heads", f"{c.n_heads} query heads", notes, what, fields, parameters)


def _norms(c: ModelConfig, parameters: int) -> Part:
    title, note = NORM_NAMES[c.norm]
    what = "Brings every vector to one length before a part reads it"
    if c.norm == "layernorm":
        what += ", after taking out its mean"
    return _part(c, "norms", title, [note], f"{what}.", "norm norm_eps d_model", parameters)


def _dropout(c: ModelConfig) -> Part | None:
    if not c.dropout:
        return None
    what = (
        "In training, sets random numbers to zero: here, and among the attention weights. It does "
        "nothing when the trained model runs."
    )
    return _part(c, "dropout", "dropout", [f"{c.dropout:g}"], what, "dropout")


def _positions(c: ModelConfig, parameters: int) -> Part | None:
    if c.positions != "learned":
        return None
    what = "One learned vector per position, added to the token's. Position 1,025 has none."
    what = what.replace("1,025", f"{c.context + 1:,}")
    note = f"{c.context:,} × {c.d_model:,}"
    fields = "positions context d_model"
    return _part(c, "positions", "learned positions", [note], what, fields, parameters)


def _table(c: ModelConfig) -> str:
    return f"{c.vocab_size:,} × {c.d_model:,}"


def _embedding(c: ModelConfig, parameters: int) -> Part:
    what = "A table with one learned vector per token. It starts the residual stream."
    fields = "vocab_size d_model"
    return _part(c, "embedding", "embedding", [_table(c)], what, fields, parameters)


def _files(c: ModelConfig) -> Part:
    note = c.dtype if c.expert_dtype == c.dtype else f"{c.dtype}; experts in {c.expert_dtype}"
    what = "How the weights are stored; a model may compute in another format."
    return _part(c, "files", "files", [note.replace("mxfp4", "MXFP4")], what, "dtype expert_dtype")
