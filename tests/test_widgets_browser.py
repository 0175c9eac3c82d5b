"""Page widgets in a real browser, opened as files: no kernel, no network, keyboard only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gptoss_lite.anatomy import PARTS, anatomy, compare_parts
from gptoss_lite.ladder import LADDER
from gptoss_lite.presets import PRESETS
from gptoss_lite.recording import Recording
from gptoss_lite.widgets import (
    PageWidget,
    block,
    fit,
    lens,
    mask,
    mxfp4,
    offload,
    rope,
    routing,
    sinks,
)
from gptoss_lite.widgets.page import ASSETS
from tests import chromium, test_widgets
from tests.chromium import PHONE
from tests.test_book_tools import extension

DESKTOP = (1000, 900)
ROOT = "document.querySelector('.gl-widget-live > div').shadowRoot"  # of a page's first view

pytestmark = pytest.mark.site


class Watched(chromium.Watched):
    """A page with views of the package."""

    def open(self, path: Path, n: int = 1) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(f":nth-match([data-gl-ready=true], {n})")
        self.until(
            "[...document.querySelectorAll('.gl-widget-live > div')]"
            ".every(host => host.shadowRoot.querySelector('[role=status]').textContent)"
        )

    def status(self, nth: int = 0) -> str:
        return self.page.locator("[role=status]").nth(nth).inner_text()

    def press(self, label: str, *keys: str, nth: int = 0) -> None:
        control = self.page.get_by_label(label, exact=True).nth(nth)
        control.focus()
        for key in keys:
            control.press(key)
        self.settle()

    def clean(self) -> None:
        assert self.outside == []
        assert self.console == []


@pytest.fixture
def page(browser: Any) -> Iterator[Watched]:
    context = browser.new_context(viewport=dict(zip(("width", "height"), DESKTOP, strict=True)))
    context.set_default_timeout(15_000)
    watched = Watched(context.new_page())
    yield watched
    context.close()


@pytest.fixture(scope="module")
def recording() -> Recording:
    return test_widgets.recorded()


@pytest.fixture(params=sorted(test_widgets.RECORDED))
def view(request: pytest.FixtureRequest, recording: Recording) -> PageWidget:
    return test_widgets.RECORDED[request.param](recording)


@pytest.fixture(params=sorted(test_widgets.VIEWS))
def any_view(request: pytest.FixtureRequest, recording: Recording) -> PageWidget:
    return test_widgets.VIEWS[request.param](recording)


@pytest.fixture
def any_saved(any_view: PageWidget, tmp_path: Path) -> Path:
    return any_view.save(tmp_path / "view.html")


@pytest.fixture
def saved(view: PageWidget, tmp_path: Path) -> Path:
    return view.save(tmp_path / "view.html")


def book_page(folder: Path, *views: PageWidget) -> Path:
    """Write a page as the book has it: several views and one packed script beside it."""
    (folder / extension.SCRIPT).write_text(extension.pack(ASSETS), encoding="utf-8")
    path = folder / "page.html"
    path.write_text(
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Page</title>'
        f'<script defer src="{extension.SCRIPT}"></script><body><main><h1>Page</h1>'
        f"{''.join(view.html() for view in views)}</main></body></html>",
        encoding="utf-8",
    )
    return path


def test_a_file_is_drawn_and_asks_nobody(page: Watched, saved: Path, view: PageWidget):
    page.open(saved)
    assert page.page.locator("canvas").count() >= 2
    assert view.summary in page.page.locator(".gl").inner_text()
    drawn = page.page.evaluate(
        """() => [...document.querySelector('.gl-widget-live > div').shadowRoot
             .querySelectorAll('canvas')].map(canvas => {
               const { width, height } = canvas;
               const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
               return new Set(new Uint32Array(data.buffer)).size;
             })"""
    )
    assert min(drawn) > 5  # colors
    page.clean()


def test_keyboard_moves_the_selection(page: Watched, saved: Path, view: PageWidget):
    page.open(saved)
    before = page.status()
    third = {"sinks": "Head", "routing": "Follow expert", "lens": "Layer", "offload": "Layer"}
    for label in ("Layer", "Token", third[view.view]):
        page.press(label, "Home")
        first = page.status()
        page.press(label, "ArrowRight")
        assert page.status() != first
        text = page.page.get_by_label(label, exact=True).get_attribute("aria-valuetext")
        assert text.startswith(f"{label.lower()} 1")
    assert page.status() != before
    assert "Layer 1" in page.status()
    assert "token 1 " in page.status()
    page.clean()


def test_moving_the_sinks_agrees_with_python(page: Watched, recording: Recording, tmp_path: Path):
    view = sinks(recording, layer=1, head=2, token=20)
    page.open(view.save(tmp_path / "view.html"))
    assert f"the sink takes {view.mass()[1, 2, 20]:.0%}" in page.status()
    page.press("Shift all sinks", *["ArrowRight"] * 15)
    view.shift = 1.5
    assert f"the sink takes {view.mass()[1, 2, 20]:.0%}" in page.status()
    page.press("Sinks on", "Space")
    assert "sinks off, the 21 keys in sight share everything" in page.status()
    page.clean()


def test_routing_agrees_with_python(page: Watched, recording: Recording, tmp_path: Path):
    view = routing(recording, layer=2, token=9, expert=1)
    ids, weights = view.choices()
    page.open(view.save(tmp_path / "view.html"))
    for expert, weight in zip(ids[2, 9], weights[2, 9], strict=True):
        assert f"expert {expert} ({weight:.0%})" in page.status()
    kept = len(set(ids[2, 9]) & set(ids[2, 8]))
    assert f"{kept} of 3 kept from the token before" in page.status()
    share = (ids[2] == 1).any(-1).mean()
    assert f"Expert 1 works for {share:.0%} of the tokens" in page.status()
    page.clean()


def test_a_click_selects(page: Watched, saved: Path, view: PageWidget):
    page.open(saved)
    page.page.locator(".strip bdi").nth(3).click()
    page.press("Layer", "Home")
    assert "token 3 " in page.status()
    tokens_across = page.page.locator("canvas").nth(0 if view.view == "lens" else -1)
    tokens_across.click(position={"x": 60, "y": 10})
    page.press("Layer", "Home")
    assert "token 3 " not in page.status()
    page.clean()


PIXELS = """() => [...document.querySelector('.gl-widget-live > div').shadowRoot
  .querySelectorAll('canvas')].map(canvas => canvas.toDataURL())"""
BARS = """() => {
  const strip = document.querySelector('.gl-widget-live > div').shadowRoot.querySelector('.strip');
  const { top, bottom } = strip.getBoundingClientRect();
  return [...strip.querySelectorAll('bdi')].filter(span => {
    const box = span.getBoundingClientRect();
    return box.bottom > top && box.top < bottom;
  }).map(span => span.textContent + span.style.getPropertyValue('--v'));
}"""  # of the tokens in sight
MOVED = {  # controls in turn, and what they select
    "sinks": ({"layer": 2, "head": 4, "token": 20, "shift": 1.0, "sinks_on": True}, "shift"),
    "routing": ({"layer": 2, "token": 9, "expert": 3, "color": "expert"}, "color"),
    "lens": ({"layer": 2, "token": 12, "color": "rank"}, "color"),
    "offload": ({"slots": 4, "link": "nvme", "layer": 2, "token": 9}, "slots"),
}

COLOR_LABELS = {"routing": "Overview shows", "lens": "Color shows"}
LABELS = {
    "layer": "Layer", "head": "Head", "token": "Token", "shift": "Shift all sinks",
    "sinks_on": "Sinks on", "expert": "Follow expert", "slots": "Slots", "link": "Link",
}  # fmt: skip


def choose(page: Watched, label: str, value: object) -> None:
    """Set a control, as a reader does."""
    control = page.page.get_by_label(label, exact=True)
    if isinstance(value, bool):
        control.set_checked(value)
    elif isinstance(value, str):
        control.select_option(value)
    else:
        control.fill(str(value))
    page.settle()


def test_what_moved_is_drawn_like_what_began_there(
    page: Watched, view: PageWidget, recording: Recording, tmp_path: Path
):
    """A redraw makes only what has changed anew; nothing of the selection before may stay."""
    selection, last = MOVED[view.view]
    make = test_widgets.RECORDED[view.view]
    page.open(make(recording, **selection).save(tmp_path / "fresh.html"))
    page.settle()
    fresh, bars = page.page.evaluate(PIXELS), page.page.evaluate(BARS)
    page.open(view.save(tmp_path / "view.html"))
    before = page.page.evaluate(PIXELS)
    for name in [*(name for name in selection if name != last), last]:
        choose(page, LABELS.get(name) or COLOR_LABELS[view.view], selection[name])
    page.settle()
    after = page.page.evaluate(PIXELS)
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert after == fresh
    assert page.page.evaluate(BARS) == bars
    page.clean()


def test_letters_stay_inside(page: Watched, any_saved: Path, any_view: PageWidget):
    page.open(any_saved)
    page.page.evaluate(
        "window.heard = []; document.addEventListener('keydown', event => heard.push(event.key))"
    )
    first = test_widgets.FIRST.get(any_view.view, "Layer")
    page.press(first, "d", "d", "x", "a", "ArrowRight")
    assert page.page.evaluate("heard") == []
    assert page.page.locator("[data-lm-suppress-shortcuts=true]").count() == 1


def test_hostile_tokens_are_only_text(page: Watched, saved: Path, view: PageWidget):
    page.open(saved)
    page.page.get_by_text("Show as table").click()
    page.settle()  # the table is made when it is asked for
    assert page.page.locator("table").count() == 2
    inside = page.page.evaluate(
        """() => [...document.querySelector('.gl-widget-live > div').shadowRoot
             .querySelectorAll('script, img, iframe')].length"""
    )
    assert inside == 0
    strip = page.page.locator(".strip").inner_text()
    for part in ("<script>alert(1)</script>", "\\u202eevil", "😀", "⏎", "</div>", "=1+1"):
        assert part in strip
    assert "\u202e" not in strip
    page.clean()


def test_tables_and_files(page: Watched, saved: Path, view: PageWidget):
    page.open(saved)
    for button, ending in (("Save CSV", "csv"), ("Save PNG", "png")):
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name=button).click()
        assert download.value.suggested_filename.endswith(ending)
        data = Path(download.value.path()).read_bytes()
        assert data.startswith(b'"' if ending == "csv" else b"\x89PNG")
        if ending == "csv":
            lines = data.decode().splitlines()
            quoted = json.dumps(view.tokens[0], ensure_ascii=False).replace('"', '""')
            assert any(line.startswith(f'0,"{quoted}",') for line in lines)
            assert not any(",=" in line for line in lines)
    page.clean()


def test_views_of_one_text_move_together(page: Watched, recording: Recording, tmp_path: Path):
    views = [sinks(recording), routing(recording), sinks(recording, layer=0, head=0)]
    views += [lens(recording), offload(recording)]
    page.open(book_page(tmp_path, *views), n=5)
    page.press("Token", "Home", "ArrowRight", "ArrowRight", nth=1)
    assert all("token 2 " in page.status(i) for i in range(5))
    page.press("Layer", "End", nth=0)
    assert "Layer 3" in page.status(0)
    assert "Layer 0" in page.status(2)  # each view keeps its own layer
    page.clean()


def test_views_of_a_long_text_move_together(page: Watched, tmp_path: Path):
    """Each keeps other tokens; a position of the text means the same in all."""
    long = test_widgets.made_up(L=24, H=64, E=32, A=4, T=600)
    views = [sinks(long), routing(long), lens(long), offload(long)]
    assert [view.first for view in views] == [0, 88, 536, 88]
    assert views[0].stride == 7
    page.open(book_page(tmp_path, *views), n=4)
    page.press("Token", "End", "ArrowLeft", "ArrowLeft", nth=1)
    near = [595, 597, 597, 597]  # of the sinks each seventh is there
    assert all(f"token {near[i]} ␣token{near[i]}" in page.status(i) for i in range(4))
    page.press("Token", "Home", nth=0)  # the others show their first
    near = [0, 88, 536, 88]
    assert all(f"token {near[i]} ␣token{near[i]}" in page.status(i) for i in range(4))
    for i, right in ((1, 0), (3, -1)):  # a click in a drawing, too
        canvas = page.page.locator(".gl").nth(i).locator("canvas").nth(right)
        canvas.click(position={"x": canvas.bounding_box()["width"] - 4, "y": 20})
        page.settle()
        assert [f"token {n} " in page.status(k) for k, n in enumerate((595, 599, 599, 599))] == (
            [True] * 4
        )
        page.press("Token", "Home", nth=2)
    page.clean()


def test_a_finger_that_scrolls_selects_nothing(browser: Any, recording: Recording, tmp_path: Path):
    size = dict(zip(("width", "height"), PHONE, strict=True))
    context = browser.new_context(viewport=size, has_touch=True, is_mobile=True)
    page = Watched(context.new_page())
    page.open(sinks(recording).save(tmp_path / "view.html"))
    canvas = page.page.locator("canvas").nth(2)
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), page.status()
    x, y = box["x"] + 80, box["y"] + 20
    touch = context.new_cdp_session(page.page)

    def send(kind: str, *at: dict[str, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(at)})

    for way in ({"x": 0, "y": 12}, {"x": 12, "y": 0}):
        send("touchStart", {"x": x, "y": y})
        for i in range(1, 9):
            send("touchMove", {"x": x + i * way["x"], "y": y + i * way["y"]})
            page.settle()
        send("touchEnd")
        page.settle()
        assert page.status() == before
    page.page.wait_for_timeout(400)  # a page that still rolls takes a tap as the wish to stop
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.page.touchscreen.tap(box["x"] + 80, box["y"] + 20)
    page.settle()
    assert page.status() != before
    page.clean()
    context.close()


TEXTS = """
window.written = [];
window.lost = [];
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y, room = Infinity) {
  const wide = Math.min(this.measureText(text).width, room);
  const left = x - { left: 0, center: wide / 2, right: wide }[this.textAlign];
  written.push(String(text));
  if (left < -1 || left + wide > this.canvas.width / devicePixelRatio + 1) lost.push(text);
  return write.call(this, text, x, y, ...(room < Infinity ? [room] : []));
};"""  # what is written into canvases, and what of it runs out of them


@pytest.mark.parametrize("width", [1000, 390, 320])
def test_no_text_is_cut_off(page: Watched, tmp_path: Path, width: int):
    page.page.add_init_script(TEXTS)
    page.size((width, 900))
    long = test_widgets.made_up(L=36, H=64, E=128, A=4, T=200)
    small = torch.randn(32, generator=torch.Generator().manual_seed(0)) / 300
    views = [make(long) for make in test_widgets.RECORDED.values()]
    views += [fit(), fit(batch=128, context=131_072), mask(), mask(query=131_071), mxfp4(small)]
    views += [rope(), rope(factor=1)]
    for view in views:
        page.open(view.save(tmp_path / "view.html"))
        page.settle()
        assert page.page.evaluate("lost") == [], view.view
        assert len(page.page.evaluate("written")) > 20


def test_every_kind_of_layer_is_named(page: Watched, tmp_path: Path):
    page.page.add_init_script(TEXTS)
    page.open(sinks(test_widgets.made_up(L=36, H=3, E=5, A=2, T=9)).save(tmp_path / "view.html"))
    page.settle()
    kinds = {text[-1] for text in page.page.evaluate("written") if text[-2:] in (" S", " F")}
    assert kinds == {"S", "F"}


def test_captions_of_a_saved_picture_are_whole(page: Watched, recording: Recording, tmp_path: Path):
    page.size(PHONE)
    page.open(sinks(recording).save(tmp_path / "view.html"))
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Save PNG").click()
    picture = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert (picture[:, -8:] == 255).all()  # the margin
    canvases = page.page.locator("canvas").evaluate_all("all => all.map(one => one.height)")
    assert len(picture) > sum(canvases) + 30 * len(canvases) + 60 + 18  # one caption is folded


def test_paper_is_light_and_shows_the_whole_text(page: Watched, tmp_path: Path):
    page.page.emulate_media(color_scheme="dark")
    page.open(routing(test_widgets.made_up(4, 2, 8, 2, 400)).save(tmp_path / "view.html"))
    inside = "document.querySelector('.gl-widget-live > div').shadowRoot"
    color = f"getComputedStyle({inside}.querySelector('.gl')).backgroundColor"
    dark = page.page.evaluate(PIXELS)
    page.page.emulate_media(media="print", color_scheme="dark")
    page.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.page.evaluate(color) == "rgb(255, 255, 255)"  # at once: no frame comes before paper
    assert all(a != b for a, b in zip(dark, page.page.evaluate(PIXELS), strict=True))
    assert page.page.evaluate(
        f"""(() => {{ const strip = {inside}.querySelector('.strip');
             return strip.scrollHeight <= strip.clientHeight
               && [...strip.children].every(span => span.style.getPropertyValue('--v')); }})()"""
    )
    bar = f"getComputedStyle({inside}.querySelector('.ramp i')).printColorAdjust"
    assert page.page.evaluate(bar) == "exact"
    page.page.emulate_media(media="screen", color_scheme="dark")
    page.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.page.evaluate(color) == "rgb(22, 24, 28)"
    page.clean()


def test_the_book_prints_its_dark_theme_in_dark_ink(page: Watched):
    style = (ASSETS.parents[2] / "book" / "_static" / "gptoss.css").read_text(encoding="utf-8")
    pale = "--pst-color-text-base: #ced6dd; color: var(--pst-color-text-base); background: #14181e"
    page.page.set_content(
        f'<html data-theme="dark"><style>html[data-theme="dark"] {{ {pale}; }} '
        f"html[data-theme='dark'] .highlight .k {{ color: #ffa07a; }} {style}</style>"
        '<p>Text</p><div class="highlight"><span class="k">if</span></div></html>'
    )
    for media, inks in (("print", ["rgb(34, 40, 50)"] * 2), ("screen", ["rgb(206, 214, 221)"])):
        page.page.emulate_media(media=media)
        found = [page.page.locator(name) for name in ("p", ".k")]
        colors = [node.evaluate("node => getComputedStyle(node).color") for node in found]
        assert colors[: len(inks)] == inks


def test_without_scripts_the_finding_remains(browser: Any, any_saved: Path, any_view: PageWidget):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(any_saved.as_uri())
    assert page.locator(".gl-widget p").inner_text() == any_view.describe()
    assert page.locator(".gl-widget tr").count() > 2
    context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_no_sideways_scrolling_and_targets_of_24_pixels(
    page: Watched, any_saved: Path, size: tuple[int, int]
):
    page.page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    page.open(any_saved)
    page.page.get_by_text("Show as table").click()
    page.settle()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    boxes = page.page.locator("input, select, button, summary, [role=button]").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(boxes) >= 6
    assert min(min(box) for box in boxes) >= 23.9  # of 24; a drawing is scaled


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_follow_the_theme(page: Watched, any_saved: Path, scheme: str):
    page.page.emulate_media(color_scheme=scheme)
    page.open(any_saved)
    color = f"getComputedStyle({ROOT}.querySelector('.gl')).backgroundColor"
    shown = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}
    page.until(f"{color} === '{shown[scheme]}'")
    other = "light" if scheme == "dark" else "dark"
    page.page.evaluate(f"document.documentElement.dataset.theme = '{other}'")
    page.until(f"{color} === '{shown[other]}'")


def drawn_again(page: Watched) -> None:
    """Let the theme change, which draws the view anew."""
    color = f"getComputedStyle({ROOT}.querySelector('.gl')).backgroundColor"
    before = page.page.evaluate(color)
    page.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.until(f"{color} !== '{before}'")
    page.settle()


def test_the_focus_stays_when_all_is_drawn_anew(page: Watched, any_saved: Path):
    page.open(any_saved)
    controls = f"[...{ROOT}.querySelectorAll('input, select, button, summary, a, [tabindex]')]"
    shown = f"{controls}.filter(node => node.checkVisibility() && node.tabIndex === 0)"
    many = page.page.evaluate(f"(window.controls = {shown}).length")
    assert many >= 6
    for i in range(many):
        page.page.evaluate(
            f"document.documentElement.dataset.theme = 'light'; controls[{i}].focus()"
        )
        page.settle()
        drawn_again(page)
        assert page.page.evaluate(f"{ROOT}.activeElement === controls[{i}]"), i
    page.clean()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_accessibility_violations(
    page: Watched, recording: Recording, tmp_path: Path, scheme: str
):
    page.page.emulate_media(color_scheme=scheme)
    views = [sinks(recording), routing(recording), sinks(recording), block(step=10), block(step=2)]
    views += [lens(recording), offload(recording), block(beside="Qwen3-30B-A3B")]
    page.open(book_page(tmp_path, *views), n=len(views))
    for summary in page.page.get_by_text("Show as table").all():
        summary.click()
    page.settle()
    assert chromium.violations(page.page) == []


# --- the block ----------------------------------------------------------------------


def parts_shown(page: Watched) -> list[str]:
    return [node.get_attribute("aria-label") for node in page.page.locator("[role=button]").all()]


def test_every_step_is_drawn(page: Watched, tmp_path: Path):
    page.open(block(step=0).save(tmp_path / "view.html"))
    for i, rung in enumerate(LADDER):
        if i:
            page.press("Step", "ArrowRight")
        assert page.status().startswith(f"Step {i} of 13, {rung.name}")
        shown = parts_shown(page)
        for part in anatomy(rung.config):
            assert any(label.startswith(part.title) for label in shown)
    text = page.page.get_by_label("Step", exact=True).get_attribute("aria-valuetext")
    assert text == "step 13, gpt-oss-20b"
    page.page.get_by_role("button", name="Previous step").press("Enter")
    page.settle()
    assert page.status().startswith("Step 12 of 13, MXFP4")
    page.clean()


def test_a_step_marks_what_it_changes(page: Watched, tmp_path: Path):
    page.open(block(step=2).save(tmp_path / "view.html"))
    marked = [
        label for label in parts_shown(page) if label.endswith((", new", ", changed", "gone"))
    ]
    assert marked == ["RoPE, base 150,000, new", "learned positions, 256 × 64, gone"]
    assert page.page.locator(".chiptext").all_text_contents() == ["new", "gone"]
    assert "Selected: rotation (new): RoPE, 0 parameters" in page.status()
    page.page.get_by_label("Part", exact=True).select_option("positions")
    page.settle()
    about = page.page.locator(".about")
    assert "Taken out in this step" in about.inner_text()
    page.press("Step", "End")
    page.page.get_by_label("Part", exact=True).select_option("positions")
    page.settle()
    assert "This model has none." in about.inner_text()
    page.clean()


def test_a_part_is_explained(page: Watched, tmp_path: Path):
    page.open(block(step=7, part="ffn").save(tmp_path / "view.html"))
    about = page.page.locator(".about")
    page.page.get_by_role("button", name="4 query heads").click()
    page.settle()
    said = about.inner_text()
    heads = next(part for part in anatomy(LADDER[7].config) if part.name == "heads")
    assert heads.what in said
    assert f"Parameters: {heads.parameters:,}, 66,560 before" in said
    assert "See chapter 07, grouped-query attention (Ainslie et al. 2023); chapter 01" in said
    row = about.locator("tr", has_text="n_kv_heads").locator("td")
    assert row.inner_text() == "4 → 2"
    assert page.page.locator("[aria-pressed=true]").count() == 1
    page.page.get_by_role("button", name="LayerNorm").first.click()
    page.settle()
    assert page.page.locator("[aria-pressed=true]").count() == 3  # all norms
    page.clean()


def test_another_model_stands_beside(page: Watched, tmp_path: Path):
    """The page marks what Python's comparison names, at every rung."""
    page.open(block(step=6).save(tmp_path / "view.html"))
    drawings = page.page.locator("svg")
    assert drawings.count() == 1
    page.press("Beside", "ArrowDown")
    assert page.status().startswith("Step 13 of 13, gpt-oss-20b, beside Qwen3-30B-A3B: built")
    config = PRESETS["qwen3-30b-a3b"]
    for i in reversed(range(len(LADDER))):
        if i < len(LADDER) - 1:
            page.press("Step", "ArrowLeft")
        for side, found in enumerate(
            [compare_parts(LADDER[i].config, config), compare_parts(config, LADDER[i].config)]
        ):
            shown = drawings.nth(side).locator("[role=button]").all()
            shown = {node.get_attribute("aria-label") for node in shown}
            for part in anatomy(config if side else LADDER[i].config):
                how = found.get(part.name)
                mine = [label for label in shown if label.startswith(part.title)]
                assert mine
                assert all(label.endswith(f", {how}") for label in mine) == (how is not None)
    assert "only here dropout, learned positions; only there router, rotation." in page.status()
    page.press("Beside", "ArrowUp")
    assert drawings.count() == 1
    assert page.status().startswith("Step 0 of 13, GPT-2. Selected: ")
    page.clean()


def test_the_other_model_is_explained_and_saved(page: Watched, tmp_path: Path):
    page.open(block(beside="Qwen3-30B-A3B").save(tmp_path / "view.html"))
    status = page.status()
    assert "only here sinks; only there nothing. Selected: MLP or experts (differs): " in status
    assert "; there 128 experts, 28,991,029,248 parameters." in status
    about = page.page.locator(".about")
    page.page.get_by_role("button", name="32 query heads").focus()
    page.settle()
    assert "64 query heads" in about.inner_text()
    row = about.locator("tr", has_text="qk_norm").locator("td")
    assert row.all_text_contents() == ["–", "True"]
    page.page.keyboard.press("ArrowDown")
    page.settle()
    assert "Selected: " in page.status()
    assert page.status() != status
    assert page.page.locator("[role=button][tabindex='0']").count() == 2  # one in each drawing
    page.page.get_by_text("Show as table").click()
    page.settle()
    table = page.page.locator("table", has_text="difference")
    assert table.locator("tr", has_text="sinks").locator("td").all_text_contents() == [
        "sinks", "sinks; per head", "1536", "none", "0", "only here",
    ]  # fmt: skip
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Save PNG").click()
    picture = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    accent = (abs(picture - (10, 92, 173)).sum(-1) < 30).sum(1)  # of the marks, row by row
    halves = np.array_split(accent, 2)
    assert min(half.sum() for half in halves) > 5_000  # the marks of both drawings are there
    page.clean()


def test_arrow_keys_walk_the_diagram(page: Watched, tmp_path: Path):
    page.open(block(step=7).save(tmp_path / "view.html"))
    assert page.page.locator("[role=button][tabindex='0']").count() == 1
    page.page.locator("[role=button][tabindex='0']").focus()
    for _ in range(20):
        page.page.keyboard.press("ArrowUp")
    page.settle()
    seen = [page.status()]
    for _ in range(20):
        page.page.keyboard.press("ArrowDown")
        page.settle()
        seen.append(page.status())
    for name in PARTS.values():
        there = name not in ("sinks", "dropout", "learned positions")
        assert any(f"Selected: {name}" in status for status in seen) == there
    page.page.keyboard.press("ArrowLeft")
    page.settle()
    assert page.status().startswith("Step 6 of 13")
    assert "Selected: number format" in page.status()  # the keys stay on their part
    page.page.keyboard.press("Tab")
    page.clean()


def test_chapters_are_linked_where_the_page_has_them(page: Watched, tmp_path: Path):
    path = book_page(tmp_path, block(step=7))
    nav = '<nav><a href="sub/07_gqa_cache.html#end">7</a></nav>'
    path.write_text(path.read_text(encoding="utf-8").replace("<main>", f"{nav}<main>"))
    page.open(path)
    links = page.page.locator(".about a").all()
    assert [link.inner_text() for link in links] == ["chapter 07"]
    assert links[0].get_attribute("href").endswith("/sub/07_gqa_cache.html")
    assert "chapter 01" in page.page.locator(".about").inner_text()  # no link, but named
    links[0].focus()
    drawn_again(page)
    assert page.page.evaluate(f"{ROOT}.activeElement?.innerText") == "chapter 07"
    page.clean()


def test_the_block_is_saved_as_a_picture_and_as_a_table(page: Watched, tmp_path: Path):
    page.open(block(step=7).save(tmp_path / "view.html"))
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Save PNG").click()
    data = Path(download.value.path()).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 15_000  # the drawing is in it
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Save CSV").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert (
        "7,grouped-query attention,n_kv_heads 4 → 2,468928,1.79 MiB,07,Ainslie et al. 2023" in lines
    )
    page.clean()


def test_motion_is_only_for_those_who_want_it(page: Watched, tmp_path: Path):
    for motion, name in (("reduce", "none"), ("no-preference", "come")):
        page.page.emulate_media(reduced_motion=motion)
        page.open(block(step=7).save(tmp_path / "view.html"))
        mark = page.page.locator(".mark").first
        assert mark.evaluate("node => getComputedStyle(node).animationName") == name
