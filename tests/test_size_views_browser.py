"""The views of what fits and of masks in a real browser: the page's sums are Python's."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gptoss_lite import account
from gptoss_lite.presets import PRESETS
from gptoss_lite.widgets import FitView, MaskView, fit, mask
from tests import chromium
from tests import test_widgets_browser as pattern
from tests.test_size_views import choices, masks
from tests.test_widgets_browser import Watched, book_page

pytestmark = pytest.mark.site
page = pattern.page


def cells(page: Watched, n: int) -> list[list[list[str]]]:
    """Open the tables of n views on a page; return their rows."""
    for summary in page.page.get_by_text("Show as table").all():
        summary.click()
    page.settle()
    tables = page.page.locator("tbody").all()
    assert len(tables) == n
    read = "node => [...node.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    return [table.evaluate(read) for table in tables]


def said(view: FitView) -> str:
    """Return what the status line says of the chosen model."""
    found = view.fits()[view.model]
    setting = f"{view.batch} × {found.context_tokens:,} tokens, {view.memory} {view.unit}"
    return f"{view.model}, {setting}. {found}"


def test_the_page_s_sums_are_account_s(page: Watched, tmp_path: Path):
    views = [fit(**chosen) for chosen in choices(24, seed=1)]
    page.open(book_page(tmp_path, *views), n=len(views))
    for i, (view, rows) in enumerate(zip(views, cells(page, len(views)), strict=True)):
        for row, (name, found) in zip(rows, view.fits().items(), strict=True):
            config = PRESETS[name]
            expected: list[Any] = [
                name,
                account.parameters(config),
                account.parameters(config, active=True),
                found.weight_bytes,
                found.kv_bytes,
                found.needed_bytes,
                found.memory_bytes,
                account.flops(config, found.context_tokens),
                found.longest_context_tokens,
            ]
            assert row[:-1] == [str(value) for value in expected]
            assert (row[-1] == "fits") == found.fits
        assert page.status(i) == said(view)
    page.clean()


def test_the_calculator_is_turned_by_the_keyboard(page: Watched, tmp_path: Path):
    page.open(fit(memory=16).save(tmp_path / "view.html"))
    view = fit(memory=16)
    assert page.status() == said(view)
    page.press("Memory", "ArrowRight", "ArrowRight")
    page.press("Context", "End")
    page.press("Sequences", "ArrowRight")
    page.page.get_by_label("Model", exact=True).select_option("gpt-oss-120b")
    page.page.get_by_label("Experts' format", exact=True).select_option("bfloat16")
    page.page.get_by_label("Unit", exact=True).select_option("GiB")
    page.settle()
    chosen = {"model": "gpt-oss-120b", "memory": 24, "unit": "GiB", "context": 131_072, "batch": 2}
    view = fit(**chosen, experts="bfloat16")
    assert page.status() == said(view)
    found = view.fits()["gpt-oss-120b"]
    sums = page.page.locator(".plots > div").inner_text()
    for number in (found.weight_bytes, found.kv_bytes, account.flops(PRESETS[view.model], 131_072)):
        assert f"= {number:,}" in sums
    text = page.page.get_by_label("Context", exact=True).get_attribute("aria-valuetext")
    assert text == "context 131,072 tokens"
    labels = [c.get_attribute("aria-label") for c in page.page.locator("canvas").all()]
    assert labels[0].startswith("gpt-oss-120b: short by ")
    assert labels[1].count(";") == 3
    page.clean()


def test_the_page_s_caches_are_python_s(page: Watched, tmp_path: Path):
    views = [mask(**chosen) for chosen in masks(16)]
    page.open(book_page(tmp_path, *views), n=len(views))
    for i, (view, rows) in enumerate(zip(views, cells(page, len(views)), strict=True)):
        full = view.n_layers * 2 * view.head_dim * view.bits[view.dtype] // 8
        for n, *sizes in rows:
            n_tokens = int(n)
            everything = [n_tokens * full * heads for heads in (view.kv_heads, view.n_heads)]
            assert [int(size) for size in sizes] == [view.n_bytes(n_tokens), *everything]
        assert int(rows[0][0]) == view.query + 1
        status = page.status(i)
        assert f"All layers: {view.n_bytes():,} bytes" in status
        for layer, window in list(enumerate(view.windows()))[:6]:
            assert _told(view, layer, "Full" if window is None else "Sliding") in status
    page.clean()


def _told(view: MaskView, layer: int, kind: str) -> str:
    keys = view.seen(layer)
    pieces = [[keys[0]]]
    for before, key in pairwise(keys):
        if key != before + 1:
            pieces[-1].append(before)
            pieces.append([key])
    pieces[-1].append(keys[-1])
    where = " and ".join(f"{a:,} to {b:,}" for a, b in pieces)
    layers = sum((w is None) == (kind == "Full") for w in view.windows())
    return f"{kind} layers ({layers}): sees {len(keys):,} of {view.query + 1:,} keys, {where};"


def test_masks_are_moved_by_the_keyboard_and_a_click(page: Watched, tmp_path: Path):
    page.open(mask(query=11, window=5).save(tmp_path / "view.html"))
    assert "sees 5 of 12 keys, 7 to 11; SlidingCache" in page.status()
    page.press("Query", "ArrowRight")
    assert "sees 5 of 13 keys, 8 to 12" in page.status()
    page.press("Window", "ArrowRight")
    assert "sees 6 of 13 keys, 7 to 12" in page.status()
    page.press("Window", "Home")
    assert "sees 1 of 13 keys, 12 to 12" in page.status()
    page.page.get_by_label("Layers", exact=True).select_option("F")
    page.settle()
    assert "Sliding" not in page.status()
    assert page.page.get_by_text("No sliding layers").count() == 1
    page.press("Query", "End")
    assert page.status().startswith("Query 131,071.")
    page.page.get_by_label("Layers", exact=True).select_option("SF")
    page.settle()
    page.page.locator("canvas").first.click(position={"x": 100, "y": 8})
    page.settle()
    assert not page.status().startswith("Query 131,071.")
    page.clean()


def test_both_are_accessible_and_fit_a_phone(page: Watched, tmp_path: Path):
    bad = "<img src=x onerror=alert(1)>"
    config = PRESETS["gpt-oss-20b"]
    views = [fit(), mask(), fit({bad: config}), mask(query=700, sinks="first", pattern="S")]
    path = book_page(tmp_path, *views)
    for scheme in ("light", "dark"):
        page.page.emulate_media(color_scheme=scheme)
        page.open(path, n=len(views))
        for summary in page.page.get_by_text("Show as table").all():
            summary.click()
        page.settle()
        assert chromium.violations(page.page) == []
    assert page.page.locator("img").count() == 0
    assert bad in page.status(2)
    page.page.set_viewport_size({"width": 390, "height": 844})
    page.settle()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.clean()


@pytest.mark.parametrize("name", ["fit", "mask"])
def test_both_are_saved_as_a_picture_and_as_a_table(page: Watched, tmp_path: Path, name: str):
    view = {"fit": fit, "mask": mask}[name]()
    page.open(view.save(tmp_path / "view.html"))
    for button, start in (("Save PNG", b"\x89PNG"), ("Save CSV", b'"')):
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name=button).click()
        data = Path(download.value.path()).read_bytes()
        assert data.startswith(start)
        if name == "fit" and button == "Save CSV":
            assert b"gpt-oss-20b,20914757184,3608307264,13761264768,103809024," in data
    page.clean()
