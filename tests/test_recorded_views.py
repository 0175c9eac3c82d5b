"""The logit lens, the cache of experts, and the conversations that come with the package."""

import dataclasses
import hashlib
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from traitlets import TraitError

from gptoss_lite import Transformer, account, load, load_tokenizer, record, trace, viz
from gptoss_lite import offload as cache
from gptoss_lite.errors import CheckpointError, ConfigError, ShapeError
from gptoss_lite.hub import BUNDLED, find
from gptoss_lite.presets import PRESETS
from gptoss_lite.recording import EXAMPLES, Recording, example
from gptoss_lite.tokenizer import Tokenizer
from gptoss_lite.widgets import lens, offload, routing, sinks
from gptoss_lite.widgets.lens_view import P_ERROR
from tests import hostile, test_widgets

LONGEST = 150_000  # bytes of a stored conversation
N_TRACES = 520_000  # and of all of them, in a wheel that is meant to stay small


@pytest.fixture(scope="module")
def recording() -> Recording:
    return test_widgets.recorded(75)


@pytest.fixture(scope="module")
def nano() -> Transformer:
    return load(BUNDLED, dtype=torch.float32, progress=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED)


# --- the logit lens is recorded -----------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 75])  # around the pieces of 32
def test_the_lens_reads_the_stream_after_each_block(length: int):
    """Every number again from the residual stream, in double precision, one layer at a time."""
    model = hostile.hostile(hostile.GPT_OSS)
    ids = hostile.tokens(hostile.GPT_OSS, 1, length)
    with hostile.without_type_checks():
        run = record(model, test_widgets.TokenNames(), ids[0].tolist(), lens=True)
    with trace(model, "resid") as t, torch.no_grad():
        logits = model(ids)[0].double()
        stream = t.per_layer("resid")
        layers = [model.unembed(model.norm(x))[0].double() for x in stream]
    assert len(layers) == model.config.n_layers
    torch.testing.assert_close(layers[-1], logits)
    following = [*ids[0, 1:].tolist(), int(logits[-1].argmax())]
    final = logits.log_softmax(-1)
    for layer, scores in enumerate(layers):
        p = scores.softmax(-1)
        found = {name: run.arrays[name][layer] for name in run.arrays if name.startswith("lens_")}
        top = torch.from_numpy(found["lens_id"].astype(np.int64))
        # the ids may change places where two are equal but for rounding
        np.testing.assert_allclose(p.gather(1, top), p.topk(5).values, rtol=1e-4)
        np.testing.assert_allclose(found["lens_p"], p.topk(5).values, rtol=1e-3, atol=1e-6)
        kl = (final.exp() * (final - scores.log_softmax(-1))).sum(-1)
        np.testing.assert_allclose(found["lens_kl"], kl, rtol=1e-3, atol=1e-5)
        order = scores.argsort(-1, descending=True)
        ranks = [1 + row.tolist().index(i) for row, i in zip(order, following, strict=True)]
        np.testing.assert_array_equal(found["lens_rank"], ranks)
    assert set(run.about["lens_text"]) == {str(i) for i in np.unique(run.arrays["lens_id"])}


def test_without_asking_there_is_no_lens(recording: Recording):
    model = hostile.hostile(hostile.GPT_OSS)
    with hostile.without_type_checks():
        run = record(model, test_widgets.TokenNames(), [1, 2, 3])
        with pytest.raises(ShapeError, match="n_prompt=4 is not within this text of 3 tokens"):
            record(model, test_widgets.TokenNames(), [1, 2, 3], n_prompt=4)
    assert run.about["n_prompt"] == 0
    assert run.about["expert_bytes"] == account.expert_bytes(hostile.GPT_OSS)
    assert not any(name.startswith("lens") for name in (*run.arrays, *run.about))
    with pytest.raises(ShapeError, match=r"no \['lens_id', 'lens_p', 'lens_rank', 'lens_kl'\]"):
        lens(run)
    assert recording.about["n_prompt"] == 37


def test_the_lens_view_holds_what_was_recorded(recording: Recording):
    view = lens(recording)
    arrays, text = recording.arrays, recording.about["lens_text"]
    for layer in range(view.n_layers):
        for token in range(75):
            found = view.top(layer, token)
            ids = arrays["lens_id"][layer, token]
            assert [piece for piece, _ in found] == [text[str(i)] for i in ids]
            stored = arrays["lens_p"][layer, token].astype(float)
            assert np.abs(stored - [p for _, p in found]).max() <= P_ERROR
    np.testing.assert_array_equal(view.ranks(), arrays["lens_rank"])
    np.testing.assert_array_equal(view.nats(), arrays["lens_kl"])


def test_the_lens_finding_is_computed(recording: Recording):
    view, arrays = lens(recording), recording.arrays
    names = (arrays["lens_id"][..., 0] == arrays["lens_id"][-1, :, 0]).mean(-1)
    first = (arrays["lens_rank"][-1] == 1).mean()
    assert view.summary == (
        f"Over 75 tokens layer 0 already names the last layer's first choice at {names[0]:.0%}, "
        f"layer 2 at {names[2]:.0%}. On average layer 0 is {arrays['lens_kl'][0].mean():.1f} nats "
        f"from the last layer's probabilities. The text goes on with the first choice of the last "
        f"layer at {first:.0%}."
    )
    assert [row["after layer"] for row in view.table()] == [0, 1, 2, 3]
    assert view.table()[3]["names the last layer's choice"] == "100%"
    assert view.table()[3]["nats from the last layer"] == "0.00"
    assert view.table()[1]["nats from the last layer"] == f"{arrays['lens_kl'][1].mean():.2f}"
    assert view.table()[1]["median rank of the next token"] == (
        f"{np.median(arrays['lens_rank'][1]):,.0f}"
    )


def test_the_lens_starts_where_a_token_settles_last(recording: Recording):
    ranks = np.array([[1, 1, 5, 9, 1], [1, 3, 1, 9, 1], [1, 1, 1, 2, 1]], dtype=np.uint32)
    arrays = {
        "lens_rank": ranks,
        "lens_id": np.zeros((3, 5, 2), np.uint32),
        "lens_p": np.full((3, 5, 2), 0.5, np.float16),
        "lens_kl": np.zeros((3, 5), np.float32),
    }
    about = {**recording.about, "tokens": list("abcde"), "lens_text": {"0": "x"}}
    view = lens(Recording(arrays, about))
    assert (view.layer, view.token) == (2, 1)  # token 3 never settles
    view = lens(Recording(arrays, about), layer=0, token=4, color="kl")
    assert (view.layer, view.token, view.color) == (0, 4, "kl")
    assert view.top() == [("x", 0.5 + 0.5 / 65535)] * 2


def test_of_a_long_text_the_lens_keeps_the_end():
    recording = test_widgets.made_up(L=24, H=2, E=8, A=2, T=200)
    view = lens(recording)
    assert (view.first, len(view.tokens)) == (136, 64)
    assert view.tokens == recording.about["tokens"][136:]
    np.testing.assert_array_equal(
        view.ranks(), np.minimum(recording.arrays["lens_rank"][:, 136:], 65_535)
    )
    ids = recording.arrays["lens_id"][3, 150]
    text = [recording.about["lens_text"][str(i)] for i in ids]
    assert [piece for piece, _ in view.top(3, 150)] == text
    assert len(view.html()) < 100_000
    for token in (135, 200):
        with pytest.raises(TraitError, match=f"token={token} is not in this recording: 136 to 199"):
            view.token = token
    with pytest.raises(TraitError, match="color"):
        view.color = "entropy"


def test_chapter_14_prints_what_the_lens_holds(nano: Transformer, tokenizer: Tokenizer):
    """The chapter's static lens is an argmax over the same logits."""
    view = lens(example("add"))
    text = torch.tensor([example("add").arrays["token_ids"].tolist()])
    with trace(nano, "resid") as t, torch.no_grad():
        nano(text)
        guesses = [nano.unembed(nano.norm(x))[0].argmax(-1) for x in t.per_layer("resid")]
    for layer, guess in enumerate(guesses):
        said = [tokenizer.token(i) for i in guess.tolist()]
        assert said == [view.top(layer, token)[0][0] for token in range(len(said))]


# --- a cache of experts -------------------------------------------------------------


def simulated(ids: np.ndarray, slots: int) -> np.ndarray:
    """Count the hits [L T] of an LRU cache, step by step and without distances."""
    hits = np.zeros(ids.shape[:2], int)
    for layer, tokens in enumerate(ids.tolist()):
        held: OrderedDict[int, None] = OrderedDict()
        for t, chosen in enumerate(tokens):
            hits[layer, t] = sum(expert in held for expert in chosen)
            for expert in reversed(chosen):  # the largest weight becomes the most recent
                held[expert] = None
                held.move_to_end(expert)
            while len(held) > slots:
                held.popitem(last=False)
    return hits


@pytest.mark.parametrize(("L", "T", "E", "A"), [(1, 1, 5, 2), (3, 40, 7, 3), (2, 90, 32, 4)])
def test_distances_give_every_cache_at_once(L: int, T: int, E: int, A: int):
    draw = np.random.default_rng(3)
    popular = draw.dirichlet(np.full(E, 0.7) + 0.05, L)
    ids = np.stack([[draw.choice(E, A, False, p) for _ in range(T)] for p in popular])
    away = cache.distances(ids, E)
    first = T // 3
    rates = cache.hit_rates(away, E, first)
    for slots in range(A, E + 1):
        hits = simulated(ids, slots)
        np.testing.assert_array_equal((away < slots).sum(-1), hits)
        np.testing.assert_allclose(rates[:, slots - A], hits[:, first:].mean(1) / A)
    assert (np.diff(rates) >= 0).all()  # a larger cache never hits less
    # with all slots only the first use of an expert misses
    seen = [len(np.unique(layer)) for layer in ids]
    assert ((away == E).sum((1, 2)) == seen).all()


def test_the_control_shuffles_the_answer_only():
    """Experts that come in long runs: the order is all there is, and shuffling takes it away."""
    ids = np.repeat(np.arange(16).reshape(1, 8, 2), 20, axis=1)  # 160 tokens, 8 runs
    away = cache.distances(ids, 16)
    rates, control = cache.hit_rates(away, 16), cache.shuffled_hit_rates(ids, 16)
    assert rates[0, 0] == pytest.approx(1 - 8 / 160)
    assert control[0, 0] == pytest.approx(1 / 8, abs=0.05)
    again = cache.shuffled_hit_rates(ids, 16)
    np.testing.assert_array_equal(control, again)
    # the prompt stays as it is, and only fills the cache: 7 runs of it, then one
    last = cache.shuffled_hit_rates(ids, 16, first=140)
    assert last[0, 0] == pytest.approx(1 - 1 / 20)
    # of one token there is only one order
    np.testing.assert_array_equal(
        cache.shuffled_hit_rates(ids, 16, 159), cache.hit_rates(away, 16, 159)
    )


def test_the_offload_view_counts_what_the_cache_counts(recording: Recording):
    view = offload(recording)
    ids = recording.arrays["expert_idx"]
    E, A = view.n_experts, view.n_active
    assert (view.first, view.answer, view.expert_bytes) == (
        0,
        37,
        account.expert_bytes(hostile.GPT_OSS),
    )
    for slots in range(A, E + 1):
        view.slots = slots
        misses = A - simulated(ids, slots)
        np.testing.assert_array_equal(view.fetched(), misses)
        assert view.hit_rate() == pytest.approx(1 - misses[:, 37:].mean() / A)
        moved = misses[:, 37:].sum(0).mean() * view.expert_bytes
        assert view.moved_bytes() == pytest.approx(moved)
        assert view.held_bytes() == slots * view.n_layers * view.expert_bytes
        for link, speed in (("nvme", 3e9), ("pcie3", 16e9), ("pcie4", 32e9)):
            view.link = link
            limit = speed / moved if moved else float("inf")
            assert view.tokens_per_s() == pytest.approx(limit)


def test_the_offload_finding_is_computed(recording: Recording):
    view = offload(recording)
    assert view.slots == view.n_active == 3
    text = (
        f"With 3 of 5 experts a layer in fast memory, {view.hit_rate():.0%} of the lookups of the "
        f"38 tokens of the answer find theirs, and {view.shuffled[0]:.0%} with those tokens in "
        f"another order. The rest is {view.moved_bytes():,.0f} bytes a token, at most "
        f"{view.tokens_per_s():,.0f} tokens/s over PCIe 3.0 x16, 16 GB/s."
    )
    assert view.summary == text
    fetched = view.fetched()
    assert fetched[:, view.token].sum() == fetched[:, 37:].sum(0).max()
    assert fetched[view.layer, 37:].sum() == fetched[:, 37:].sum(1).max()
    view.slots = 4
    rows = {(row["routing of"], row["slots"]): row for row in view.table()}
    mine = rows["random weights", 4]
    assert mine["hit rate"] == f"{view.hit_rate():.0%}"
    assert mine["bytes a token"] == f"{view.moved_bytes():,.0f}"
    assert mine["tokens/s, NVMe, 3 GB/s"] == f"{3e9 / view.moved_bytes():,.0f}"
    assert mine["bytes held"] == f"{view.held_bytes():,}"


def test_the_published_rates_stand_beside_with_the_published_sizes(recording: Recording):
    rows = {row["slots"]: row for row in offload(recording).table() if "20b" in row["routing of"]}
    assert account.expert_bytes(PRESETS["gpt-oss-20b"]) == 2_880 * 2_880 * 3 * 17 // 32 + 17_280
    assert list(rows) == [4, 8, 12, 16, 20, 24]
    # 24 layers x 4 lookups x 36 % x 13,236,480 bytes
    assert rows[8]["bytes a token"] == "457,452,749"
    assert (rows[8]["hit rate"], rows[8]["shuffled"]) == ("64%", "51%")
    assert (rows[8]["tokens/s, PCIe 3.0 x16, 16 GB/s"], rows[12]["shuffled"]) == ("35", "-")
    with pytest.raises(ConfigError, match="no experts"):
        account.expert_bytes(PRESETS["gpt2"])


def test_offload_s_settings_are_checked(recording: Recording):
    view = offload(recording, slots=5, link="nvme", layer=2, token=3)
    assert (view.slots, view.link, view.layer, view.token) == (5, "nvme", 2, 3)
    with pytest.raises(TraitError, match="slots=2 is not in this recording: 3 to 5"):
        view.slots = 2
    with pytest.raises(TraitError, match="link"):
        view.link = "usb"
    about = {name: value for name, value in recording.about.items() if name != "expert_bytes"}
    with pytest.raises(ShapeError, match="does not say how large an expert is"):
        offload(Recording(recording.arrays, about))
    whole = {**recording.about, "n_prompt": 75}  # nothing was answered: the whole text counts
    assert offload(Recording(recording.arrays, whole)).answer == 0


def test_a_large_recording_is_thinned_and_says_so():
    recording = test_widgets.made_up(L=36, H=1, E=128, A=4, T=700)
    view = offload(recording)
    assert view.first == 700 - len(view.tokens) > 0
    assert len(view.html()) < 110_000
    # what came before the tokens that are kept has filled the cache
    away = cache.distances(recording.arrays["expert_idx"], 128)
    np.testing.assert_array_equal(view.distances(), away[:, view.first :])
    with pytest.raises(TraitError, match=f"token=0 is not in this recording: {view.first} to 699"):
        view.token = 0


@pytest.mark.parametrize(
    ("n_prompt", "counted"),
    [
        (700, "the 100 tokens of the answer"),
        (500, "the 300 tokens of the answer"),
        (100, "the last 512 tokens of the answer"),
        (0, "the last 512 tokens"),
        (800, "the last 512 tokens"),
    ],
)
def test_of_a_long_prompt_the_answer_counts(n_prompt: int, counted: str):
    recording = test_widgets.made_up(L=24, H=2, E=32, A=4, T=800)
    recording.about["n_prompt"] = n_prompt
    view = offload(recording)
    assert view.first == 288
    start = 800 - int(counted.split(" token")[0].split()[-1])
    assert view.answer == start
    away = cache.distances(recording.arrays["expert_idx"], 32)
    assert view.hit_rate() == pytest.approx((away[:, start:] < view.slots).mean())
    assert f"of the lookups of {counted} find theirs" in view.summary


def test_the_finding_is_of_the_chosen_slots(recording: Recording):
    view = offload(recording, slots=4, link="nvme")
    assert view.summary.startswith("With 4 of 5 experts a layer in fast memory, ")
    assert f"at most {view.tokens_per_s():,.0f} tokens/s over NVMe" in view.summary
    assert view.fetched()[:, view.token].sum() == view.counted().sum(0).max()


def test_static_figures_show_the_same(recording: Recording):
    view = lens(recording, token=20, layer=1)
    ax = view.figure()
    np.testing.assert_allclose(
        np.asarray(ax.images[0].get_array()),
        recording.arrays["lens_p"][:, 14:26, 0].astype(float),
    )
    bold = [text.get_fontweight() == "bold" for text in ax.texts]
    assert bold == (recording.arrays["lens_rank"][:, 14:26] == 1).ravel().tolist()
    ax.figure.draw_without_rendering()
    assert viz.lens(recording, n=500).images[0].get_array().shape[1] == 75
    ax = offload(recording).figure()
    rates = cache.hit_rates(offload(recording).distances(), 5, 37)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(lines["random weights"], rates.mean(0))
    np.testing.assert_allclose(
        lines["its tokens shuffled"], offload(recording).shuffled, atol=5.1e-5
    )
    assert "gpt-oss-20b, published" not in lines  # another number of experts
    assert "gpt-oss-20b, published" in offload().figure().get_legend_handles_labels()[1]
    plt.close("all")


FIGURES = {
    "expert_load": viz.expert_load,
    "lens": viz.lens,
    "offload": viz.offload,
    "routing": lambda run: viz.routing(run, 0),
    "sink_by_head": viz.sink_by_head,
    "sink_by_position": viz.sink_by_position,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_trace_is_no_recording(name: str):
    before = plt.get_fignums()
    seen = trace(hostile.hostile(hostile.GPT_OSS))
    with hostile.without_type_checks(), pytest.raises(ShapeError) as caught:
        FIGURES[name](seen)
    assert str(caught.value) == (
        "This figure draws a recording, got a trace. Make one with "
        "gptoss_lite.record(model, tokenizer, ids)."
    )
    assert plt.get_fignums() == before


def test_a_figure_names_what_a_recording_lacks(recording: Recording):
    bare = dataclasses.replace(recording, arrays={})
    for draw in FIGURES.values():
        with pytest.raises(ShapeError, match="This recording has no '"):
            draw(bare)
    with pytest.raises(ShapeError, match=re.escape("record(model, tokenizer, ids, lens=True).")):
        viz.lens(bare)


# --- the stored conversations -------------------------------------------------------


def test_examples_are_the_default_of_every_view():
    for make in (lens, offload, sinks, routing):
        assert make().html() == make(example("add")).html()
        assert make().title.endswith("of gpt-oss-nano, recorded")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_belongs_to_the_weights_and_comes_out_again(
    nano: Transformer, tokenizer: Tokenizer, name: str
):
    stored = example(name)
    weights = (find(BUNDLED) / "model.safetensors").read_bytes()
    assert stored.about["weights_sha256"] == hashlib.sha256(weights).hexdigest(), (
        "The weights have changed: run tools/make_traces.py."
    )
    ids, n_prompt = stored.arrays["token_ids"].tolist(), stored.about["n_prompt"]
    assert ids[:n_prompt] == tokenizer.render(
        stored.about["messages"], effort=stored.about["effort"]
    )
    assert ids[-1] in tokenizer.stop_ids
    # the answer is greedy: each of its tokens was the last layer's first choice
    assert (stored.arrays["lens_rank"][-1, n_prompt - 1 :] == 1).all()
    again = record(nano, tokenizer, ids, n_prompt=n_prompt, lens=True)
    for key in ("tokens", "window", "expert_bytes", "n_experts", "model", "n_prompt"):
        assert again.about[key] == stored.about[key]
    for key, array in stored.arrays.items():
        found = again.arrays[key]
        assert found.shape == array.shape
        if array.dtype.kind in "iu":
            # which of two nearly equal numbers is larger may depend on the machine
            assert (found != array).mean() <= 0.002, key
        else:
            # half precision for weights and probabilities, rounding for the rest
            np.testing.assert_allclose(found, array, atol=2e-3, rtol=1e-3, err_msg=key)


def test_the_long_example_goes_far_beyond_the_window():
    stored = example("long")
    assert len(stored.about["messages"]) == 5
    assert stored.about["n_prompt"] > 4 * stored.about["window"][0]
    assert len(stored.about["tokens"]) > 6 * stored.about["window"][0]


def test_examples_are_small_and_told_by_name():
    folder = Path(__file__).parents[1] / "gptoss_lite" / "data" / "traces"
    sizes = {path.stem: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == set(EXAMPLES)
    assert max(sizes.values()) <= LONGEST
    assert sum(sizes.values()) <= N_TRACES
    with pytest.raises(CheckpointError, match=r"No conversation 'sub' is stored. Stored: \['add'"):
        example("sub")


def test_what_is_left_out_follows_from_the_rest(recording: Recording, tmp_path: Path):
    lean = recording.lean()
    assert set(recording.arrays) - set(lean.arrays) == {"router_logits", "sink_mass"}
    path = dataclasses.replace(lean).save(tmp_path / "lean.safetensors")
    again = Recording.load(path).arrays
    np.testing.assert_allclose(again["expert_w"], recording.arrays["expert_w"], atol=2.5e-4)
    stored = example("recall").arrays
    margin = stored["sink"][..., None] - stored["lse"]
    np.testing.assert_allclose(stored["sink_mass"], 1 / (1 + np.exp(-margin)), atol=1e-6)
