"""The logit lens and the cache of experts in a real browser: the page's numbers are Python's."""

import csv
import io
import json
from pathlib import Path

import pytest

from gptoss_lite.offload import LINKS, hit_rates
from gptoss_lite.recording import Recording, example
from gptoss_lite.widgets import OffloadView, lens, offload
from gptoss_lite.widgets.page import PageWidget
from tests import chromium, test_widgets
from tests import test_widgets_browser as pattern
from tests.test_widgets_browser import Watched, book_page

pytestmark = pytest.mark.site
page = pattern.page


@pytest.fixture(scope="module")
def recording() -> Recording:
    return test_widgets.recorded(75)


def tables(page: Watched, view: PageWidget, folder: Path) -> list[list[list[str]]]:
    """Open a view and return its tables as the saved CSV has them."""
    page.open(view.save(folder / "view.html"))
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Save CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    found: list[list[list[str]]] = []
    for row in csv.reader(io.StringIO(text)):
        if len(row) == 1:
            found.append([])  # a caption
        elif row:
            found[-1].append(row)
    return found


def told(speed: float) -> str:
    if speed == float("inf"):
        return "no limit"
    return f"{speed:.1f} tokens/s" if speed < 100 else f"{speed:,.0f} tokens/s"


# --- the cache of experts -----------------------------------------------------------


@pytest.mark.parametrize("name", ["hostile", "add", "long", "made up", "cut"])
def test_the_page_s_cache_is_python_s(
    page: Watched, recording: Recording, tmp_path: Path, name: str
):
    runs = {"hostile": recording, "made up": test_widgets.made_up(5, 2, 40, 6, 90)}
    runs["cut"] = test_widgets.made_up(36, 1, 12, 6, 240)
    runs["cut"].about["n_prompt"] = 200
    run = runs.get(name) or example(name)
    view = offload(run, layer=1, token=210 if name == "cut" else 30)
    assert view.first == (13 if name == "cut" else 0)
    view.slots = min(view.n_active + 2, view.n_experts)
    by_slots, by_token = tables(page, view, tmp_path)
    rates = hit_rates(view.distances(), view.n_experts, view.answer - view.first)
    assert [int(row[0]) for row in by_slots[1:]] == list(range(view.n_active, view.n_experts + 1))
    same = (view.n_experts, view.n_active) == (32, 4)
    for i, row in enumerate(by_slots[1:]):
        now = offload(run, slots=view.n_active + i)
        assert float(row[1]) == pytest.approx(now.hit_rate(), abs=5.1e-5)
        assert float(row[2]) == pytest.approx(view.shuffled[i], abs=5.1e-5)
        assert (row[3] != "") == (same and now.slots in (4, 8, 12, 16, 20, 24))
        assert int(row[4]) == pytest.approx(now.moved_bytes(), abs=0.51)
        for link, shown in zip(LINKS, row[5:8], strict=True):
            now.link = link
            limit = now.tokens_per_s()
            assert (shown == "") == (limit == float("inf"))
            if shown:
                assert float(shown) == pytest.approx(limit, abs=0.051)
        assert [float(cell) for cell in row[8:]] == pytest.approx(rates[:, i].tolist(), abs=5.1e-5)
    fetched = view.fetched()
    positions = range(view.first, view.first + len(view.tokens))
    assert [int(row[0]) for row in by_token[1:]] == list(positions)
    counted = ["yes" if t >= view.answer else "no" for t in positions]
    shown = [(int(row[2]), int(row[3]), row[4]) for row in by_token[1:]]
    assert shown == list(zip(fetched[1], fetched.sum(0), counted, strict=True))
    assert said(view) in page.status()
    page.clean()


def said(view: OffloadView) -> str:
    at = view.token - view.first
    fetched, limit = view.fetched()[:, at], told(view.tokens_per_s())
    at_most = "" if limit == "no limit" else "at most "
    return (
        f"over {LINKS[view.link][0]}: {at_most}{limit}. "
        f"Layer {view.layer}, token {view.token} "
        f"{_visible(view.tokens[at])}: {fetched[view.layer]} of {view.n_active} experts "
        f"fetched, {fetched.sum()} in all layers."
    )


def _visible(token: str) -> str:
    blank = len(token) - len(token.lstrip(" "))
    token = token.encode("utf-8", "replace").decode("utf-8")
    return "␣" * blank + token[blank:].replace("\n", "⏎").replace("\u202e", "\\u202e")


def test_slots_and_links_are_moved_by_the_keyboard(page: Watched, tmp_path: Path):
    view = offload(slots=6, link="nvme", layer=2, token=100)
    page.open(view.save(tmp_path / "view.html"))
    assert said(view) in page.status()
    page.press("Slots", "ArrowRight", "ArrowRight")
    view.slots = 8
    assert page.status().startswith("8 of 32 experts a layer: ")
    assert said(view) in page.status()
    page.page.get_by_label("Link", exact=True).select_option("pcie4")
    page.settle()
    view.link = "pcie4"
    assert said(view) in page.status()
    sums = page.page.locator(".plots > div").inner_text()
    assert "gpt-oss-20b, 8 slots, published hit rate: 24 layers × 4 lookups × 36% missed" in sums
    assert "PCIe 3.0 x16, 16 GB/s: 35.0 tokens/s" in sums
    page.press("Slots", "End")
    text = page.page.get_by_label("Slots", exact=True).get_attribute("aria-valuetext")
    assert text == "slots 32 of 32 experts a layer"
    charts = page.page.locator("canvas")
    charts.first.click(position={"x": 60, "y": 60})
    page.settle()
    assert page.status().startswith(("5 of 32", "6 of 32"))
    charts.nth(2).click(position={"x": 40, "y": 70})
    page.settle()
    assert "Layer 3, token 1 " in page.status()
    page.clean()


# --- the logit lens -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "story", "made up"])
def test_the_page_s_lens_is_python_s(page: Watched, tmp_path: Path, name: str):
    run = test_widgets.made_up(24, 2, 8, 2, 90) if name == "made up" else example(name)
    view = lens(run, layer=1, token=85)
    assert view.first == (26 if name == "made up" else 0)
    by_layer, by_token = tables(page, view, tmp_path)
    ranks, nats = view.ranks(), view.nats()
    assert len(by_layer) == 1 + view.n_layers
    for layer, row in enumerate(by_layer[1:]):
        assert int(row[1]) == ranks[layer, 85 - view.first]
        assert float(row[2]) == pytest.approx(nats[layer, 85 - view.first], abs=5.1e-5)
        assert _choices(row[3:]) == _rounded(view.top(layer, 85))
    assert [int(row[0]) for row in by_token[1:]] == list(
        range(view.first, view.first + len(view.tokens))
    )
    for t, row in enumerate(by_token[1:]):
        assert _choices(row[2:4]) == _rounded(view.top(1, view.first + t)[:1])
        assert (int(row[4]), float(row[5])) == (ranks[1, t], pytest.approx(nats[1, t], abs=5.1e-5))
    page.clean()


def _choices(row: list[str]) -> list[tuple[str, str]]:
    return [(json.loads(text), p) for text, p in zip(row[::2], row[1::2], strict=True)]


def _rounded(top: list[tuple[str, float]]) -> list[tuple[str, str]]:
    return [(text, f"{p:.4f}") for text, p in top]


def test_the_lens_says_what_is_selected(page: Watched, tmp_path: Path):
    run = example("add")
    view = lens(run)
    page.open(view.save(tmp_path / "view.html"))
    tokens = run.about["tokens"]
    answer = len(tokens) - 3  # the first digit of the sum is said after this token
    page.press("Token", "End", "ArrowLeft", "ArrowLeft", "ArrowLeft")
    for layer in range(view.n_layers):
        page.press("Layer", "Home", *["ArrowRight"] * layer)
        at = answer - 1
        first, p = view.top(layer, at)[0]
        share = "< 1%" if p < 0.005 else f"{p:.0%}"
        status = page.status()
        assert status.startswith(
            f"Layer {layer}, token {at} {tokens[at]}: {_visible(first)} {share},"
        )
        assert (
            f"The text goes on with {tokens[answer]}, here at rank {view.ranks()[layer, at]}"
            in status
        )
        assert f"{view.nats()[layer, at]:.2f} nats from the last layer." in status
    for color, words in (
        ("rank", "rank of the token that comes next"),
        ("kl", "nats from the last layer"),
    ):
        page.page.get_by_label("Color shows", exact=True).select_option(color)
        page.settle()
        label = page.page.locator("canvas").first.get_attribute("aria-label")
        assert label.endswith(f": {words}")
    page.press("Token", "End")
    last = view.top(view.n_layers - 1, len(tokens) - 1)[0][0]
    assert f"The text goes on with {_visible(last)}, here" in page.status()
    close = page.page.locator("canvas").nth(1)  # its last column is the last token
    box = close.bounding_box()
    close.click(position={"x": box["width"] - 150, "y": 30})
    page.settle()
    assert page.status().startswith(f"Layer 0, token {len(tokens) - 2} ")
    page.clean()


def test_of_a_long_text_the_end_is_drawn(page: Watched, tmp_path: Path):
    view = lens(test_widgets.made_up(24, 2, 8, 2, 200), token=140)
    page.open(view.save(tmp_path / "view.html"))
    assert page.status().startswith(f"Layer {view.layer}, token 140 ␣token140: ")
    page.press("Token", "Home")
    assert "token 136 ␣token136: " in page.status()
    assert (
        "The first 136 tokens of the recording are not shown."
        in page.page.locator(".gl").inner_text()
    )
    page.clean()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_are_accessible_and_fit_a_phone(page: Watched, tmp_path: Path, scheme: str):
    page.page.emulate_media(color_scheme=scheme)
    views = [lens(), offload(), lens(test_widgets.made_up(24, 2, 8, 2, 90)), offload(slots=32)]
    page.open(book_page(tmp_path, *views), n=4)
    for summary in page.page.get_by_text("Show as table").all():
        summary.click()
    page.settle()
    assert chromium.violations(page.page) == []
    page.page.set_viewport_size({"width": 390, "height": 844})
    page.settle()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.clean()
