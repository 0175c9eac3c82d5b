"""The one picture all views share: a grid of magnitudes with labelled rows and tokens."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from gptoss_lite.errors import ShapeError
from gptoss_lite.recording import Recording

COLOURS = "cividis"  # even in lightness, and the same to colour-blind eyes
LONGEST_LABELLED = 80  # columns; beyond this token labels would overlap


def check_recording(run: object, *arrays: str) -> None:
    """Raise ShapeError for what is no recording, such as a trace, or one that lacks an array."""
    if not isinstance(run, Recording):
        raise ShapeError(
            f"This figure draws a recording, got a {type(run).__name__}. Make one with "
            "gptoss_lite.record(model, tokenizer, ids)."
        )
    if missing := [name for name in arrays if name not in run.arrays]:
        lens = ", lens=True" if missing[0].startswith("lens") else ""
        raise ShapeError(
            f"This recording has no {missing[0]!r}, which the figure draws. Make one with "
            f"gptoss_lite.record(model, tokenizer, ids{lens})."
        )


def draw_grid(
    values: np.ndarray,
    ax: Axes | None,
    *,
    rows: Sequence[str],
    row_name: str,
    unit: str,
    largest: float | None = None,
) -> Axes:
    """Draw a [rows, columns] array as a heat map with a colour bar that names its unit."""
    ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
    image = ax.imshow(
        values, aspect="auto", cmap=COLOURS, vmin=0, vmax=largest, interpolation="nearest"
    )
    step = max(1, len(rows) // 16)
    ax.set_yticks(range(0, len(rows), step), [rows[i] for i in range(0, len(rows), step)])
    ax.set_ylabel(row_name)
    ax.figure.colorbar(image, ax=ax, label=unit, pad=0.01)
    return ax


def label_tokens(ax: Axes, tokens: Sequence[str], first: int = 0) -> None:
    """Write the tokens from `first` on under the columns, or positions where they are many."""
    shown = tokens[first:]
    if len(shown) > LONGEST_LABELLED:
        ticks = range(0, len(shown), 20)
        ax.set_xticks(ticks, [str(first + tick) for tick in ticks])
        ax.set_xlabel("position")
        return
    ax.set_xticks(range(len(shown)), [printable(token) for token in shown])
    ax.tick_params(axis="x", labelrotation=90, labelsize=7, length=0)


def printable(token: str) -> str:
    """Make a token visible: spaces and line breaks as signs, `$` not read as mathematics.

    Example:
        >>> printable(" a" + chr(10))
        '·a↵'
    """
    token = token.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "→").replace("$", r"\$")


def layer_names(windows: Sequence[int | None]) -> list[str]:
    """Name each layer by its number and its kind: S slides, F sees everything."""
    return [f"{layer} {'F' if window is None else 'S'}" for layer, window in enumerate(windows)]
