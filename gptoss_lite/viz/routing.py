"""Which experts work on which token."""

import numpy as np
from matplotlib.axes import Axes

from gptoss_lite.recording import Recording
from gptoss_lite.viz.grid import check_recording, draw_grid, label_tokens, layer_names


def routing(recording: Recording, layer: int, first: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the weight of every expert of one layer at every token; 0 where it was not chosen.

    Args:
        recording: one run; see `recording.record`.
        layer: whose router.
        first: leave out the tokens before this one.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no recording.
    """
    check_recording(recording, "expert_idx", "expert_w")
    weights = expert_weights(recording, layer).T[:, first:]  # [E T]
    experts = [str(expert) for expert in range(len(weights))]
    name = f"expert of layer {layer}"
    ax = draw_grid(weights, ax, rows=experts, row_name=name, unit="weight", largest=1)
    label_tokens(ax, recording.about["tokens"], first)
    return ax


def expert_load(recording: Recording, ax: Axes | None = None) -> Axes:
    """Draw how often each expert was chosen, in multiples of an even split.

    Args:
        recording: one run.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no recording.
    """
    check_recording(recording, "expert_idx")
    n_experts, layers = recording.about["n_experts"], recording.about["n_layers"]
    chosen = recording.arrays["expert_idx"].reshape(layers, -1)
    load = np.stack([np.bincount(row, minlength=n_experts) / row.size for row in chosen])
    rows = layer_names(recording.about["window"])
    ax = draw_grid(load * n_experts, ax, rows=rows, row_name="layer", unit="times its share")
    ax.set_xlabel("expert")
    return ax


def expert_weights(recording: Recording, layer: int) -> np.ndarray:
    """Return the [T, E] weights of one layer, with zeros for experts that were not chosen."""
    ids = recording.arrays["expert_idx"][layer].astype(np.int64)  # [T A]
    weights = np.zeros((len(ids), recording.about["n_experts"]), dtype=np.float32)
    np.put_along_axis(weights, ids, recording.arrays["expert_w"][layer], axis=1)
    return weights
