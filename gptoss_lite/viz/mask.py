"""Which keys a query may read, and which a cache still holds."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

SHADES = ListedColormap(["#eceff3", "#9b9476", "#0a5cad"])  # hidden, visible, seen by the query


def mask(
    query: int,
    window: int | None = None,
    *,
    n_tokens: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mask of one layer, with the row of one query brought out.

    The keys in that row are what the layer's cache holds once the query has been read.

    Args:
        query: position of the newest token, from 0.
        window: keys a query sees, itself included; None means all.
        n_tokens: rows and columns; one more than `query` if None.
        ax: where to draw; a new figure if None.
    """
    n = n_tokens or query + 1
    if ax is None:
        ax = plt.subplots(figsize=(3.4, 3.4), layout="constrained")[1]
    position = np.arange(n)
    distance = position[:, None] - position
    visible = (distance >= 0) & (distance < (window or n))
    shades = visible.astype(int)
    shades[query] *= 2
    ax.imshow(shades, cmap=SHADES, vmin=0, vmax=2, interpolation="nearest")
    if n <= 64:
        ax.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=0.8)
        ax.tick_params(which="minor", length=0)
    ax.set(xlabel="key", ylabel="query", xticks=[0, n - 1], yticks=sorted({0, query, n - 1}))
    keys = int(visible[query].sum())
    ax.set_title(f"query {query} sees {keys} {'key' if keys == 1 else 'keys'}", fontsize=9)
    return ax
