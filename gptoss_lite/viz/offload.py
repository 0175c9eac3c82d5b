"""How often an expert is still in a cache, by the size of the cache."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from gptoss_lite.offload import PUBLISHED_20B, distances, hit_rates, shuffled_hit_rates
from gptoss_lite.presets import PRESETS
from gptoss_lite.recording import Recording
from gptoss_lite.viz.grid import check_recording


def offload(recording: Recording, ax: Axes | None = None) -> Axes:
    """Draw the hit rate against the slots of a layer, with the tokens shuffled as a control.

    Args:
        recording: one run; if it says where its prompt ends, only the answer counts.
        ax: where to draw; a new figure if None.

    Raises:
        ShapeError: no recording.
    """
    check_recording(recording, "expert_idx")
    ids, about = recording.arrays["expert_idx"], recording.about
    n_experts, first = about["n_experts"], about.get("n_prompt", 0) % ids.shape[1]
    slots = range(ids.shape[2], n_experts + 1)
    rates = hit_rates(distances(ids, n_experts), n_experts, first)
    if ax is None:
        ax = plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
    for layer in rates:
        ax.plot(slots, layer, color="0.75", linewidth=0.8)
    ax.plot(slots, rates.mean(0), color="#0a5cad", label=about["model"])
    control = shuffled_hit_rates(ids, n_experts, first).mean(0)
    ax.plot(slots, control, color="black", linestyle="--", label="its tokens shuffled")
    moe = PRESETS["gpt-oss-20b"].moe
    if moe and (n_experts, ids.shape[2]) == (moe.n_experts, moe.n_active):
        ax.plot(
            *zip(*PUBLISHED_20B.items(), strict=True),
            "kD",
            markersize=4,
            label="gpt-oss-20b, published",
        )
    ax.set(xlabel="experts of a layer in fast memory", ylabel="hit rate", ylim=(0, 1.03))
    ax.legend(fontsize=8)
    return ax
