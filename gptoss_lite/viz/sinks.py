"""Where attention goes when it wants nothing: the probability that the sinks take."""

from matplotlib.axes import Axes

from gptoss_lite.recording import Recording
from gptoss_lite.viz.grid import check_recording, draw_grid, label_tokens, layer_names


def sink_by_head(recording: Recording, ax: Axes | None = None) -> Axes:
    """Draw the mean sink mass of every head: rows are layers, columns query heads.

    Args:
        recording: one run; see `recording.record`.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no recording.
    """
    check_recording(recording, "sink_mass")
    mass = recording.arrays["sink_mass"].mean(-1)  # [L H]
    layers = layer_names(recording.about["window"])
    ax = draw_grid(mass, ax, rows=layers, row_name="layer", unit="mean sink mass")
    ax.set_xlabel("query head")
    return ax


def sink_by_position(
    recording: Recording, layer: int | None = None, first: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw the sink mass at every token: one row a layer, or one row a head of one layer.

    Args:
        recording: one run.
        layer: draw the heads of this layer; None draws each layer's mean over its heads.
        first: leave out the tokens before this one.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no recording.
    """
    check_recording(recording, "sink_mass")
    mass = recording.arrays["sink_mass"]  # [L H T]
    if layer is None:
        values, rows, name = mass.mean(1), layer_names(recording.about["window"]), "layer"
    else:
        heads = [str(head) for head in range(mass.shape[1])]
        values, rows, name = mass[layer], heads, f"head of layer {layer}"
    ax = draw_grid(values[:, first:], ax, rows=rows, row_name=name, unit="sink mass")
    label_tokens(ax, recording.about["tokens"], first)
    return ax
