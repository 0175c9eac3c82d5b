"""Interactive figures for notebooks and pages: they work with a kernel and without one."""

from gptoss_lite.widgets.block_view import BlockView, block
from gptoss_lite.widgets.page import PageWidget
from gptoss_lite.widgets.routing_view import RoutingView, routing
from gptoss_lite.widgets.sink_view import SinkView, sinks

__all__ = ["BlockView", "PageWidget", "RoutingView", "SinkView", "block", "routing", "sinks"]
