"""What each layer would say next, as a table of tokens."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from gptoss_lite.recording import Recording
from gptoss_lite.viz.grid import check_recording, draw_grid, layer_names, printable

DARK = 0.47  # below this share of the color map white text is easier to read than black


def lens(
    recording: Recording, first: int | None = None, n: int = 12, ax: Axes | None = None
) -> Axes:
    """Draw the first choice of every layer for some tokens, with its probability as the color.

    What stands below is the token that was read; what it goes on with is printed in bold.

    Args:
        recording: one run, recorded with `lens=True`.
        first: the first token drawn; by default the last `n` are.
        n: tokens drawn.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no recording, or one without a lens.
    """
    check_recording(recording, "lens_id", "lens_p", "lens_rank")
    arrays, about = recording.arrays, recording.about
    n_layers, n_tokens = arrays["lens_rank"].shape
    end = n_tokens if first is None else min(n_tokens, first + n)
    start = max(0, end - n)
    if ax is None:
        size = (0.85 * (end - start) + 1.4, 0.32 * n_layers + 1.2)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    p = arrays["lens_p"][:, start:end, 0].astype(float)
    draw_grid(
        p,
        ax,
        rows=layer_names(about["window"]),
        row_name="after layer",
        unit="probability of the first choice",
        largest=1,
    )
    ids, ranks = arrays["lens_id"][:, start:end, 0], arrays["lens_rank"][:, start:end]
    for layer in range(n_layers):
        for column in range(end - start):
            ax.text(
                column,
                layer,
                printable(about["lens_text"][str(ids[layer, column])])[:12],
                ha="center",
                va="center",
                fontsize=7,
                color="black" if p[layer, column] > DARK else "white",
                fontweight="bold" if ranks[layer, column] == 1 else "normal",
            )
    read = [printable(token) for token in about["tokens"][start:end]]
    ax.set_xticks(range(end - start), read, fontsize=7)
    ax.set_xlabel(f"token that was read, from position {start} on")
    return ax
