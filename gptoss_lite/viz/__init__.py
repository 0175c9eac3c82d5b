"""Static figures of a recorded run or a config: each draws on one matplotlib Axes."""

from gptoss_lite.viz.arms import arms, by_length
from gptoss_lite.viz.block import block, block_pair
from gptoss_lite.viz.fit import fit
from gptoss_lite.viz.lens import lens
from gptoss_lite.viz.mask import mask
from gptoss_lite.viz.mxfp4 import mxfp4
from gptoss_lite.viz.offload import offload
from gptoss_lite.viz.roofline import roofline
from gptoss_lite.viz.rope import rope
from gptoss_lite.viz.routing import expert_load, routing
from gptoss_lite.viz.sinks import sink_by_head, sink_by_position

__all__ = [
    "arms",
    "block",
    "block_pair",
    "by_length",
    "expert_load",
    "fit",
    "lens",
    "mask",
    "mxfp4",
    "offload",
    "roofline",
    "rope",
    "routing",
    "sink_by_head",
    "sink_by_position",
]
