"""The reference pages that are made from the package: config cards, tensor names, solutions.

A page holds a line `<!-- made here: NAME -->`. When Sphinx reads the page, this extension puts
Markdown in its place, so these pages cannot fall behind the package, and no number is typed.
"""

import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx

from gptoss_lite import account, names
from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises import Exercise
from gptoss_lite.ladder import LEDGER_MODELS
from gptoss_lite.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"^<!-- made here: (\w+) -->$", re.MULTILINE)
NONE = "–"

TITLES = {
    "gpt2-xl": "GPT-2 XL",
    "gpt-oss-20b": "gpt-oss-20b",
    "gpt-oss-120b": "gpt-oss-120b",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
}
NORMS = {
    "layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
    "rmsnorm_cast_first": "RMSNorm, cast before scaling",
}
FFN = {"gelu": "GELU (tanh form)", "swiglu": "SwiGLU", "clamped_swiglu": "clamped SwiGLU"}


# --- config cards --------------------------------------------------------------------------------


def cards() -> str:
    """Return a card for each of the four models, and below them all rows side by side."""
    grid = ["::::{grid} 1 1 2 2", ":gutter: 3", ""]
    for key in LEDGER_MODELS:
        lines = (f"- **{label}:** {value}" for label, value in summary(PRESETS[key]).items())
        grid += [f":::{{grid-item-card}} {TITLES[key]}", *lines, ":::", ""]
    return "\n".join([*grid, "::::", "", "## Side by side", "", side_by_side()])


def summary(config: ModelConfig) -> dict[str, str]:
    """Say in a few lines what a model is."""
    c = config
    rows = {
        "parameters": f"{account.parameters(c):,}",
        "active per token": f"{account.parameters(c, active=True):,}",
        "shape": f"{c.n_layers} blocks, {c.d_model:,} wide",
        "attention": _attention(c),
        "positions": _positions(c),
        "feed-forward": _feed_forward(c),
        "norm": f"{NORMS[c.norm]}, eps {c.norm_eps:g}" + (", on q and k too" * c.qk_norm),
        "biases": _biases(c),
        "output head": "the embedding once more" if c.tied else "a matrix of its own",
        "dropout": f"{c.dropout:g}" if c.dropout else "none",
        "as published": f"{account.weight_bytes(c) / account.GIB:.2f} GiB, {_stored(c)}",
    }
    return rows


def _attention(c: ModelConfig) -> str:
    shared = "" if c.q_per_kv == 1 else f" on {c.n_kv_heads} kv heads"
    window = ""
    if c.sliding_window:
        sliding = sum(c.window(layer) is not None for layer in range(c.n_layers))
        window = f"; {sliding} of {c.n_layers} layers see {c.sliding_window} tokens"
    return f"{c.n_heads} heads of {c.head_dim}{shared}{window}" + ("; sinks" * c.sinks)


def _positions(c: ModelConfig) -> str:
    if c.positions == "learned":
        return f"a learned table of {c.context:,}"
    yarn = f", YaRN x {c.yarn.factor:g} from {c.yarn.original_context:,}" if c.yarn else ""
    return f"RoPE, base {c.rope_theta:,.0f}{yarn}; context {c.context:,}"


def _feed_forward(c: ModelConfig) -> str:
    kind = FFN[c.ffn]
    if c.moe is None:
        return f"{kind}, {c.d_ff:,} wide"
    return f"{c.moe.n_experts} experts, {c.moe.n_active} a token, {kind}, {c.d_ff:,} wide each"


def _biases(c: ModelConfig) -> str:
    router = c.moe is not None and c.moe.router_bias
    parts = {"attention": c.attn_bias, "feed-forward": c.ffn_bias, "router": router}
    return ", ".join(name for name, has in parts.items() if has) or "none"


def _stored(c: ModelConfig) -> str:
    if c.expert_dtype == c.dtype:
        return f"all {c.dtype}"
    return f"{c.expert_dtype.upper()} experts, the rest {c.dtype}"


def side_by_side() -> str:
    """Return a table of every config field, and of what follows from it."""
    configs = [PRESETS[key] for key in LEDGER_MODELS]
    rows = [[f"`{name}`", *(_value(c, name) for c in configs)] for name in fields()]
    rows += [
        [label, *(count(c) for c in configs)]
        for label, count in {
            "**counted**": lambda c: "",
            "parameters": lambda c: f"{account.parameters(c):,}",
            "active per token": lambda c: f"{account.parameters(c, active=True):,}",
            "expert or MLP share": lambda c: f"{_mlp_share(c):.1%}",
            "bytes as published": lambda c: f"{account.weight_bytes(c):,}",
            "KV bytes per new token": lambda c: f"{_kv_growth(c):,}",
            "GFLOP of the matrices": lambda c: f"{account.matmul_flops(c) / 1e9:.2f}",
        }.items()
    ]
    return _table(["", *(TITLES[key] for key in LEDGER_MODELS)], rows)


def fields() -> Iterator[str]:
    """Yield the name of every config field; those of nested configs with a dot."""
    both = PRESETS["gpt-oss-20b"]
    for name in ModelConfig.__dataclass_fields__:
        nested = getattr(getattr(both, name), "__dataclass_fields__", None)
        yield from [f"{name}.{inner}" for inner in nested] if nested else [name]


def _value(config: ModelConfig, name: str) -> str:
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _mlp_share(config: ModelConfig) -> float:
    table = account.parameter_table(config)
    parts = [n for name, n in table.items() if name.startswith(("expert", "ffn"))]
    return sum(parts) / sum(table.values())


def _kv_growth(config: ModelConfig) -> int:
    last = config.context
    return account.kv_bytes(config, last) - account.kv_bytes(config, last - 1)


# --- tensor names --------------------------------------------------------------------------------


def tensors() -> str:
    """Return one table a family: our parameter names, the files', and the shape in the file."""
    layouts = {
        "GPT-2": names.gpt2(PRESETS["gpt2-xl"], ""),
        "gpt-oss, Hugging Face": names.gpt_oss(PRESETS["gpt-oss-20b"]),
        "gpt-oss, `original/`": names.gpt_oss_original(PRESETS["gpt-oss-20b"]),
        "Qwen3-MoE": names.qwen3_moe(PRESETS["qwen3-30b-a3b"]),
    }
    parts = []
    for title, layout in layouts.items():
        rows = [_tensor(part) for part in layout.parts if ".1." not in _layer_mark(part.ours)]
        parts += [f"### {title}", "", _table(["ours", "in the file", "shape"], rows), ""]
    return "\n".join(parts)


def _layer_mark(name: str) -> str:
    """Keep layer 0 only: mark every other layer the same way."""
    return re.sub(r"^blocks\.[1-9]\d*\.", ".1.", name)


def _tensor(part: names.Part) -> list[str]:
    first, last = part.files[0], part.files[-1]
    file = f"`{_layer(first)}`" if first == last else f"`{_layer(first)}` … `{_layer(last)}`"
    if len(part.files) > 1:
        file += f" ({len(part.files)} tensors)"
    shape = " × ".join(f"{size:,}" for size in part.shape)
    return [f"`{_layer(part.ours)}`", file, shape]


def _layer(name: str) -> str:
    return re.sub(r"^((?:model\.)?(?:blocks|layers|block|h))\.0\.", r"\1.N.", name)


# --- solutions -----------------------------------------------------------------------------------


def solutions() -> str:
    """Return every exercise with its task, and its solution folded."""
    found = sorted((ROOT / "gptoss_lite" / "exercises").glob("ch*.py"))
    chapters = [path.stem for path in found if re.fullmatch(r"ch(\d\d|[A-Z])", path.stem)]
    return "\n".join(map(_chapter, chapters))


def _chapter(chapter: str) -> str:
    number = chapter.removeprefix("ch")
    kind = "Chapter" if number.isdigit() else "Appendix"
    path = notebooks().get(number)
    title = f"{kind} {number}"
    if path is not None:
        title += f": {_title(path)}"
    where = f"[To the {kind.lower()}](../{path.relative_to(ROOT)})." if path else "Still to come."
    exercises = import_module(f"gptoss_lite.exercises.{chapter}").EXERCISES
    return "\n".join([f"## {title}", "", where, "", *map(_solution, exercises)])


def _solution(exercise: Exercise) -> str:
    return "\n".join(
        [
            f"### {exercise.id}: {exercise.title}",
            "",
            f"*{exercise.level.capitalize()}, {exercise.minutes} minutes.*",
            "",
            *_code(exercise.stub_source()),
            "",
            "````{dropdown} Solution",
            *_code(exercise.solution_source()),
            "````",
            "",
        ]
    )


def _code(source: str) -> list[str]:
    return ["```{code-block} python", ":class: gl-code", "", source, "```"]


def notebooks() -> dict[str, Path]:
    """Return the notebook of each chapter and appendix in the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    found = [ROOT / f"{file}.ipynb" for file in files if file.startswith("chapters/")]
    return {path.name.split("_")[0]: path for path in found}


def _title(path: Path) -> str:
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    return "".join(first["source"]).splitlines()[0].removeprefix("# ")


# --- the extension -------------------------------------------------------------------------------

MADE: dict[str, Callable[[], str]] = {"cards": cards, "tensors": tensors, "solutions": solutions}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what is made in the place of its marks."""
    source[0] = PLACE.sub(lambda mark: MADE[mark[1]](), source[0])


_PLAIN: dict[str, list[str]] = {}  # docstrings that napoleon must leave alone


def as_rst(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring's `code` into reStructuredText's, and escape what it would take for more."""
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[number] = "".join(
                f"``{piece.strip('` ')}``"
                if piece.startswith("`")
                else re.sub(r"([*|])", r"\\\1", piece)
                for piece in re.split(r"(`+[^`]+`+)", line)
            )
        if number and lines[number - 1].strip() == "Returns:":
            # Types are in the signature; an empty one keeps "Keys: ..." a sentence.
            lines[number] = re.sub(r"^(\s*)", r"\1: ", lines[number])
    if what in ("property", "attribute"):
        _PLAIN[name] = list(lines)


def restore(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Give a property its sentence back: napoleon takes what is before a colon for its type."""
    lines[:] = _PLAIN.pop(name, lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(["::::{div} gl-small", *(f"| {' | '.join(line)} |" for line in lines), "::::"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", fill)
    if "sphinx.ext.autodoc" in app.extensions:
        app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
        app.connect("autodoc-process-docstring", restore, priority=600)  # and after it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
