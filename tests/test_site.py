"""Every page of the built site in a real browser, opened as a file: `make test-site`.

Each page is one test and one row of the table that is printed at the end. Nothing may be asked
of another host or be said in the console; axe finds nothing in light and in dark, with every fold
open; a phone does not scroll sideways; every control of a widget is reached and moved by keys;
without scripts each widget leaves its sentence and its table; on paper every figure is there.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gptoss_lite.widgets.page import ASSETS
from tests import chromium
from tests.chromium import DESKTOP, PHONE, Watched

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(os.environ.get("SITE", ROOT / "_build" / "html")).resolve()
PAPER = (718, 1000)  # A4 less its margins, in CSS pixels
PHONE_RULES = ("scrollable-region-focusable", "target-size", "meta-viewport")  # of the width
PAGE_BYTES = 1_000_000
VIEW_BYTES = 350_000  # of one widget's HTML: its data, sentence and table
NOTEBOOK_BYTES = 2_000_000  # of all outputs of one notebook
# The nine drawing modules, of 5 to 11 kB each; and all that a page loads: those, the 21 kB that
# they share, the style and the starter.
VIEWERS_BYTES, SCRIPT_BYTES = 60_000, 92_000

pytestmark = pytest.mark.site


def pages() -> list[str]:
    """Name the pages of the built site, but for those that only lead to another."""
    return sorted(
        path.relative_to(SITE).as_posix()
        for path in SITE.rglob("*.html")
        if path.relative_to(SITE).parts[0] != "_static"
        and 'http-equiv="refresh"' not in path.read_text(encoding="utf-8").lower()
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a page; without a site one test, which says so."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", pages() or ["index.html"])


MOVES = {
    "range": ("ArrowRight", "ArrowLeft"),
    "checkbox": ("Space",),
    "select-one": ("ArrowDown", "ArrowUp"),
}
# In a page: what a key can reach in one widget, in the order of the page, seen or not.
KEYS = """
const live = n => [...document.querySelectorAll('.gl-widget-live > div')][n].shadowRoot;
const reached = n => [...live(n).querySelectorAll(
    'input, select, button, summary, a[href], [tabindex="0"]')]
  .filter(node => node.checkVisibility() && !node.disabled);
const said = n => [...live(n).querySelectorAll('[role=status]')].map(s => s.textContent).join();
"""
FIGURES = """() => {
  const found = [];
  const look = (root, inside) => root.querySelectorAll('*').forEach(node => {
    if (node.shadowRoot) look(node.shadowRoot, inside);
    if (!node.matches('img, canvas, svg') || node.parentElement.closest('svg')) return;
    if (node.closest('button, a.headerlink, [aria-hidden=true]')) return;
    found.push(node);
  });
  const article = document.querySelector('.bd-article, main, body');
  look(article);
  return found.map(node => {
    const box = node.getBoundingClientRect();
    const name = node.getAttribute('alt') || node.getAttribute('aria-label') || node.className;
    return [String(name.baseVal ?? name).slice(0, 80), box.width, box.height, box.right,
      node.checkVisibility({ contentVisibilityAuto: false, visibilityProperty: true })];
  });
}"""


# What sticks out at the right and is not inside something that scrolls by itself.
WIDE = """limit => {
  const held = node => node && node !== document.body && (
    getComputedStyle(node).overflowX !== 'visible' || held(node.parentElement));
  return [...document.body.querySelectorAll('*')]
    .filter(node => node.getBoundingClientRect().right > limit + 1 && node.checkVisibility() &&
      !held(node.parentElement))
    .slice(0, 4).map(node => node.outerHTML.slice(0, 160));
}"""


class Visit:
    """One page: `problems` in words, and `row`, the figures."""

    def __init__(self, browser: Any, name: str) -> None:
        self.browser = browser
        self.path = SITE / name
        self.problems: list[str] = []
        self.row: dict[str, object] = {"page": name, "KB": round(self.path.stat().st_size / 1000)}
        if self.path.stat().st_size > PAGE_BYTES:
            self.problems.append(f"the page has more than {PAGE_BYTES:,} bytes")

    def all(self) -> None:
        context = self.browser.new_context(reduced_motion="reduce", color_scheme="light")
        context.set_default_timeout(30_000)
        seen = Watched(context.new_page())
        seen.size(DESKTOP)
        self.open(seen)
        self.print(seen)
        self.keyboard(seen)
        self.unfold(seen)
        self.phone(seen)
        self.axe(seen)
        context.close()
        self.count("requests", [f"asks {url}" for url in seen.outside])
        self.count("console", [f"the console says {text}" for text in seen.console])
        if self.row["widgets"]:
            self.without_scripts()

    def count(self, column: str, problems: list[str]) -> None:
        self.row[column] = len(problems)
        self.problems += [f"{column}: {problem}" for problem in problems]

    def open(self, seen: Watched) -> None:
        seen.page.goto(self.path.as_uri())
        seen.until("document.readyState === 'complete'")
        seen.until(
            "!window.MathJax?.startup?.promise || window.mathDone || "
            "void MathJax.startup.promise.then(() => window.mathDone = true)"
        )
        self.row["widgets"] = seen.page.locator("[data-gl-widget]").count()
        seen.until(
            f"document.querySelectorAll('[data-gl-ready=true]').length == {self.row['widgets']}"
        )

    def print(self, seen: Watched) -> None:
        seen.page.emulate_media(media="print")
        seen.size(PAPER)
        figures = seen.page.evaluate(FIGURES)
        lost = [
            f"{name!r} {'runs out of the paper' if there and width and height else 'is not there'}"
            for name, width, height, right, there in figures
            if not (there and width and height and right <= PAPER[0] + 1)
        ]
        self.row["figures"] = len(figures)
        self.count("not printed", lost)
        seen.page.emulate_media(media="screen")
        seen.size(DESKTOP)

    def keyboard(self, seen: Watched) -> None:
        stuck: list[str] = []
        controls = 0
        for n in range(int(str(self.row["widgets"]))):
            names = seen.page.evaluate(
                f"() => {{ {KEYS} reached({n})[0].focus(); "
                f"return reached({n}).map(node => node.ariaLabel || node.labels?.[0]?.innerText "
                "|| node.innerText.slice(0, 40)); }"
            )
            controls += len(names)
            for i, name in enumerate(names):
                at = seen.page.evaluate(
                    f"() => {{ {KEYS} return reached({n}).indexOf(live({n}).activeElement); }}"
                )
                if at != i:
                    stuck.append(f"Tab does not reach {name!r}")
                    break
                seen.page.keyboard.press("Tab")
            for i in range(40):  # a control that is moved may take others away
                asked = seen.page.evaluate(
                    f"() => {{ {KEYS} const node = reached({n})[{i}]; node?.focus(); "
                    "return node && [node.matches('input, select') ? node.type : '', "
                    "node.ariaLabel || node.labels?.[0]?.innerText || '']; }"
                )
                if asked is None:
                    break
                kind, name = asked
                before = self._state(seen, n, i)
                for key in MOVES.get(kind, ()):
                    seen.page.keyboard.press(key)
                    seen.settle()
                    if self._state(seen, n, i) != before:
                        break
                else:
                    if kind:
                        stuck.append(f"keys do not move {name!r}")
        self.row["controls"] = controls
        self.count("stuck", stuck)

    def _state(self, seen: Watched, n: int, i: int) -> str:
        """Return what the widget says of itself; a control that changes nothing said is stuck."""
        return seen.page.evaluate(
            f"() => {{ {KEYS} const node = reached({n})[{i}] ?? {{}}; "
            f"return said({n}) + '|' + (node.ariaValueText ?? node.value) + node.checked; }}"
        )

    def unfold(self, seen: Watched) -> None:
        """Open everything that a reader can open."""
        seen.page.evaluate(
            """() => { const open = root => root.querySelectorAll('*').forEach(node => {
                 if (node.shadowRoot) open(node.shadowRoot);
                 if (node.matches('details')) node.open = true;
                 if (node.matches('button.toggle-button[aria-expanded=false], ' +
                     '.toggle-button-hidden')) node.click();
               }); open(document); }"""
        )
        seen.settle()

    def phone(self, seen: Watched) -> None:
        seen.size(PHONE)
        width = seen.page.evaluate("document.documentElement.scrollWidth")
        self.row["width at 390"] = width
        if width > PHONE[0]:
            wide = seen.page.evaluate(WIDE, PHONE[0])
            self.problems.append(f"scrolls sideways at 390 pixels: {wide}")
        seen.page.wait_for_timeout(350)  # the theme waits so long after a new size
        self.count("axe phone", chromium.violations(seen.page, *PHONE_RULES))
        seen.size(DESKTOP)
        seen.page.wait_for_timeout(350)

    def axe(self, seen: Watched) -> None:
        for theme in ("light", "dark"):
            seen.page.emulate_media(color_scheme=theme)
            seen.until(f"['{theme}', undefined].includes(document.documentElement.dataset.theme)")
            seen.settle()
            self.count(f"axe {theme}", chromium.violations(seen.page))

    def without_scripts(self) -> None:
        context = self.browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(self.path.as_uri())
        lost = []
        for widget in page.locator("[data-gl-widget]").all():
            if not (widget.locator("p").first.is_visible() and widget.locator("td").count() > 1):
                lost.append(f"{widget.get_attribute('data-gl-widget')} leaves nothing to read")
        context.close()
        self.count("no script", lost)


def test_page(browser: Any, name: str, record_property: Any):
    assert (SITE / "index.html").is_file(), f"{SITE} holds no site. Run `make book`."
    visit = Visit(browser, name)
    try:
        visit.all()
    finally:
        record_property("row", visit.row)
    assert not visit.problems, "\n".join(["", *visit.problems])


def test_the_front_door_leads_to_the_book(browser: Any):
    page = browser.new_page()
    page.goto((SITE / "index.html").as_uri())
    page.wait_for_url("**/book/intro.html")
    page.locator("article h1").wait_for()
    page.close()


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda p: p.stem)
def test_outputs_fit_their_budget(path: Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert len(json.dumps(outputs)) <= NOTEBOOK_BYTES
    shown = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    large = [len(view) for view in shown if "data-gl-widget=" in view and len(view) > VIEW_BYTES]
    assert large == []


def test_drawing_code_fits_its_budget():
    viewers = [path for path in ASSETS.glob("*.js") if not path.name.startswith("_")]
    assert sum(path.stat().st_size for path in viewers) <= VIEWERS_BYTES
    assert (SITE / "_static" / "gl-widgets.js").stat().st_size <= SCRIPT_BYTES


def test_every_page_says_what_it_is_about():
    seen: dict[str, str] = {}
    for name in pages():
        text = (SITE / name).read_text(encoding="utf-8")
        if name == "404.html" or "<article" not in text:
            continue
        about = text.partition('<meta name="description" content="')[2].partition('"')[0]
        assert 20 < len(about) < 300, name
        seen[name] = about
    chapters = [about for name, about in seen.items() if name.startswith("chapters/")]
    assert len(chapters) == len(set(chapters)) > 0
