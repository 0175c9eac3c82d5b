"""Interactive figures for notebooks and pages: they work with a kernel and without one."""

from gptoss_lite.widgets import live
from gptoss_lite.widgets.block_view import BlockView, block
from gptoss_lite.widgets.fit_view import FitView, fit
from gptoss_lite.widgets.lens_view import LensView, lens
from gptoss_lite.widgets.mask_view import MaskView, mask
from gptoss_lite.widgets.mxfp4_view import MXFP4View, mxfp4
from gptoss_lite.widgets.offload_view import OffloadView, offload
from gptoss_lite.widgets.page import PageWidget
from gptoss_lite.widgets.rope_view import RopeView, rope
from gptoss_lite.widgets.routing_view import RoutingView, routing
from gptoss_lite.widgets.sink_view import SinkView, sinks

__all__ = [
    "BlockView",
    "FitView",
    "LensView",
    "MXFP4View",
    "MaskView",
    "OffloadView",
    "PageWidget",
    "RopeView",
    "RoutingView",
    "SinkView",
    "block",
    "fit",
    "lens",
    "live",
    "mask",
    "mxfp4",
    "offload",
    "rope",
    "routing",
    "sinks",
]
