"""Draw the picture that links to the book show elsewhere: `card.py book/_static/card.png`.

1200 x 630 pixels. The same stacks of parts as on the first page; run it after changing those.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

OLD = ("unembedding, tied", "LayerNorm", "GELU MLP", "LayerNorm", "full attention", "positions")
NEW = ("unembedding", "RMSNorm", "experts, MXFP4", "RMSNorm", "GQA, window, sinks", "RoPE, YaRN")
INK, MUTED, PAPER, OLD_FILL, NEW_FILL = "#16181c", "#555b63", "#fbfaf7", "#e9e7e1", "#f6dd84"


def draw(path: Path) -> None:
    """Write the picture."""
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1200), ylim=(0, 630))
    axes.axis("off")
    axes.text(60, 490, "From GPT-2\nto gpt-oss", size=52, weight="bold", color=INK, va="center")
    axes.text(60, 350, "one switch at a time", size=30, color=INK, va="center")
    axes.text(
        60,
        190,
        "A book of notebooks.\nEvery step runs, every claim is tested,\nand the last rung loads the"
        " real weights.",
        size=19,
        color=MUTED,
        va="center",
        linespacing=1.5,
    )
    for left, name, parts, fill in ((650, "2019", OLD, OLD_FILL), (920, "2025", NEW, NEW_FILL)):
        axes.text(left + 115, 562, name, size=22, weight="bold", color=INK, ha="center")
        for i, part in enumerate(parts):
            bottom = 470 - 80 * i
            box = FancyBboxPatch(
                (left, bottom), 230, 58, "round,pad=0,rounding_size=9", fc=fill, ec=INK, lw=1.6
            )
            axes.add_patch(box)
            axes.text(left + 115, bottom + 29, part, size=16, color=INK, ha="center", va="center")
    for i in range(6):
        axes.plot((884, 916), (499 - 80 * i, 499 - 80 * i), color=INK, lw=3)
    # no version of the drawing library in the file, so that the bytes do not change with it
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "book/_static/card.png"))
