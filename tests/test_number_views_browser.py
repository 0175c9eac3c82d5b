"""The views of numbers and of rotations in a browser: the page computes what the package does."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_lite import positions
from gptoss_lite.config import YarnConfig
from gptoss_lite.mxfp4 import dequantize
from gptoss_lite.widgets import mxfp4, rope
from gptoss_lite.widgets.page import module_source
from tests import chromium
from tests import test_widgets_browser as pattern
from tests.test_widgets_browser import Watched, book_page

pytestmark = pytest.mark.site
page = pattern.page


def run_in_module(page: Watched, view: str, name: str, script: str, value: Any = None) -> Any:
    """Call a function that a module of the page keeps to itself."""
    page.page.goto("about:blank")
    source = f"{module_source(view)}\nexport {{ {name} }};"
    return page.page.evaluate(
        """async ([source, name, script, value]) => {
             const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
             const { [name]: called } = await import(url);
             return new Function("called", "value", script)(called, value);
           }""",
        [source, name, script, value],
    )


# --- a block ------------------------------------------------------------------------


def test_the_pages_decoder_is_the_packages(page: Watched):
    """All 65,536 pairs of code byte and scale byte, bit for bit, minus zero and NaN too."""
    text = run_in_module(
        page,
        "mxfp4",
        "decode",
        """const out = new Float64Array(2 * 65536);
           for (let i = 0; i < 65536; i++) out.set(called(i & 255, i >> 8), 2 * i);
           let text = "";
           for (const byte of new Uint8Array(out.buffer)) text += String.fromCharCode(byte);
           return btoa(text);""",
    )
    found = torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f8").copy()).view(256, 512)
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(256, 16, 16)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 16)
    expected = dequantize(blocks, scales, torch.float64)
    assert found[255].isnan().all()
    assert expected[255].isnan().all()
    assert torch.equal(found[:255].view(torch.int64), expected[:255].view(torch.int64))


def selected(page: Watched) -> str:
    return page.status().replace("−", "-")


def test_bits_change_the_numbers(page: Watched, tmp_path: Path):
    view = mxfp4(torch.tensor([1.0, 2.0, 6.0, -6.0] + [0.5] * 28))
    page.open(view.save(tmp_path / "view.html"))
    assert selected(page).startswith(
        "Weight 0 is the low half of byte 0, 0x42: code 0010 = 1, times 2^0 is 1. "
        "Original 1, error 0. The whole block is 0% off."
    )
    byte = page.page.get_by_role("group", name="Byte 0").get_by_role("button")
    assert byte.count() == 8
    assert [bit.get_attribute("aria-pressed") for bit in byte.all()].count("true") == 2
    byte.nth(4).focus()
    page.page.keyboard.press("Space")  # the low half's sign
    page.settle()
    assert "0x4A: code 1010 = -1, times 2^0 is -1. Original 1, error -2." in selected(page)
    assert byte.nth(4).get_attribute("aria-pressed") == "true"
    page.page.get_by_role("group", name="The scale byte").get_by_role("button").nth(7).click()
    page.settle()
    view.codes, view.scale = [0x4A, *view.codes[1:]], 126
    assert view.decoded()[0] == -0.5
    assert "times 2^-1 is -0.5." in selected(page)
    page.page.get_by_role("button", name="As encoded").click()
    page.settle()
    assert "0x42: code 0010 = 1, times 2^0 is 1." in selected(page)
    page.clean()


def test_the_order_of_the_halves_can_be_swapped(page: Watched, tmp_path: Path):
    view = mxfp4(weight=3)
    page.open(view.save(tmp_path / "view.html"))
    page.press("High half first", "Space")
    view.high_first = True
    page.page.get_by_text("Show as table").click()
    page.settle()
    cells = page.page.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [float(row[6]) for row in cells] == view.decoded().tolist()
    assert [float(row[8]) for row in cells] == pytest.approx(view.errors().tolist(), abs=1e-12)
    assert "Weight 3 is the low half of byte 1" in page.status()
    page.press("Scale byte", "End")
    assert "no number" in page.status()
    page.press("Scale byte", "Home")
    assert "2^-127" in selected(page)
    page.clean()


# --- rotations ----------------------------------------------------------------------

CASES = [
    *[(64, 150_000.0, YarnConfig(factor=f, original_context=n)) for f, n in
      ((1.0, 4096), (2.0, 256), (32.0, 4096), (37.0, 131072), (64.0, 1024))],
    (64, 150_000.0, YarnConfig(factor=32.0, original_context=4096, truncate=True)),
    (16, 10_000.0, YarnConfig(factor=4.0, original_context=64)),
    (6, 100.0, YarnConfig(factor=8.0, original_context=40, beta_fast=4.0)),
    (128, 1_000_000.0, YarnConfig(factor=4.0, original_context=32768)),
    (8, 10_000.0, YarnConfig(factor=4.0, original_context=1)),
]  # fmt: skip


@pytest.mark.parametrize(("head_dim", "theta", "yarn"), CASES)
def test_the_pages_angles_are_the_packages(
    page: Watched, head_dim: int, theta: float, yarn: YarnConfig
):
    given = {**vars(yarn), "head_dim": head_dim, "theta": theta}
    found = run_in_module(page, "rope", "rotations", "return called(value)", given)
    plain = positions.rope_frequencies(head_dim, theta).double()
    ramp = positions.yarn_ramp(head_dim, theta, yarn).double() * (yarn.factor > 1)
    # The page computes in float64, the package in float32. There the exponent is rounded once and
    # acts through ln(theta); power and reciprocal add two more roundings, the power up to a few.
    half_ulp = 2.0**-24
    of_plain = half_ulp * (math.log(theta) + 6)
    got = torch.tensor([[row["plain"], row["yarn"], row["ramp"]] for row in found]).double()
    assert ((got[:, 0] / plain - 1).abs() <= of_plain).all()
    # The ramp's ends become float32 before they are subtracted; the difference divides the error.
    ends = [
        head_dim / 2 * math.log(yarn.original_context / (t * 2 * math.pi)) / math.log(theta)
        for t in (yarn.beta_fast, yarn.beta_slow)
    ]
    low, high = max(ends[0], 0), min(ends[1], head_dim - 1)
    of_ramp = half_ulp * (2 + 2 * head_dim / abs(high - low))
    assert ((got[:, 2] - ramp).abs() <= of_ramp).all()
    blended = plain / yarn.factor * ramp + plain * (1 - ramp)
    # relative to a blend of at least plain / factor
    off = of_plain + of_ramp * yarn.factor + 4 * half_ulp
    assert ((got[:, 1] / blended - 1).abs() <= off).all()
    zones = [row["zone"] for row in found]
    sure = (ramp * (1 - ramp)).abs() > of_ramp
    assert all(zone == "blended" for zone, s in zip(zones, sure.tolist(), strict=True) if s)
    assert zones == sorted(zones, key=["kept", "blended", "slowed", "plain"].index)
    assert ("plain" in zones) == (yarn.factor == 1)


def test_hands_move_by_keyboard(page: Watched, tmp_path: Path):
    page.open(rope(pair=20).save(tmp_path / "view.html"))
    plain, yarn = (angles[20].item() * 131_072 / 2 / math.pi for angles in rope().angles())
    assert f"At distance 131,072: {plain:.0f} turns and {yarn:.2g} turns." in page.status()
    assert page.status().startswith("Pair 20, slowed: a turn takes")
    assert ", 0 with YaRN. YaRN multiplies scores by 1.81." in page.status()
    page.press("Pair", "Home")
    assert page.status().startswith("Pair 0, kept: a turn takes 6 tokens with RoPE, 6 with YaRN.")
    page.press("Distance", "Home", "ArrowRight", "ArrowRight")
    assert "At distance 2: 0.32 turns and 0.32 turns." in page.status()
    assert "never met in 4,096 tokens: 0 of 32 pairs with RoPE" in page.status()
    page.press("Factor", "Home")
    assert "YaRN multiplies scores by 1.00." in page.status()
    page.press("Original context", "Home")
    assert "never met in 256 tokens" in page.status()
    text = page.page.get_by_label("Distance", exact=True).get_attribute("aria-valuetext")
    assert text == "distance 2 tokens"
    page.clean()


def test_rounding_the_ramp_is_seen(page: Watched, tmp_path: Path):
    view = rope(pair=17)
    page.open(view.save(tmp_path / "view.html"))
    before = page.status()
    page.press("Round the ramp's ends", "Space")
    assert page.status() != before
    view.truncate = True
    turn = 2 * math.pi / view.angles()[1][17].item()
    assert f"{turn:,.0f} with YaRN" in page.status()
    page.clean()


# --- both ---------------------------------------------------------------------------


def test_a_click_selects(page: Watched, tmp_path: Path):
    page.open(book_page(tmp_path, mxfp4(), rope(), mxfp4(weight=9)), n=3)
    canvases = page.page.locator("canvas")
    canvases.nth(0).click(position={"x": 12, "y": 60})  # second row, first cell: byte 4's high half
    canvases.nth(2).click(position={"x": 60, "y": 40})
    page.settle()
    assert page.status(0).startswith("Weight 9 is the high half of byte 4")
    assert page.status(1).startswith("Pair 1, kept")
    assert page.status(2).startswith("Weight 9 ")
    page.clean()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1000, 900), chromium.PHONE])
def test_nothing_is_inaccessible(page: Watched, tmp_path: Path, scheme: str, size: tuple[int, int]):
    page.page.emulate_media(color_scheme=scheme)
    page.page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    page.open(book_page(tmp_path, mxfp4(), rope(), mxfp4(torch.ones(32), "<img src=x>")), n=3)
    for summary in page.page.get_by_text("Show as table").all():
        summary.click()
    page.settle()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.page.locator("img").count() == 0
    boxes = page.page.locator("input, select, button, summary").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert min(min(box) for box in boxes) >= 24
    assert chromium.violations(page.page) == []
    page.clean()


def test_files_are_saved(page: Watched, tmp_path: Path):
    for view, rows in ((mxfp4(), 32), (rope(), 32)):
        page.open(view.save(tmp_path / "view.html"))
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name="Save PNG").click()
        data = Path(download.value.path()).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 15_000
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name="Save CSV").click()
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2 + rows + 1
        assert json.dumps(lines[2]).count(",") == lines[1].count(",")
    page.clean()
