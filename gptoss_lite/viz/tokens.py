"""A rendered conversation as a strip of tokens, colored by who speaks."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from gptoss_lite import harmony

COLOURS = {
    "special": "#333333",
    "system": "#cccccc",
    "developer": "#e0c3dc",
    "user": "#a9d5f0",
    "tool": "#f3d9a0",
    "assistant": "#ffffff",
    "analysis": "#f5c6a5",
    "commentary": "#f0e68c",
    "final": "#a8dcc5",
}
SHOWN = str.maketrans({"\n": "↵", "\t": "→", " ": "·"})
LINE_INCHES = 0.26


def speakers(pieces: Sequence[str]) -> list[str]:
    """Say for each token whose it is: "special", a role, or the assistant's channel.

    Args:
        pieces: the text of each token of a rendered conversation.

    Example:
        >>> speakers(["<|start|>", "user", "<|message|>", "Hi", "<|end|>"])
        ['special', 'user', 'special', 'user', 'special']
    """
    out: list[str] = []
    role, before = "assistant", ""
    for place, piece in enumerate(pieces):
        if piece in harmony.SPECIAL_TOKENS:
            out.append("special")
        else:
            if before == harmony.START:
                role = piece if piece in harmony.ROLES else "tool"
            if before == harmony.CHANNEL and role == "assistant":
                role = "".join(pieces[place : place + 2]).strip()  # "commentary" is two tokens
                role = next((name for name in COLOURS if role.startswith(name)), "assistant")
            out.append(role)
        before = piece
    return out


def token_strip(
    pieces: Sequence[str], *, columns: int = 96, width: float = 8.0, ax: Axes | None = None
) -> Axes:
    """Draw one box a token, in lines; spaces show as dots and line ends as arrows.

    Args:
        pieces: the text of each token of a rendered conversation.
        columns: characters a line.
        width: of the figure, in inches; its height follows from the text.
        ax: where to draw; a new figure if None.
    """
    who = speakers(pieces)
    boxes, x, line = [], 0.0, 0
    for piece, kind in zip(pieces, who, strict=True):
        size = len(piece) + 0.8
        if x and (x + size > columns or piece == harmony.START):
            x, line = 0.0, line + 1
        boxes.append((x, line, size, piece.translate(SHOWN), kind))
        x += size
    if ax is None:
        height = LINE_INCHES * (line + 2.2)
        ax = plt.subplots(figsize=(width, height), layout="constrained")[1]
    for x, line, size, text, kind in boxes:
        box = Rectangle((x, line), size, 0.86, facecolor=COLOURS[kind], edgecolor="black", lw=0.5)
        ax.add_patch(box)
        ax.text(
            x + size / 2,
            line + 0.44,
            text,
            ha="center",
            va="center",
            family="monospace",
            fontsize=width * 72 / columns / 0.65,
            color="white" if kind == "special" else "black",
            parse_math=False,
        )
    ax.set(xlim=(0, columns), ylim=(max(line for _, line, *_ in boxes) + 2.2, -0.1))
    ax.axis("off")
    shown = [kind for kind in COLOURS if kind in who]
    handles = [Patch(facecolor=COLOURS[kind], edgecolor="black", label=kind) for kind in shown]
    ax.legend(
        handles=handles,
        loc="lower left",
        ncols=len(handles),
        fontsize=7,
        frameon=False,
        columnspacing=1.0,
        handlelength=1.2,
    )
    return ax
