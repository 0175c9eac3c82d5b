"""The claims this book checks: what was said, what we found, and the numbers behind it.

`data/claims.json` holds them. A figure in a finding is a `{placeholder}`, and stands for an
expression over this package's arithmetic, or for a number cited from a paper's table.
"""

import html
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_lite import account
from gptoss_lite.config import MXFP4_BLOCK, ModelConfig
from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.presets import PRESETS
from gptoss_lite.shown import Shown, inline
from gptoss_lite.shown import box as framed

_FILE = Path(__file__).parent / "data" / "claims.json"
VERDICTS = {
    "true": "we found the same",
    "true, nuance": "true with a condition that changes what follows from it",
    "imprecise": "points the right way, but a number, a name or a reason is off",
    "wrong as stated": "the source or a calculation says something else",
    "opinion": "nothing to check",
}


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict."""

    id: str  # "C01" to "C41"
    chapter: str  # "00" to "15"
    claim: str
    verdict: str  # a key of VERDICTS
    finding: str  # with its numbers filled in
    keys: tuple[str, ...]  # of the bibliography
    sources: tuple[str, ...]  # the same as a reader sees them, with tables and sections


def box(*ids: str) -> Shown:
    """Return the "Claim check" of a chapter, as the last line of a cell.

    Args:
        ids: of the claims, in the order to show them.

    Example:
        >>> print(str(box("C07")).splitlines()[0])
        Claim C07: RoPE replaced absolute position embeddings and adds no parameters.
    """
    chosen = [_one(id) for id in ids]
    return Shown(
        "".join(framed(f"Claim check {c.id}", _html(c)) for c in chosen),
        "\n\n".join(map(_text, chosen)),
    )


def table() -> Shown:
    """Return all claims with verdict and chapter."""
    head = ("id", "claim", "verdict", "chapter")
    rows = [(c.id, c.claim, c.verdict, c.chapter) for c in load()]
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = [f"{c.id}  {c.chapter:<7}  {c.verdict:<15}  {c.claim}" for c in load()]
    grid = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
    return Shown(framed("All claims", grid), "\n".join(lines))


def counts() -> dict[str, int]:
    """Count the claims of each verdict."""
    found = Counter(claim.verdict for claim in load())
    return {verdict: found[verdict] for verdict in VERDICTS}


def of_chapter(chapter: str) -> tuple[Claim, ...]:
    """Return the claims that a chapter decides, e.g. of "02"."""
    return tuple(claim for claim in load() if claim.chapter == chapter)


@cache
def load() -> tuple[Claim, ...]:
    """Read every claim, and compute its numbers."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(_read(raw, data["sources"]) for raw in data["claims"])


def _read(raw: dict[str, Any], labels: dict[str, str]) -> Claim:
    numbers = raw.get("numbers", {})
    values = {name: written(number) for name, number in numbers.items()}
    places = {n["from"]: n["where"] for n in numbers.values() if "where" in n}
    return Claim(
        id=raw["id"],
        chapter=raw["chapter"],
        claim=raw["claim"],
        verdict=raw["verdict"],
        finding=raw["finding"].format(**values),
        keys=tuple(raw["sources"]),
        sources=tuple(
            f"{labels[key]}, {places[key]}" if key in places else labels[key]
            for key in raw["sources"]
        ),
    )


def _one(id: str) -> Claim:
    for claim in load():
        if claim.id == id:
            return claim
    raise GptOssLiteError(f"There is no claim {id!r}. They run from C01 to {load()[-1].id}.")


def _html(claim: Claim) -> str:
    return (
        f"<p><strong>Claim {claim.id}.</strong> {inline(claim.claim)}</p>"
        f"<p><strong>Verdict: {claim.verdict}.</strong> {inline(claim.finding)}</p>"
        f"<p><small>Sources: {html.escape('; '.join(claim.sources))}.</small></p>"
    )


def _text(claim: Claim) -> str:
    return (
        f"Claim {claim.id}: {claim.claim}\n"
        f"Verdict: {claim.verdict}. {claim.finding}\n"
        f"Sources: {'; '.join(claim.sources)}."
    )


# --- numbers -------------------------------------------------------------------------------------


def written(number: dict[str, Any]) -> str:
    """Compute one number of a finding, or take the cited one, and write it with its format."""
    value = number["cited"] if "cited" in number else computed(number["expr"])
    return format(value, number.get("as", "," if isinstance(value, int) else ""))


def computed(expression: str) -> Any:
    """Evaluate an expression of our own data file with the names below, and no others."""
    return eval(expression, {"__builtins__": {}} | _NAMES)


def gap_to_gelu(alpha: float) -> float:
    """Return the largest difference between x * sigmoid(alpha * x) and the exact GELU.

    Example:
        >>> round(gap_to_gelu(1.702), 4), round(gap_to_gelu(1.0), 4)
        (0.0203, 0.193)
    """
    grid = [step / 1_000 for step in range(-6_000, 6_001)]
    return max(
        abs(x / (1 + math.exp(-alpha * x)) - x * (1 + math.erf(x / math.sqrt(2))) / 2) for x in grid
    )


def _kv_growth(config: ModelConfig) -> int:
    """Bytes that one more token adds to a long cache."""
    last = config.context
    return account.kv_bytes(config, last) - account.kv_bytes(config, last - 1)


_NAMES: dict[str, Any] = {
    "account": account,
    "GIB": account.GIB,
    "MXFP4_BLOCK": MXFP4_BLOCK,
    "gpt2_xl": PRESETS["gpt2-xl"],
    "oss_20b": PRESETS["gpt-oss-20b"],
    "oss_120b": PRESETS["gpt-oss-120b"],
    "qwen3": PRESETS["qwen3-30b-a3b"],
    "gap_to_gelu": gap_to_gelu,
    "kv_growth": _kv_growth,
    "window_off": lambda config: config.but(sliding_window=None, layer_pattern="F"),
    "heads_unshared": lambda config: config.but(n_kv_heads=config.n_heads),
    "range": range,
    "sum": sum,
}
