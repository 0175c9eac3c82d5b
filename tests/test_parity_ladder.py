"""Every rung of the ladder against a published class: stored, live, and with bugs planted."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_lite import LADDER, MoEConfig, attention, ffn, moe, norm, parity, positions
from gptoss_lite.cli import main
from gptoss_lite.errors import ConfigError
from gptoss_lite.ladder import changed_fields

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch, parity.Reference], parity.Reference]

STORED = {path.stem: parity.read_reference(path) for path in parity.FOLDER.glob("*.safetensors")}
VISIBLE = 1e-3  # what a mistake must move a row by
MAX_BYTES = 1_500_000


# --- what is stored ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORED)
def test_a_stored_row_is_within_the_tolerance(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    row = parity.compare(STORED[name])
    record_property("difference", row.difference)
    print(row)
    assert row.difference <= parity.TOLERANCE
    assert 0.5 < row.logits_std < 2


def test_every_rung_has_a_row() -> None:
    assert {rung.name for rung in LADDER} | {"Qwen3-MoE"} == {r.rung for r in STORED.values()}


def test_every_rung_but_swiglu_has_a_row_in_which_nothing_is_changed() -> None:
    exact = {r.rung for r in STORED.values() if not parity.changed(r)}
    assert {rung.name for rung in LADDER} - exact == {"SwiGLU"}


def test_a_row_keeps_what_its_rung_is_about() -> None:
    """A rung's own switches are never among those that a comparison changes."""
    topics = {rung.name: set(rung.changes) for rung in LADDER}
    for name, reference in STORED.items():
        both = topics.get(reference.rung, set()) & set(parity.changed(reference))
        # Starcoder2 slides in every layer; the row with gpt-oss has the alternation.
        assert both == ({"layer_pattern"} if name == "sliding-window.starcoder2" else set())


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in parity.FOLDER.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("name", STORED)
def test_the_stored_models_are_hostile(name: str) -> None:
    """Nothing is left at a default, prompts are long, and axes that could be swapped differ."""
    reference = STORED[name]
    c = reference.config
    held = parity.zeros(reference)
    for path, tensor in reference.weights.items():
        if not path.endswith(held):
            assert tensor.float().std() > 0.01, path
    batch, length = reference.tokens.shape
    assert batch == 2
    if c.sliding_window:
        assert length >= 4 * c.sliding_window
    if c.yarn and reference.rung != "gpt-oss-20b":
        assert length > 4 * c.yarn.original_context
    sizes = [c.vocab_size, c.d_model, c.head_dim, c.d_ff, length]
    assert len(set(sizes)) == len(sizes)
    assert c.n_heads * c.head_dim != c.d_model or "GptOss" not in reference.published


def test_held_parameters_are_few() -> None:
    """Only what a published class lacks is at zero."""
    held = {name: parity.zeros(r) for name, r in STORED.items() if parity.zeros(r)}
    norms = {"attn_norm.bias", "ffn_norm.bias", "norm.bias"}
    assert {name: set(names) for name, names in held.items()} == {
        "swiglu.stablelm": {"attn.o.bias"},
        "clamped-swiglu.gpt-oss": {"norm.bias"},
        "mixture-of-experts.gpt-oss": {"norm.bias"},
        "mixture-of-experts.dbrx": norms,
        "grouped-query-attention.gpt-oss": {"norm.bias"},
        "grouped-query-attention.dbrx": norms,
        "sliding-window.gpt-oss": {"norm.bias"},
    }


# --- the published classes themselves ------------------------------------------------------------


@pytest.fixture(scope="module")
def maker() -> Any:
    pytest.importorskip("transformers")
    return pytest.importorskip("tools.make_references")


@pytest.mark.parametrize("name", STORED)
def test_the_published_class_gives_the_stored_logits(name: str, maker: Any) -> None:
    reference = STORED[name]
    fresh = maker.published_logits(reference)
    difference = (fresh - reference.logits).abs().max().item()
    print(f"{name}: {difference:.1e}")
    # 0 on the machine that wrote them; another one's matrix products may round differently, which
    # the tool has seen to move these models by a third of the tolerance at most.
    assert difference <= parity.TOLERANCE / 2


@pytest.mark.parametrize("name", sorted(STORED))
def test_a_live_run_with_other_weights_agrees(name: str, maker: Any) -> None:
    case = next(case for case in maker.CASES if case.name == name)
    reference = maker.make(case, seed=1, limit=parity.TOLERANCE)
    assert reference.config == STORED[name].config
    assert not torch.equal(reference.tokens, STORED[name].tokens)
    row = parity.compare(reference)
    print(row)
    assert row.ok


def test_the_same_bytes_come_out_twice(maker: Any) -> None:
    case = maker.CASES[0]
    data = maker.to_bytes(maker.make(case))
    assert data == maker.to_bytes(maker.make(case))


def test_the_files_are_those_of_the_tool(maker: Any) -> None:
    assert {case.name for case in maker.CASES} == set(STORED)
    for case in maker.CASES:
        assert STORED[case.name].why == case.why
        assert case.setup in STORED[case.name].setup


# --- planted bugs --------------------------------------------------------------------------------


def config(**fields: Any) -> Plant:
    """Plant another config."""
    return lambda patch, r: replace(r, config=r.config.but(**fields))


def swap(owner: Any, name: str, wrong: Any) -> Plant:
    """Plant another function in place of one of the package."""

    def plant(patch: Patch, reference: parity.Reference) -> parity.Reference:
        patch.setattr(owner, name, wrong)
        return reference

    return plant


def weights(change: Callable[[str, Tensor], Tensor]) -> Plant:
    """Plant a mistake in reading the weights."""
    return lambda patch, r: replace(r, weights={n: change(n, w) for n, w in r.weights.items()})


def exchange_halves(act: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, **numbers: act(x.roll(x.shape[-1] // 2, -1), **numbers)


def no_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *rest: Any) -> Tensor:
    return attend(q, k, v, None, *rest)


def tiled_heads(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    return attend(q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), *rest)


def softmax_of_all(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    return tuple(logits.softmax(-1).topk(n_active))


def swap_nibbles(name: str, tensor: Tensor) -> Tensor:
    return (tensor >> 4) | (tensor << 4) if name.endswith(".blocks") else tensor


def next_scale(name: str, tensor: Tensor) -> Tensor:
    return tensor - 1 if name.endswith(".scales") else tensor


def from_one(self: positions.LearnedPositions, at: Tensor) -> Tensor:
    return self.weight[at + 1]


def centred_rms(self: norm.RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x - x.mean(-1, keepdim=True), x.shape[-1:], self.weight, self.eps)


attend = attention.attend
TRUNCATED = {
    "yarn": replace(STORED["yarn.starcoder2"].config.yarn, truncate=True),  # pyright: ignore
}
SWIGLU = swap(ffn, "swiglu", exchange_halves(ffn.swiglu))
CLAMPED = swap(ffn, "clamped_swiglu", exchange_halves(ffn.clamped_swiglu))
ALL_EXPERTS = swap(moe, "route", softmax_of_all)
TILED = swap(attention, "attend", tiled_heads)

BUGS: tuple[tuple[str, str, Plant], ...] = (
    ("positions from 1", "gpt-2.gpt2", swap(positions.LearnedPositions, "forward", from_one)),
    ("dropout left on", "no-dropout.gpt2", config(dropout=0.1)),
    ("another theta", "rope.starcoder2", config(rope_theta=51.0)),
    ("YaRN truncated", "yarn.starcoder2", config(**TRUNCATED)),
    ("no YaRN", "yarn.starcoder2", config(yarn=None)),
    ("gate and up exchanged", "swiglu.stablelm", SWIGLU),
    ("gate and up exchanged", "clamped-swiglu.gpt-oss", CLAMPED),
    ("no clamp", "clamped-swiglu.gpt-oss", config(swiglu_limit=1e9)),
    ("softmax of all experts", "mixture-of-experts.gpt-oss", ALL_EXPERTS),
    ("softmax of all experts", "mixture-of-experts.dbrx", ALL_EXPERTS),
    ("one expert fewer", "mixture-of-experts.dbrx", config(moe=MoEConfig(5, 2))),
    ("kv heads tiled", "grouped-query-attention.gpt-oss", TILED),
    ("kv heads tiled", "grouped-query-attention.dbrx", TILED),
    ("window + 1", "sliding-window.gpt-oss", config(sliding_window=8)),
    ("window + 1", "sliding-window.starcoder2", config(sliding_window=8)),
    ("window - 1", "sliding-window.starcoder2", config(sliding_window=6)),
    ("the other layers slide", "sliding-window.gpt-oss", config(layer_pattern="FS")),
    ("mean taken out", "rmsnorm.gpt-oss", swap(norm.RMSNorm, "forward", centred_rms)),
    ("mean taken out", "rmsnorm.mixtral", swap(norm.RMSNorm, "forward", centred_rms)),
    ("no sinks", "sinks-and-router-bias.gpt-oss", swap(attention, "attend", no_sinks)),
    (
        "no router bias",
        "sinks-and-router-bias.gpt-oss",
        weights(lambda name, w: 0 * w if name.endswith("router.bias") else w),
    ),
    ("YaRN truncated", "untied-head.gpt-oss", config(**TRUNCATED)),
    (
        "head read from the embedding",
        "untied-head.gpt-oss",
        lambda patch, r: replace(
            r, weights={**r.weights, "unembed.weight": r.weights["embed.weight"]}
        ),
    ),
    ("nibbles swapped", "mxfp4.gpt-oss", weights(swap_nibbles)),
    ("scale bias off by one", "mxfp4.gpt-oss", weights(next_scale)),
    ("window + 1", "gpt-oss-20b.gpt-oss", config(sliding_window=129)),
    ("alpha 1.6", "gpt-oss-20b.gpt-oss", config(swiglu_alpha=1.6)),
    ("no sinks", "gpt-oss-20b.gpt-oss", swap(attention, "attend", no_sinks)),
    ("softmax of all experts", "qwen3-moe.qwen3-moe", ALL_EXPERTS),
    ("mean taken out", "qwen3-moe.qwen3-moe", swap(norm.RMSNorm, "forward", centred_rms)),
)


@pytest.mark.usefixtures("plain")  # what is patched is the specification
@pytest.mark.parametrize(("bug", "name", "plant"), BUGS, ids=[f"{b} in {n}" for b, n, _ in BUGS])
def test_a_planted_bug_fails_its_row(bug: str, name: str, plant: Plant) -> None:
    with pytest.MonkeyPatch.context() as patch:
        row = parity.compare(plant(patch, STORED[name]))
    print(f"{bug}: {row}")
    assert row.difference > VISIBLE
    assert not row.ok
    assert str(row).endswith("FAIL")


def test_every_row_sees_a_planted_bug() -> None:
    assert {name for _, name, _ in BUGS} == set(STORED)


# --- what readers see ----------------------------------------------------------------------------


def test_show_prints_the_rows_of_one_rung(capsys: pytest.CaptureFixture[str]) -> None:
    parity.show("mixture of experts")
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.endswith("OK")]
    assert [row.split()[3] for row in rows] == ["GptOssForCausalLM", "DbrxForCausalLM"]
    assert {line.index("ForCausalLM") for line in rows} == {31, 29}
    assert "the rung, but(ffn='swiglu', attn_bias=False, ffn_bias=False)" in " ".join(text.split())
    assert "at zero: attn_norm.bias, ffn_norm.bias, norm.bias" in " ".join(text.split())


def test_the_table_has_a_row_for_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    parity.table()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.endswith("OK")]
    assert len(rows) == len(STORED)
    assert len({len(row) for row in rows}) == 1
    assert max(map(len, lines)) <= 100


def test_an_unknown_rung_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"No reference is stored for 'ALiBi'. Use one of \["):
        parity.show("ALiBi")


def test_the_command_says_whether_all_is_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    assert main(["parity", "rope"]) == 0
    assert "OK" in capsys.readouterr().out
    monkeypatch.setattr(positions, "rotate", None)
    monkeypatch.setattr(attention, "rotate", lambda x, cos, sin: x)
    assert main(["parity", "RoPE"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["parity", "ALiBi"]) == 2
    assert "No reference is stored" in capsys.readouterr().err


def test_reading_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    parity.check("RoPE")
    assert torch.equal(before, torch.get_rng_state())


def test_rungs_are_found_by_their_changed_fields() -> None:
    """The table of switches knows every field that the ladder moves, sizes aside."""
    sizes = {"d_ff", "n_kv_heads", "sliding_window", "context", "rope_theta", "dtype"}
    known = set(parity._switches(LADDER[-2].config))
    for before, after in pairwise(LADDER[:-1]):
        assert set(changed_fields(before.config, after.config)) <= known | sizes
