"""The ladder: GPT-2 becomes gpt-oss, at most two config fields at a time.

All rungs but the last share one small size, so that each runs on a laptop in seconds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from gptoss_lite import account
from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig, require_config
from gptoss_lite.errors import ConfigError
from gptoss_lite.presets import GPT_OSS_20B, PRESETS


@dataclass(frozen=True)
class Rung:
    """One runnable model on the way, and where the book and the papers explain its change."""

    name: str
    config: ModelConfig
    changes: tuple[str, ...]  # config fields that differ from the rung before
    chapter: str  # number of the book's chapter
    paper: str


_START = ModelConfig(
    vocab_size=257,
    d_model=64,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    d_ff=256,
    context=256,
    dropout=0.1,
    dtype="float32",
    expert_dtype="float32",
)

_STEPS = (
    ("no dropout", {"dropout": 0.0}, "02", "Liu, Bauer and Manning 2025"),
    ("RoPE", {"positions": "rope", "rope_theta": 150_000.0}, "03", "Su et al. 2021"),
    ("YaRN", {"yarn": YarnConfig(4.0, 256), "context": 1_024}, "04", "Peng et al. 2023"),
    ("SwiGLU", {"ffn": "swiglu"}, "05", "Shazeer 2020"),
    ("clamped SwiGLU", {"ffn": "clamped_swiglu"}, "05", "OpenAI 2025, model card"),
    ("mixture of experts", {"moe": MoEConfig(8, 4), "d_ff": 64}, "06", "Shazeer et al. 2017"),
    ("grouped-query attention", {"n_kv_heads": 2}, "07", "Ainslie et al. 2023"),
    ("sliding window", {"sliding_window": 16, "layer_pattern": "SF"}, "08", "Child et al. 2019"),
    ("RMSNorm", {"norm": "rmsnorm"}, "09", "Zhang and Sennrich 2019"),
    (
        "sinks and router bias",
        {"sinks": True, "moe": MoEConfig(8, 4, router_bias=True)},
        "10",
        "OpenAI 2025, model card",
    ),
    ("untied head", {"tied": False}, "10", "OpenAI 2025, model card"),
    ("MXFP4", {"dtype": "bfloat16", "expert_dtype": "mxfp4"}, "11", "OCP MX specification 2023"),
)


def _climb() -> tuple[Rung, ...]:
    rungs = [Rung("GPT-2", _START, (), "01", "Radford et al. 2019")]
    for name, changes, chapter, paper in _STEPS:
        config = rungs[-1].config.but(**changes)
        rungs.append(Rung(name, config, tuple(changes), chapter, paper))
    sizes = changed_fields(rungs[-1].config, GPT_OSS_20B)
    return (*rungs, Rung("gpt-oss-20b", GPT_OSS_20B, sizes, "14", "OpenAI 2025, model card"))


def changed_fields(a: ModelConfig, b: ModelConfig) -> tuple[str, ...]:
    """Return the names of the fields in which two configs differ, in the config's order."""
    return tuple(f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name))


LADDER = _climb()


def show_step(a: Rung | ModelConfig, b: Rung | ModelConfig) -> None:
    """Print what changes from a to b: the fields, what it costs, and the code that acts on them.

    Args:
        a: the rung or config before.
        b: the rung or config after.

    Raises:
        ConfigError: something else, such as a rung's name.

    Example:
        >>> show_step(LADDER[7], LADDER[8])  # doctest: +ELLIPSIS
        sliding window (chapter 08, Child et al. 2019)
          sliding_window       None -> 16
          layer_pattern        'F' -> 'SF'
        ...
    """
    before, after = (x.config if isinstance(x, Rung) else require_config(x) for x in (a, b))
    if isinstance(b, Rung):
        print(f"{b.name} (chapter {b.chapter}, {b.paper})")
    names = changed_fields(before, after)
    for name in names:
        print(f"  {name:<20} {getattr(before, name)!r} -> {getattr(after, name)!r}")
    print()
    for label, old, new in _ledger(before, after):
        print(f"  {label:<30} {old:>18,} -> {new:>18,}  {_change(old, new)}")
    print()
    for place in acting_code(after, names):
        print(f"  {place}")


LEDGER_MODELS = ("gpt2-xl", "gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b")


def show_ledger(*names: str) -> None:
    """Print what published models cost: parameters, memory, KV cache and FLOPs, one row each.

    Args:
        names: of presets; none means GPT-2 XL, both gpt-oss and Qwen3-30B-A3B.

    Raises:
        ConfigError: a name that no preset has.

    Example:
        >>> show_ledger("gpt-oss-20b")
                                           gpt-oss-20b
        parameters                      20,914,757,184
        active parameters per token      3,608,307,264
        weights in bfloat16, GiB                 38.96
        weights as published, GiB                12.82
        KV cache, KiB per new token              24.00
        KV cache at 4,096 tokens, GiB             0.10
        matrices, GFLOP per token                 7.21
        attention at 4,096, GFLOP                 0.83
        GiB is 2**30 bytes. The KV cache is in bfloat16. GFLOP is 10**9, a multiply-add counts two.
    """
    names = names or LEDGER_MODELS
    if unknown := [name for name in names if name not in list(PRESETS)]:
        raise ConfigError(f"There is no preset {unknown[0]!r}. Use one of {', '.join(PRESETS)}.")
    print(f"{'':<30}" + "".join(f"{name:>16}" for name in names))
    for label, count in _LEDGER.items():
        values = (count(PRESETS[name]) for name in names)
        cells = (f"{v:,}" if isinstance(v, int) else f"{v:,.2f}" for v in values)
        print(f"{label:<30}" + "".join(f"{cell:>16}" for cell in cells))
    print(_UNITS)
    for name in names:
        if (context := PRESETS[name].context) < 4_096:
            print(f"{name} reads at most {context:,} tokens; the rows at 4,096 are arithmetic.")


_UNITS = (
    "GiB is 2**30 bytes. The KV cache is in bfloat16. GFLOP is 10**9, a multiply-add counts two."
)
_LEDGER: dict[str, Callable[[ModelConfig], float]] = {
    "parameters": account.parameters,
    "active parameters per token": lambda c: account.parameters(c, active=True),
    "weights in bfloat16, GiB": (
        lambda c: account.weight_bytes(c, dense="bfloat16", experts="bfloat16") / account.GIB
    ),
    "weights as published, GiB": lambda c: account.weight_bytes(c) / account.GIB,
    "KV cache, KiB per new token": (
        lambda c: (account.kv_bytes(c, 4_097) - account.kv_bytes(c, 4_096)) / 2**10
    ),
    "KV cache at 4,096 tokens, GiB": lambda c: account.kv_bytes(c, 4_096) / account.GIB,
    "matrices, GFLOP per token": lambda c: account.matmul_flops(c) / 1e9,
    "attention at 4,096, GFLOP": lambda c: account.attention_flops(c, 4_096) / 1e9,
}


def _change(old: int, new: int) -> str:
    if old == new:
        return "same"
    return f"x {new / old:,.0f}" if new > 10 * old else f"{new / old - 1:+.1%}"


def _ledger(a: ModelConfig, b: ModelConfig) -> list[tuple[str, int, int]]:
    tokens = min(a.context, b.context)

    def row(label: str, count: Callable[[ModelConfig], int]) -> tuple[str, int, int]:
        return label, count(a), count(b)

    return [
        row("parameters", account.parameters),
        row("active parameters per token", lambda c: account.parameters(c, active=True)),
        row("weight bytes", account.weight_bytes),
        row(
            f"KV bytes at {tokens:,} tokens",
            lambda c: account.kv_bytes(c, tokens, dtype="bfloat16"),
        ),
        row(f"FLOPs per token at {tokens:,}", lambda c: account.flops(c, tokens)),
    ]


# The modules that build, run and store the model, in the order in which the book reads them.
_MODULES = ("positions", "attention", "cache", "norm", "ffn", "moe", "model", "names")
# Fields that the model reads through a method of the config.
_READ_THROUGH = {"sliding_window": "window", "layer_pattern": "window"}
# Classes that only some models have: in the others their lines do not act.
_BUILT_IF: dict[str, Callable[[ModelConfig], bool]] = {
    "LearnedPositions": lambda c: c.positions == "learned",
    "FeedForward": lambda c: c.moe is None,
    "MixtureOfExperts": lambda c: c.moe is not None,
}


def acting_code(config: ModelConfig, names: tuple[str, ...]) -> list[str]:
    """Find the lines of the package that act on some config fields.

    Args:
        config: its values are looked for too: `norm="rmsnorm"` finds the table's "rmsnorm".
        names: the fields.

    Returns:
        "file.py:line  code" for each line, in reading order. Lines of a part that a model with
        this config does not have are left out, and those that read a YaRN that it lacks.
    """
    patterns = [rf"config\.{_READ_THROUGH.get(name, name)}\b" for name in names]
    values = [getattr(config, name) for name in names]
    patterns += [f'"{value}"' for value in values if isinstance(value, str)]
    absent = [r"config\.yarn\b"] if config.yarn is None and "yarn" not in names else []
    found = []
    for module in _MODULES:
        source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        built = True
        for number, line in enumerate(source.splitlines(), start=1):
            if line and not line[0].isspace():  # a new class or function
                match = re.match(r"class (\w+)", line)
                built = _BUILT_IF[match[1]](config) if match and match[1] in _BUILT_IF else True
            if not built or any(re.search(pattern, line) for pattern in absent):
                continue
            if any(re.search(pattern, line) for pattern in patterns):
                found.append(f"{module}.py:{number:<4} {line.strip()}")
    return found
