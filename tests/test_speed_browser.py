"""What each view weighs and how fast it draws, in Chromium: one line of a table a view.

Budgets are for a quiet machine. Times get five times as much, because a busy one is no fault of
ours; the number of drawing operations does not depend on the machine and says what must not grow.
Of several times the least counts: the others waited for a processor. Against Plotly only the
ratio counts, of both measured in turns in one page.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_lite.widgets import PageWidget, routing
from tests import test_widgets
from tests.chromium import Watched
from tests.test_widgets_browser import page  # noqa: F401 - a fixture

MOUNT_MS, REDRAW_MS, SLACK = 500, 60, 5
VIEW_BYTES, ROUTING_BYTES = 350_000, 200_000
OPERATIONS = 1_000  # of one redraw: pixels are one operation, text and bars one each
FASTER = 10  # than Plotly; measured 18 to 28, alone and with other programs beside
LAYERS, HEADS, EXPERTS, ACTIVE, TOKENS = 24, 64, 32, 4, 512  # gpt-oss-20b reading 512 tokens

pytestmark = pytest.mark.site

# Before anything else in the page: note when it was read and when the figure stood.
CLOCK = """
addEventListener('DOMContentLoaded', () => { window.read = performance.now(); });
new MutationObserver(() => {
  if (window.drawn || !document.querySelector('[data-gl-ready=true]')) return;
  window.drawn = -1;
  requestAnimationFrame(() => { window.drawn = performance.now(); });
}).observe(document, { subtree: true, attributes: true, attributeFilter: ['data-gl-ready'] });
"""
# Move the first slider; return what its handler and its frame took, and what was drawn.
MOVE = """async value => {
  const root = document.querySelector('.gl-widget-live > div').shadowRoot;
  const slider = root.querySelector('input[type=range]');
  for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame); // nothing is on its way
  const proto = CanvasRenderingContext2D.prototype, kept = new Map();
  let operations = 0;
  for (const name of ['fillRect', 'strokeRect', 'clearRect', 'fillText', 'fill', 'stroke',
      'putImageData', 'drawImage']) {
    kept.set(name, proto[name]);
    proto[name] = function (...more) { operations++; return kept.get(name).apply(this, more); };
  }
  slider.value = slider[value] ?? value; // 'min' and 'max' are names
  let frame; // the view draws between these two
  requestAnimationFrame(() => { frame = performance.now(); });
  const start = performance.now();
  slider.dispatchEvent(new Event('input'));
  const handled = performance.now() - start;
  await new Promise(requestAnimationFrame);
  const drawn = performance.now() - frame;
  for (const [name, method] of kept) proto[name] = method;
  return [handled + drawn, operations];
}"""


@pytest.fixture(scope="module")
def recording() -> Any:
    return test_widgets.made_up(L=LAYERS, H=HEADS, E=EXPERTS, A=ACTIVE, T=TOKENS)


def mounted(watched: Watched, path: Path, times: int = 3) -> float:
    """Open a page some times; return the fewest milliseconds from reading it to the figure."""
    watched.page.add_init_script(CLOCK)
    found = []
    for _ in range(times):
        watched.page.goto(path.as_uri())
        watched.until("window.drawn > 0")
        found.append(watched.page.evaluate("window.drawn - window.read"))
    return min(found)


@pytest.mark.parametrize("name", sorted(test_widgets.VIEWS))
def test_a_view_keeps_its_budget(
    page: Any,  # noqa: F811
    recording: Any,
    name: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
):
    view: PageWidget = test_widgets.VIEWS[name](recording)
    size = len(view.html())
    mount = mounted(page, view.save(tmp_path / "view.html"))
    _, *moves = [page.page.evaluate(MOVE, ("min", "max")[i % 2]) for i in range(10)]
    redraw, operations = min(ms for ms, _ in moves), max(drawn for _, drawn in moves)
    row = {"view": name, "KB": round(size / 1000), "mount ms": round(mount)}
    row |= {"redraw ms": f"{redraw:.1f}", "operations": operations}
    record_property("view", row)
    assert size <= (ROUTING_BYTES if name == "routing" else VIEW_BYTES)
    assert mount < SLACK * MOUNT_MS
    assert redraw < SLACK * REDRAW_MS
    assert operations < OPERATIONS
    page.clean()


def plotly() -> Path:
    """Return the script that Plotly's Python package carries."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        pytest.fail("plotly is not installed; `make test-site` installs it.", pytrace=False)
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


# The same three panels and the frame around the layer; a new layer leaves the first map as it is.
PLOTLY = """async ([L, E, T, A, ids, weights]) => {
  const div = document.createElement('div');
  div.style = 'width: 950px; height: 600px';
  document.querySelector('main').append(div);
  const field = layer => {
    const z = Array.from({ length: E }, () => new Float32Array(T)), x = new Float32Array(E);
    for (let k = layer * T * A; k < (layer + 1) * T * A; k++) {
      z[ids[k]][Math.floor(k / A) % T] = weights[k];
      x[ids[k]] += 1 / T;
    }
    return { z, x };
  };
  const top = Array.from({ length: L },
    (_, l) => Float32Array.from({ length: T }, (_, t) => weights[(l * T + t) * A]));
  const { z, x } = field(0), heat = { type: 'heatmap', colorscale: 'Cividis', showscale: false };
  await Plotly.newPlot(div, [
    { ...heat, z: top, xaxis: 'x', yaxis: 'y' },
    { ...heat, z, xaxis: 'x2', yaxis: 'y2' },
    { type: 'bar', orientation: 'h', x, xaxis: 'x3', yaxis: 'y3' },
  ], {
    showlegend: false,
    xaxis: { domain: [0, 1] }, yaxis: { domain: [0.6, 1] },
    xaxis2: { domain: [0, 0.85], anchor: 'y2' }, yaxis2: { domain: [0, 0.5], anchor: 'x2' },
    xaxis3: { domain: [0.88, 1], anchor: 'y3' }, yaxis3: { domain: [0, 0.5], anchor: 'x3' },
  }, { staticPlot: true });
  window.moved = async layer => {
    const start = performance.now(), next = field(layer);
    const frame = { type: 'rect', x0: -0.5, x1: T - 0.5, y0: layer - 0.5, y1: layer + 0.5 };
    await Plotly.update(div, { z: [next.z, undefined], x: [undefined, next.x] },
      { shapes: [frame] }, [1, 2]);
    return performance.now() - start;
  };
}"""


def test_routing_redraws_much_faster_than_plotly(
    page: Any,  # noqa: F811
    recording: Any,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
):
    view = routing(recording, layer=0)
    mounted(page, view.save(tmp_path / "view.html"), times=1)
    page.page.add_script_tag(path=plotly())
    ids, weights = view.choices()
    data = [LAYERS, EXPERTS, TOKENS, ACTIVE, ids.ravel().tolist(), weights.ravel().tolist()]
    page.page.evaluate(PLOTLY, data)
    ours, theirs = [], []
    for layer in range(1, 16):
        ours.append(page.page.evaluate(MOVE, layer)[0])
        theirs.append(page.page.evaluate("layer => window.moved(layer)", layer))
    assert page.status().startswith("Layer 15,")
    drawn = page.page.evaluate("document.querySelectorAll('.js-plotly-plot image').length")
    assert drawn == 2  # both heat maps are there
    ratio = min(theirs) / min(ours)
    row = {"view": "routing in Plotly", "redraw ms": f"{min(theirs):.1f}"}
    record_property("view", row | {"times ours": f"{ratio:.0f}"})
    assert ratio >= FASTER
