"""The model as a diagram, drawn from its config: every part at its place beside the stream."""

import math
import re
from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from gptoss_lite.anatomy import Part, anatomy, changed_parts, compare_parts
from gptoss_lite.config import ModelConfig

WIDTH, HEIGHT, TOP = 336, 612, -4
INLINE = 34  # in boxes lower than this the notes stand behind the title
MANY = 64  # experts that are drawn one by one
SIGN = 24  # boxes this narrow are circles with a plus in them

Where = tuple[int, int, int, int]  # x, y, width, height; y grows downwards
Glyph = tuple[str, str]  # "fill" or "line", and a path of M, L, h, v and z

# Parts that are drawn more than once say where they are.
_PLACES: dict[str, tuple[tuple[Where, str], ...]] = {
    "head": (((6, 4, 324, 30), ""),),
    "norms": (
        ((6, 46, 324, 26), "before the unembedding"),
        ((62, 210, 258, 26), "before the MLP"),
        ((62, 424, 258, 26), "before attention"),
    ),
    "adds": (((22, 94, 24, 24), "after the MLP"), ((22, 260, 24, 24), "after attention")),
    "dropout": (
        ((62, 94, 120, 24), "after the MLP"),
        ((62, 260, 120, 24), "after attention"),
        ((6, 470, 120, 24), "after the embedding"),
    ),
    "router": (((62, 128, 72, 72), ""),),
    "sinks": (((214, 306, 100, 26), ""),),
    "rotation": (((68, 306, 140, 26), ""),),
    "heads": (((68, 340, 140, 68), ""),),
    "mask": (((214, 340, 100, 68), ""),),
    "positions": (((62, 502, 258, 26), ""),),
    "embedding": (((6, 540, 324, 30), ""),),
    "files": (((6, 584, 324, 26), ""),),
}

# The stream, the ways into the parts and back, the frame of the block, and that of attention.
WIRES: tuple[Glyph, ...] = (
    ("line", "M34 540L34 72"),
    ("line", "M34 46L34 34"),
    ("line", "M34 248L190 248L190 236"),
    ("line", "M240 210L240 200"),
    ("line", "M240 128L240 106L46 106"),
    ("line", "M34 460L190 460L190 450"),
    ("line", "M190 424L190 416"),
    ("line", "M190 292L190 272L46 272"),
    ("fill", "M46 106L54 102L54 110z"),
    ("fill", "M46 272L54 268L54 276z"),
    ("fill", "M34 72L30 80L38 80z"),
    ("dash", "M14 84h312v382h-312z"),
    ("dash", "M62 292h258v124h-258z"),
)
LABELS = (("attention", 68, 302),)  # and the frame's, which counts the blocks
BLOCKS_AT = (320, 98)


def places(part: Part, config: ModelConfig) -> tuple[tuple[Where, str], ...]:
    """Return the boxes of a part, each with a word on where it is, if it has several."""
    if part.name == "ffn":
        return (((140, 128, 180, 72) if config.moe else (62, 128, 258, 72), ""),)
    return _PLACES[part.name]


def glyphs(part: Part, config: ModelConfig) -> tuple[Glyph, ...]:
    """Return what a part's boxes show beside text, drawn from the config."""
    draw = _GLYPHS.get(part.name)
    return draw(config) if draw else ()


def block(config: ModelConfig, before: ModelConfig | None = None, ax: Axes | None = None) -> Axes:
    """Draw a model's block, with what comes before and after it.

    Args:
        config: the model.
        before: mark what differs from this model.
        ax: where to draw; a new figure if None.
    """
    ax = ax or plt.subplots(figsize=(4.2, 7.6), layout="constrained")[1]
    return _model(
        ax, config, dict.fromkeys(changed_parts(before, config)[0], "*") if before else {}
    )


def block_pair(
    here: tuple[str, ModelConfig],
    there: tuple[str, ModelConfig],
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw two models' blocks beside each other, and mark what differs: * by more than sizes.

    Args:
        here: name and config of the one at the left.
        there: the same of the one at the right.
        axes: where to draw; a new figure if None.
    """
    if axes is None:
        figure = plt.figure(figsize=(8.4, 8.4), layout="constrained")
        axes = (figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2))
    found = compare_parts(here[1], there[1])
    signs = {name: "~" if how == "sizes" else "*" for name, how in found.items()}
    for ax, (name, config) in zip(axes, (here, there), strict=True):
        _model(ax, config, signs)
        ax.set_title(name, fontsize=9)
    axes[0].text(0, HEIGHT + 14, "* differs, ~ in sizes alone", fontsize=7, color="#57606a")
    return axes


def _model(ax: Axes, config: ModelConfig, signs: Mapping[str, str]) -> Axes:
    """Draw one model; `signs` stand behind the titles of parts, "*" with a thicker frame."""
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(HEIGHT, TOP)
    ax.set_aspect("equal")
    ax.axis("off")
    for glyph in WIRES:
        _draw(ax, glyph, zorder=1)
    for label, x, y in LABELS:
        ax.text(x, y, label, fontsize=7, color="#57606a")
    ax.text(*BLOCKS_AT, blocks_label(config), fontsize=7, color="#57606a", ha="right")
    for part in anatomy(config):
        for where, _ in places(part, config):
            _box(ax, part, where, signs.get(part.name, ""))
        for glyph in glyphs(part, config):
            _draw(ax, glyph, zorder=3)
    return ax


def blocks_label(config: ModelConfig) -> str:
    """Say how often the dashed frame is repeated."""
    return f"one block of {config.n_layers}"


# --- glyphs --------------------------------------------------------------------------------------


def _rect(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.4g} {y:.4g}h{width:.3g}v{height:.3g}h-{width:.3g}z"


def _row(x: float, y: float, width: float, height: float, n: int) -> list[str]:
    """Return n rectangles beside each other."""
    step = width / n
    return [_rect(x + i * step, y, step - min(3, step / 4), height) for i in range(n)]


def _head_rows(c: ModelConfig) -> tuple[Glyph, ...]:
    """Queries above; under them keys and values, each as wide as the heads that share it."""
    # queries, keys and values, and their height; lower and thinner below one more note
    y, below, height = (395, 401, 4) if c.qk_norm else (380, 393, 9)
    return (
        ("line", "".join(_row(76, y, 124, height, c.n_heads))),
        ("fill", "".join(_row(76, below, 124, height, c.n_kv_heads))),
    )


def _windows(c: ModelConfig) -> list[int | None]:
    return list(dict.fromkeys(c.window(layer) for layer in range(c.n_layers)))[:2]


def _masks(c: ModelConfig) -> tuple[Glyph, ...]:
    """Queries downwards, keys to the right: all before the query, or a band of them."""
    found: list[Glyph] = []
    for i, window in enumerate(_windows(c)):
        x, y = 228 + 42 * i, 379
        shape = f"M{x} {y}L{x} {y + 25}L{x + 25} {y + 25}z"
        if window is not None:
            shape = f"M{x} {y}L{x} {y + 8}L{x + 17} {y + 25}L{x + 25} {y + 25}z"
        found += [("fill", shape), ("line", _rect(x, y, 25, 25))]
    return tuple(found)


def _sink_columns(c: ModelConfig) -> tuple[Glyph, ...]:
    """One more column before the keys of each mask."""
    columns = [_rect(222 + 42 * i, 379, 3, 25) for i in range(len(_windows(c)))]
    return (("fill", "".join(columns)),)


def _activation(c: ModelConfig) -> tuple[Glyph, ...]:
    """The curve of the MLP from -9 to 9, or the experts with those at work filled."""
    if c.moe:
        squares = _row(148, 184, 164, 9, c.moe.n_experts)
        working = range(0, c.moe.n_experts, c.moe.n_experts // c.moe.n_active)
        filled = set(list(working)[: c.moe.n_active])
        rest = [square for i, square in enumerate(squares) if i not in filled]
        if len(squares) > MANY:  # too thin to be told apart: a bar, with slices at work
            rest = [_rect(148, 184, 164, 9)]
        return ("fill", "".join(squares[i] for i in sorted(filled))), ("line", "".join(rest))
    points = [(x / 2, _CURVES[c.ffn](x / 2, c)) for x in range(-18, 19)]
    curve = "L".join(f"{276 + 4 * x:.4g} {186 - 5 * y:.4g}" for x, y in points)
    return ("line", f"M{curve}"), ("dash", "M240 186L312 186"), ("dash", "M276 190L276 136")


_CURVES: dict[str, Callable[[float, ModelConfig], float]] = {
    "gelu": lambda x, _: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "swiglu": lambda x, _: x / (1 + math.exp(-x)),
    "clamped_swiglu": lambda x, c: (
        min(x, c.swiglu_limit) / (1 + math.exp(-c.swiglu_alpha * min(x, c.swiglu_limit)))
    ),
}

_GLYPHS: dict[str, Callable[[ModelConfig], tuple[Glyph, ...]]] = {
    "heads": _head_rows,
    "mask": _masks,
    "sinks": _sink_columns,
    "ffn": _activation,
    "router": lambda c: (("line", "M134 164L140 164"), ("line", "M98 210L98 200")),
    "positions": lambda c: (("line", "M62 515L34 515"), ("fill", "M34 515L42 511L42 519z")),
}


# --- matplotlib ----------------------------------------------------------------------------------


def _box(ax: Axes, part: Part, where: Where, mark: str) -> None:
    x, y, width, height = where
    sign = width <= SIGN
    round_ = width / 2 if sign else 5
    color, thick = ("#0072b2", 2.2) if mark == "*" else ("#57606a", 1.0)
    style = f"round,pad=0,rounding_size={round_}"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, style, fc="#fff", ec=color, lw=thick, zorder=2)
    )
    if sign:
        ax.text(x + 12, y + 12.5, "+", fontsize=11, ha="center", va="center", zorder=4)
        return
    notes = list(part.notes)
    bold = {"weight": "bold", "fontsize": 7.5, "va": "center", "zorder": 4}
    y += 15 if height >= INLINE else height / 2
    title = ax.text(x + 8, y, f"{part.title} {mark}".rstrip(), **bold)
    if height < INLINE:
        ax.annotate(
            "  " + " ".join(notes), (1, 0.5), xycoords=title, va="center", fontsize=7, zorder=4
        )
        return
    for i, note in enumerate(notes):
        ax.text(x + 8, y + 14 * (i + 1), note, fontsize=7, va="center", zorder=4)


_STYLES = {
    "fill": {"fc": "#57606a", "ec": "none"},
    "line": {"fc": "none", "ec": "#57606a", "lw": 0.9},
    "dash": {"fc": "none", "ec": "#8c959f", "lw": 0.8, "ls": "--"},
}


def _draw(ax: Axes, glyph: Glyph, zorder: int) -> None:
    style, path = glyph
    ax.add_patch(PathPatch(_path(path), zorder=zorder, **_STYLES[style]))


def _path(text: str) -> Path:
    """Read a path of M, L, h, v and z."""
    points: list[tuple[float, float]] = []
    codes: list[np.uint8] = []
    for letter, numbers in re.findall(r"([MLhvz])([^MLhvz]*)", text):
        values = [float(n) for n in re.findall(r"-?[\d.]+", numbers)]
        if letter in "ML":
            point = (values[0], values[1])
        elif letter == "z":
            point = points[-1]
        else:
            x, y = points[-1]
            point = (x + values[0], y) if letter == "h" else (x, y + values[0])
        points.append(point)
        codes.append({"M": Path.MOVETO, "z": Path.CLOSEPOLY}.get(letter, Path.LINETO))
    return Path(points, codes)
