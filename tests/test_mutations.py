"""Wrong on purpose: each mutant of the package must move the logits, or parity proves nothing.

`make tables` prints every mutant's damage, and beside it what a lazy test sees.
"""

import inspect
import re
from collections.abc import Callable

import pytest
import torch

from gptoss_lite import attention, dispatch, ffn, moe, mxfp4, norm, positions
from gptoss_lite.attention import Attention
from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.mutants import (
    EXHIBITS,
    LAZY,
    LAZY_TOLERANCE,
    MUTANTS,
    OTHERS,
    PARTS,
    STRICT,
    Mutant,
    caught,
    damage,
    mutant,
    planted,
    stand_ins,
    table,
)
from gptoss_lite.mutants.catalog import CONTROLS
from gptoss_lite.mutants.hostile import GPT_OSS, TOLERANCE

# Where the exhibits' mistakes were made in public. A reference that is not here was not confirmed.
CONFIRMED = {
    "NVIDIA-NeMo/Megatron-Bridge#2656",
    "NVIDIA/Megatron-LM#2771",
    "NVIDIA/TensorRT-Model-Connect#399",
    "ROCm/ATOM#885",
    "TransformerLensOrg/TransformerLens#1618",
    "kekzl/imp#567",
    "ml-explore/mlx-lm#390",
    "rasbt/LLMs-from-scratch#1013",
    "sgl-project/sglang#14270",
    "vllm-project/compressed-tensors#538",
    "vllm-project/vllm#27722",
    "vllm-project/vllm#28244",
    "vllm-project/vllm#43557",
}
named = {"ids": lambda one: one.name}


@pytest.mark.parametrize("one", MUTANTS, **named)
def test_a_mistake_moves_the_logits(
    one: Mutant, record_property: Callable[[str, object], None]
) -> None:
    moved = damage(one)
    record_property("damage", moved)
    print(f"{one.name}: {moved:.1e}")
    assert moved >= one.visible
    assert caught(one)


@pytest.mark.parametrize("one", CONTROLS, **named)
def test_a_stand_in_without_a_mistake_does_not(one: Mutant) -> None:
    """The harness itself moves nothing, so what the mutants move is their mistake."""
    assert damage(one) <= TOLERANCE


def test_every_stand_in_has_a_control() -> None:
    builders = {"change", "swap", "load", "expert_bias_not_weighted", "positions_restart"}
    builders |= {"transposed"}  # wrong in one way only: there is nothing to switch off
    written = {
        name
        for name, value in inspect.getmembers(stand_ins, inspect.isfunction)
        if value.__module__ == stand_ins.__name__ and not name.startswith("_")
    }
    assert written - builders == {c.name.split()[0] for c in CONTROLS} - {"nothing"}


def test_a_lazy_test_misses_what_this_suite_sees() -> None:
    """Window, cache, sinks and biases: with initial weights and six tokens they do not show."""
    for name in (
        "window one too wide",
        "no window",
        "no router bias",
        "expert biases not weighted",
        "mask of a later piece starts at 0",
        "sink fixed at 0 (off by one)",
    ):
        assert damage(mutant(name), LAZY) < LAZY_TOLERANCE, name
        assert not caught(mutant(name), LAZY)
        assert caught(mutant(name), STRICT)


@pytest.mark.parametrize("one", [m for m in MUTANTS if m.needs_cache], **named)
def test_what_needs_a_cache_shows_nowhere_else(one: Mutant) -> None:
    once = type(STRICT)("once", random=True, length=45)
    assert damage(one, once) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("query heads divided by K", GPT_OSS.but(n_heads=4, n_kv_heads=2)),
        ("kv heads tiled, not grouped", GPT_OSS.but(n_heads=6, n_kv_heads=6)),
        ("layers in text order", GPT_OSS.but(n_layers=10)),
        ("softmax before top-k", GPT_OSS.but(moe=type(GPT_OSS.moe)(3, 3, router_bias=True))),
    ],
)
def test_lucky_sizes_hide(name: str, config: object) -> None:
    one = mutant(name)
    lucky = Mutant(one.name, one.part, config, one.plant)
    assert damage(lucky) <= TOLERANCE


def test_everything_is_as_before() -> None:
    owners = (attention, ffn, moe, mxfp4, norm.RMSNorm, positions, Attention, torch.nn.LayerNorm)
    before = [dict(vars(owner)) for owner in owners]
    forced = dispatch._FORCED
    for one in MUTANTS:
        with planted(one):
            pass
        with pytest.raises(KeyError), planted(one):
            raise KeyError
    assert [dict(vars(owner)) for owner in owners] == before
    assert forced == dispatch._FORCED


def test_the_mistakes_are_planted_in_the_specification() -> None:
    with planted(mutant("no + 1")) as config:
        assert dispatch._FORCED == "plain"
        assert config == GPT_OSS


def test_a_mutant_that_cannot_be_loaded_is_explained() -> None:
    bigger = Mutant("more layers", "loading", GPT_OSS, stand_ins.change(n_layers=5))
    with pytest.raises(GptOssLiteError, match="'more layers' has parameters that got no weights"):
        damage(bigger)
    broken = Mutant("nan", "experts", GPT_OSS, stand_ins.change(rope_theta=1e-300))
    with pytest.raises(GptOssLiteError, match="not finite"):
        damage(broken)


def test_names_and_parts() -> None:
    names = [one.name for one in MUTANTS]
    assert len(set(names)) == len(names)
    assert {one.part for one in EXHIBITS} == {one.part for one in MUTANTS} == set(PARTS)
    assert 20 <= len(EXHIBITS) <= 35
    order = list(PARTS)
    places = [order.index(one.part) for one in EXHIBITS]
    assert places == sorted(places), "exhibits stand by part"


@pytest.mark.parametrize("one", EXHIBITS, **named)
def test_an_exhibit_is_described(one: Mutant) -> None:
    for text in (one.what, one.seen, one.hides):
        assert text.endswith((".", "?")), text
        assert "`" not in re.sub(r"`[^`]+`", "", text), "an unpaired backtick"


def test_others_are_not_described() -> None:
    assert not [one.name for one in OTHERS if one.what or one.seen or one.hides]


def test_references_are_confirmed() -> None:
    assert {ref for one in EXHIBITS for ref in one.references} == CONFIRMED


def test_the_table_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(mutant(name) for name in ("no window", "no + 1"))
    monkeypatch.setattr("gptoss_lite.mutants.measure.MUTANTS", few)
    lines = table().splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["no window", "no + 1"]
    assert lines[-1] == "2 of 2 caught; 1 missed by the lazy test"
