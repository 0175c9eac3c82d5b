"""A recorded experiment: one dot a seed, one line through the arms that share it."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MARKS = "osD^vP"  # seeds and arms are told apart by shape too, never by colour alone
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
METRICS = {
    "loss": "loss on held-out text",
    "best": "loss on held-out text, best checkpoint",
    "own_loss": "loss on the text it learned from",
}


def arms(
    record: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    metric: str = "loss",
    live: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each arm's loss, one dot a seed; a line joins the dots of one seed.

    Arms differ less than seeds do, so that only the slope of each line says something.

    Args:
        record: what `recorded` returned.
        names: the arms to draw, first on top; all of them if None.
        metric: "loss" at the end, "best" of the checkpoints, or "own_loss" on the text that
            was learned from.
        live: a reader's own result for some arms, drawn as crosses.
        ax: where to draw; a new figure if None.
    """
    by_name = {arm["name"]: arm for arm in record["arms"]}
    drawn = [by_name[name] for name in names or by_name]
    if ax is None:
        ax = plt.subplots(figsize=(7, 1 + 0.42 * len(drawn)), layout="constrained")[1]
    for index, seed in enumerate(record["seeds"]):
        points = _of_seed(drawn, seed, metric)
        if points:
            ax.plot(
                [loss for loss, _ in points],
                [row for _, row in points],
                color=COLOURS[index % len(COLOURS)],
                marker=MARKS[index % len(MARKS)],
                linewidth=1,
                markersize=7,
                alpha=0.85,
                label=f"seed {seed}",
            )
    if live:
        rows = [row for row, arm in enumerate(drawn) if arm["name"] in live]
        losses = [live[drawn[row]["name"]] for row in rows]
        ax.plot(losses, rows, "x", color="black", markersize=10, markeredgewidth=2, label="yours")
    ax.set_yticks(range(len(drawn)), [arm["label"] for arm in drawn])
    ax.set_ylim(len(drawn) - 0.5, -0.5)
    ax.set_xlabel(f"{METRICS[metric]} (nats per byte; lower is better)")
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="best", fontsize=8)
    return ax


def _of_seed(drawn: Sequence[Mapping[str, Any]], seed: int, metric: str) -> list[tuple[float, int]]:
    """Return (loss, row) of every arm that has this seed."""
    runs = [(run, row) for row, arm in enumerate(drawn) for run in arm["runs"]]
    return [(run[metric], row) for run, row in runs if run["seed"] == seed]


def by_length(
    record: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    trained: int = 64,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss against the length of the window, a line a seed and a colour an arm.

    Args:
        record: what `recorded` returned, of an experiment that measured several lengths.
        names: the arms to draw; all that have lengths if None.
        trained: where to mark the length that was trained at.
        ax: where to draw; a new figure if None.
    """
    by_name = {arm["name"]: arm for arm in record["arms"]}
    drawn = [by_name[name] for name in names or by_name]
    if ax is None:
        ax = plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
    ticks: set[int] = set()
    for index, arm in enumerate(drawn):
        for run in arm["runs"]:
            points = {int(length): loss for length, loss in run.get("lengths", {}).items()}
            ticks |= points.keys()
            first = run is arm["runs"][0]
            ax.plot(
                list(points),
                list(points.values()),
                color=COLOURS[index % len(COLOURS)],
                marker=MARKS[index % len(MARKS)],
                linewidth=1,
                alpha=0.85,
                label=arm["label"] if first else None,
            )
    ax.axvline(trained, color="gray", linestyle=":", linewidth=1)
    ax.text(trained, 0.02, " trained here", transform=ax.get_xaxis_transform(), size=8)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    ax.set_xlabel("window (tokens)")
    ax.set_ylabel("loss (nats per byte)")
    ax.grid(alpha=0.3)
    ax.legend(loc="best", fontsize=8)
    return ax
