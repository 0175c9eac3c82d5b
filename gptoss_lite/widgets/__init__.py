"""Interactive figures for notebooks and pages: they work with a kernel and without one."""

from gptoss_lite.widgets.page import PageWidget
from gptoss_lite.widgets.routing_view import RoutingView, routing
from gptoss_lite.widgets.sink_view import SinkView, sinks

__all__ = ["PageWidget", "RoutingView", "SinkView", "routing", "sinks"]
