"""The views of numbers and of rotations: what Python says, and that mistakes are named."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from traitlets import TraitError

from gptoss_lite import positions
from gptoss_lite import viz as figures
from gptoss_lite.config import YarnConfig
from gptoss_lite.errors import ConfigError, ShapeError
from gptoss_lite.ladder import LADDER
from gptoss_lite.mxfp4 import dequantize, quantize
from gptoss_lite.presets import PRESETS
from gptoss_lite.widgets import mxfp4, rope
from tests import hostile

# --- a block ------------------------------------------------------------------------


def test_a_block_is_encoded_as_the_package_does():
    weights = torch.randn(32, generator=torch.Generator().manual_seed(1))
    view = mxfp4(weights)
    blocks, scales = quantize(weights)
    assert view.encoded == [*view.codes, view.scale] == [*blocks.flatten().tolist(), scales.item()]
    decoded = dequantize(blocks, scales, torch.float64)
    assert view.decoded().tolist() == decoded.tolist()
    assert view.errors().tolist() == (decoded - weights).tolist()
    off = (decoded - weights).norm() / weights.norm()
    assert f"come back {off:.0%} off" in view.summary
    assert f"scale byte {view.scale}, which stands for 2^{view.scale - 127}" in view.summary


def test_rows_of_a_block_name_the_halves():
    view = mxfp4(torch.tensor([1.0, 2.0, 6.0, -6.0] + [0.5] * 28))
    assert [view.codes[0], view.codes[1], view.scale] == [0x42, 0xF7, 127]
    first, second, _, fourth = view.table()[:4]
    assert [first[name] for name in ("byte", "as hexadecimal", "half", "code")] == [
        0, "42", "low", "0010",
    ]  # fmt: skip
    assert (second["half"], second["code's number"], second["decoded"]) == ("high", "2", "2")
    assert (fourth["code"], fourth["original"], fourth["error"]) == ("1111", "-6", "0")
    assert len(view.table()) == 32


def test_bytes_of_a_block_can_be_set():
    view = mxfp4(codes=[0x21, 0xF7] + 14 * [0], scale=128)
    assert view.decoded()[:4].tolist() == [1.0, 2.0, 12.0, -12.0]
    view.high_first = True
    assert view.decoded()[:4].tolist() == [2.0, 1.0, -12.0, 12.0]
    view.scale = 255
    assert np.isnan(view.decoded()).all()


def test_a_block_of_zeros_is_shown():
    view = mxfp4(torch.zeros(32))
    assert "0% off" in view.summary
    assert "32 of them as zero" in view.summary


@pytest.mark.parametrize(("size", "off"), [(3e38, 15), (1e-42, 100)])
def test_very_large_and_very_small_weights_are_compared(size: float, off: int):
    view = mxfp4(torch.full((32,), size))
    assert np.abs(view.errors()).max() / np.float32(size) == pytest.approx(off / 100, abs=0.005)
    assert f"come back {off}% off" in view.summary


def test_the_default_block_is_always_the_same():
    assert mxfp4().html() == mxfp4().html()
    assert mxfp4().title == "One block of MXFP4: random weights, synthetic"
    assert mxfp4(torch.ones(32), "<b>").title == "One block of MXFP4: <b>"
    assert "<b>" not in mxfp4(torch.ones(32), "<b>").html()
    assert len(mxfp4().html()) < 4_000


def test_mistakes_with_a_block_are_named():
    with pytest.raises(ShapeError, match=r"has 32 weights, got \[2, 32\].*mxfp4\(w\[0, :32\]\)"):
        mxfp4(torch.zeros(2, 32))
    unlike: Any = [1.0] * 32
    with (
        hostile.without_type_checks(),
        pytest.raises(ShapeError, match="A block is a tensor, got a list"),
    ):
        mxfp4(unlike)
    with pytest.raises(ShapeError, match="finite"):
        mxfp4(torch.full((32,), math.nan))
    with pytest.raises(ShapeError, match=r"has 32 weights, got \[2, 32\]"):
        figures.mxfp4(torch.zeros(2, 32))
    wrong: tuple[Any, ...] = (
        ("weight", 32),
        ("scale", 256),
        ("codes", 15 * [0]),
        ("codes", 16 * [256]),
    )
    for name, value in wrong:
        with pytest.raises(TraitError, match="block"):
            mxfp4(**{name: value})


# --- rotations ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt-oss-20b", "qwen3-30b-a3b"])
def test_rotations_are_those_of_the_model(name: str):
    config = PRESETS[name]
    view = rope(config)
    expected, _ = positions.frequencies(config)
    # without YaRN the blend of equal numbers is rounded three times
    torch.testing.assert_close(view.angles()[1], expected, rtol=3 * 2**-24, atol=0)
    assert torch.equal(view.angles()[0], positions.rope_frequencies(config.head_dim, view.theta))
    assert len(view.table()) == config.head_dim // 2


def test_what_is_said_of_gpt_oss():
    view = rope()
    assert view.summary == (
        "YaRN keeps 9 of 32 pairs, blends 9 and divides 14 by 32. 14 pairs have not been all "
        "around within 4,096 tokens. The slowest turn takes 649,409 tokens with RoPE, 20,781,087 "
        "with YaRN."
    )
    assert view.distance == 131_072
    assert [row["zone"] for row in view.table()] == ["kept"] * 9 + ["blended"] * 9 + ["slowed"] * 14
    assert len(view.html()) < 6_000


def test_rotations_follow_the_traits():
    oss = PRESETS["gpt-oss-20b"]
    view = rope(factor=7, original_context=1024, truncate=True)
    config = oss.but(yarn=YarnConfig(factor=7, original_context=1024, truncate=True))
    assert torch.equal(view.angles()[1], positions.frequencies(config)[0])
    view.factor = 1.0
    assert torch.equal(view.angles()[1], view.angles()[0])


def test_what_is_said_follows_the_choice():
    view = rope(factor=4)
    assert "divides 14 by 4." in view.summary
    assert view.title.endswith("4,096 tokens times 4")
    assert view.distance == 16_384
    assert rope(original_context=1024).summary.count("within 1,024 tokens") == 1


def test_without_yarn_there_are_no_zones():
    for view in (rope(PRESETS["qwen3-30b-a3b"]), rope(factor=1)):
        assert "YaRN" not in view.describe()
        assert view.summary.startswith("This is plain RoPE: no pair is slowed. ")
        assert {row["zone"] for row in view.table()} == {"plain"}
        assert not view.ramp().any()


def test_mistakes_with_rotations_are_named():
    with pytest.raises(ConfigError, match="got 'learned'"):
        rope(PRESETS["gpt2"])
    with pytest.raises(ConfigError, match="got 'learned'"):
        figures.rope(PRESETS["gpt2"])
    wrong: tuple[Any, ...] = (
        ("pair", 32),
        ("distance", -1),
        ("factor", 0.5),
        ("original_context", 0),
    )
    for name, value in wrong:
        with pytest.raises(TraitError):
            rope(**{name: value})


# --- the static twins ---------------------------------------------------------------


def test_static_figures_draw_every_number():
    weights = torch.randn(32, generator=torch.Generator().manual_seed(1))
    ax = figures.mxfp4(weights)
    decoded, original = (line.get_ydata() for line in ax.lines[-2:])
    assert np.asarray(original).tolist() == weights.tolist()
    assert np.asarray(decoded).tolist() == mxfp4(weights).decoded().tolist()
    plt.close()
    for config in (LADDER[2].config, LADDER[3].config, PRESETS["gpt-oss-20b"]):
        ax = figures.rope(config)
        expected = 2 * math.pi / positions.frequencies(config)[0]
        curves = [line for line in ax.lines if len(np.asarray(line.get_ydata())) == len(expected)]
        assert np.asarray(curves[-1].get_ydata()).tolist() == expected.tolist()
        assert len(curves) == (1 if config.yarn is None else 2)
        plt.close()


def test_a_selection_is_saved():
    assert "&quot;pair&quot;:3" in rope(pair=3).html()
    assert "&quot;weight&quot;:5" in mxfp4(weight=5).html()
    assert dataclasses.is_dataclass(rope().yarn())
