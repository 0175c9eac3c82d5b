"""Page widgets: what is saved is stable, safe, small and true, with and without a kernel."""

import dataclasses
import json
import re
import warnings
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from traitlets import TraitError

from gptoss_lite import account
from gptoss_lite.anatomy import PARTS, anatomy, changed_parts, compare_parts
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ConfigError, ShapeError
from gptoss_lite.ladder import LADDER, changed_fields
from gptoss_lite.presets import PRESETS
from gptoss_lite.recording import Recording, record
from gptoss_lite.viz.block import HEIGHT, WIDTH, block_pair, places
from gptoss_lite.viz.block import block as draw_block
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
from gptoss_lite.widgets.page import ASSETS, from_bytes, module_source, to_bytes
from gptoss_lite.widgets.routing_view import WEIGHT_ERROR
from tests import hostile

HOSTILE = [
    "<script>alert(1)</script>",
    "\u202eevil",
    "😀",
    "\n",
    "\"'>",
    "\ud800",
    "=1+1",
    "</div>",
]
QWEN = "Qwen3-30B-A3B"
RECORDED = {"sinks": sinks, "routing": routing, "lens": lens, "offload": offload}
VIEWS = {  # the last of a config or of numbers, not of a recording
    **RECORDED,
    "block": lambda recording: block(step=7),
    "fit": lambda recording: fit(),
    "mask": lambda recording: mask(),
    "mxfp4": lambda recording: mxfp4(),
    "rope": lambda recording: rope(),
}
FIRST = {  # sliders; of a recording "Layer"
    "block": "Step",
    "fit": "Memory",
    "mask": "Query",
    "mxfp4": "Weight",
    "rope": "Pair",
}


class TokenNames:
    """Stands for a tokenizer: every token is one that could break out of a page."""

    def token(self, i: int) -> str:
        return HOSTILE[i % len(HOSTILE)] + str(i)


def recorded(length: int = 33) -> Recording:
    """Record random weights whose sizes all differ; the window is 7."""
    model = hostile.hostile(hostile.GPT_OSS)
    ids = hostile.tokens(hostile.GPT_OSS, 1, length)[0].tolist()
    with hostile.without_type_checks():
        return record(model, TokenNames(), ids, n_prompt=length // 2, lens=True)


def made_up(L: int, H: int, E: int, A: int, T: int, spread: float = 2.0) -> Recording:
    """Make a recording of any size up, without a model."""
    draw = np.random.default_rng(0)
    sink = draw.normal(0, spread, (L, H)).astype(np.float32)
    lse = draw.normal(1, spread, (L, H, T)).astype(np.float32)
    logits = draw.normal(0, 1, (L, T, E)) + draw.normal(0, 1, (L, 1, E))
    ids = np.argsort(-logits, -1)[..., :A]
    chosen = np.exp(np.take_along_axis(logits, ids, -1))
    p = draw.dirichlet(np.ones(9), (L, T))
    arrays = {
        "lens_id": np.argsort(-p, -1)[..., :5].astype(np.uint32),
        "lens_p": -np.sort(-p, -1)[..., :5].astype(np.float16),
        "lens_rank": draw.integers(1, 200_000, (L, T)).astype(np.uint32),
        "lens_kl": draw.exponential(3, (L, T)).astype(np.float32),
        "sink": sink,
        "lse": lse,
        "sink_mass": 1 / (1 + np.exp(lse - sink[..., None])),
        "expert_idx": ids.astype(np.uint8),
        "expert_w": (chosen / chosen.sum(-1, keepdims=True)).astype(np.float32),
    }
    about = {
        "model": "made up",
        "synthetic": True,
        "n_experts": E,
        "window": [None if layer % 2 else 128 for layer in range(L)],
        "tokens": [f" token{i}" for i in range(T)],
        "lens_text": {str(i): HOSTILE[i % len(HOSTILE)] for i in range(9)},
        "expert_bytes": 13_236_480,
    }
    return Recording(arrays, about)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return recorded()


@pytest.fixture(params=sorted(VIEWS))
def view(request: pytest.FixtureRequest, recording: Recording) -> PageWidget:
    return VIEWS[request.param](recording)


@pytest.fixture(params=sorted(RECORDED))
def recorded_view(request: pytest.FixtureRequest, recording: Recording) -> PageWidget:
    return RECORDED[request.param](recording)


class Reader(HTMLParser):
    """Read a page as a browser does: elements, the widget's attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.widget: dict[str, str | None] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if "data-gl-widget" in dict(attrs):
            self.widget = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def state(self) -> dict[str, Any]:
        return json.loads(self.widget["data-gl-state"] or "")


# --- what is saved ------------------------------------------------------------------


def test_saved_form_is_the_same_in_each_run(view: PageWidget):
    again = VIEWS[view.view](recorded())
    assert again.html() == view.html()
    assert again.model_id != view.model_id
    assert view.model_id not in view.html()
    assert not re.search(r"0x[0-9a-f]{6,}|20\d\d-\d\d", view.html())


def test_saved_form_holds_state_sentence_and_table(view: PageWidget):
    read = Reader(view.html())
    assert read.widget["class"] == "gl-widget"
    assert read.widget["data-gl-widget"] == view.view
    state = read.state()
    assert list(state) == sorted(state)
    if view.view in RECORDED:
        assert state["tokens"] == view.tokens
    assert view.describe() in read.text
    assert read.tags["table"] == 1
    assert read.tags["tr"] == 1 + min(view.rows_shown, len(view.table()))
    for name, value in view.table()[0].items():
        assert name in read.text
        assert str(value) in read.text


def test_saved_form_has_nothing_but_text_and_a_table(view: PageWidget):
    read = Reader(view.html())
    assert set(read.tags) == {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert read.tags["div"] == 1
    assert "\n" not in view.html()
    assert view.html().isascii()


def test_names_of_models_are_escaped(recording: Recording):
    bad = "<img src=x onerror=alert(1)>"
    renamed = Recording(recording.arrays, {**recording.about, "model": bad})
    rung = dataclasses.replace(LADDER[0], name=bad, paper=bad)
    views = [make(renamed) for make in RECORDED.values()]
    for view in (*views, block([rung, LADDER[1]])):
        read = Reader(view.html())
        assert read.tags["img"] == 0
        assert "<img" in read.text


def test_bundle_has_view_text_and_html(view: PageWidget):
    data, _ = view._repr_mimebundle_()
    assert data["text/html"] == view.html()
    assert data["text/plain"] == repr(view) == view.describe()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "\n" not in data["text/plain"]
    # ipywidgets 7 displays by this method, without the HTML
    assert view._ipython_display_ is None


def test_title_says_where_the_data_come_from(recording: Recording):
    bundled = Recording(
        recording.arrays, {**recording.about, "model": "gpt-oss-nano", "synthetic": False}
    )
    for make in RECORDED.values():
        assert make(recording).title.endswith(" of random weights, synthetic")
        assert make(bundled).title.endswith(" of gpt-oss-nano, recorded")


def test_one_file_holds_everything(view: PageWidget, tmp_path: Path):
    path = view.save(tmp_path / "view.html")
    page = path.read_text(encoding="utf-8")
    name_of_svg = "http://www.w3.org/2000/svg"  # looks like an address, and is none
    assert not re.search(r"https?:|//www|<link|@import| src=|url\(", page.replace(name_of_svg, ""))
    assert page.count("<script>") == page.count("</script>") == 1
    assert "default-src 'none'" in page
    assert json.dumps((ASSETS / f"{view.view}.js").read_text())[1:-1] in page
    read = Reader(page)
    assert read.state() == json.loads(json.dumps(view.state()))
    assert view.describe() in read.text
    assert view.save(str(tmp_path / "again.html")).read_text() == page


def test_every_view_has_a_static_figure(view: PageWidget):
    ax = view.figure()
    assert isinstance(ax, Axes)
    ax.figure.draw_without_rendering()
    assert ax.has_data() or len(ax.texts) > 5
    own = plt.subplots()[1]
    assert view.figure(own) is own
    plt.close("all")


def test_static_figures_follow_the_selection(recording: Recording):
    texts = {t.get_text() for t in block(step=8).figure().texts}
    assert "mask *" in texts
    pair = block(beside=QWEN).figure()
    assert [ax.get_title() for ax in pair.figure.axes] == ["gpt-oss-20b", QWEN]
    own = plt.subplots()[1]
    assert block(beside=QWEN).figure(own).child_axes[0].get_title() == QWEN
    assert fit(memory=24, unit="GiB").figure().lines[0].get_xdata()[0] == 24 * 2**30 / 1e9
    assert mask(query=9, window=4).figure().get_title() == "query 9 sees 4 keys"
    assert mask(query=100_000, pattern="F").figure().get_title() == "query 255 sees 256 keys"
    assert "YaRN" in rope().figure().get_legend_handles_labels()[1]
    assert rope(factor=1.0).figure().get_legend_handles_labels()[1] == ["RoPE"]
    assert routing(recording, layer=2).figure().get_ylabel() == "expert of layer 2"
    assert sinks(recording).figure().get_xlabel() == "query head"
    plt.close("all")


def test_live_module_is_whole(view: PageWidget):
    source = view._esm
    assert source == module_source(view.view)
    for part in ("const CSS = ", "function start(", "export default { render };"):
        assert source.count(part) == 1


def test_selection_is_saved(recording: Recording):
    state = Reader(sinks(recording, layer=1, head=4, shift=-2, sinks_on=False).html()).state()
    assert (state["layer"], state["head"], state["shift"], state["sinks_on"]) == (1, 4, -2, False)
    state = Reader(routing(recording, expert=3, token=5, color="kept").html()).state()
    assert (state["expert"], state["token"], state["color"]) == (3, 5, "kept")


# --- the numbers --------------------------------------------------------------------


def test_bytes_are_little_endian():
    assert to_bytes(np.array([[1, 258]]), "u2") == b"\x01\x00\x02\x01"
    assert from_bytes(b"\x01\x00\x02\x01", "u2", 2, 1).tolist() == [[1], [258]]


def test_a_recordings_masses_follow_from_its_lse(recording: Recording):
    arrays = recording.arrays
    lse, sink = arrays["lse"].astype(np.float64), arrays["sink"][..., None]
    computed = 1 / (1 + np.exp(lse - sink))
    assert np.abs(computed - arrays["sink_mass"]).max() <= 1e-6


@pytest.mark.parametrize(("T", "bits"), [(40, 16), (700, 8)])
@pytest.mark.parametrize("spread", [0.01, 2.0, 12.0])
def test_masses_stay_within_the_stated_error(T: int, bits: int, spread: float):
    recording = made_up(L=3, H=37, E=6, A=2, T=T, spread=spread)
    view = sinks(recording)
    assert view.bits == bits
    assert view.error < (0.03 if bits == 8 else 0.0003)
    assert np.abs(view.mass() - recording.arrays["sink_mass"]).max() <= view.error


def test_shifted_masses_stay_within_the_stated_error(recording: Recording):
    view = sinks(recording)
    lse, sink = recording.arrays["lse"], recording.arrays["sink"][..., None]
    for shift in (-6.0, -1.5, 6.0):
        view.shift = shift
        exact = 1 / (1 + np.exp(lse - sink - shift))
        assert np.abs(view.mass() - exact).max() <= view.error
    view.sinks_on = False
    assert not view.mass().any()


def test_a_silenced_head_is_drawn(recording: Recording):
    arrays = dict(recording.arrays)
    arrays["lse"], arrays["sink_mass"] = arrays["lse"].copy(), arrays["sink_mass"].copy()
    arrays["lse"][0, 0], arrays["sink_mass"][0, 0] = -np.inf, 1  # what logit(1) leaves
    arrays["lse"][0, 1], arrays["sink_mass"][0, 1] = np.inf, 0
    view = sinks(Recording(arrays, recording.about))
    assert np.abs(view.mass() - arrays["sink_mass"]).max() <= view.error
    assert (view.layer, view.head) == (0, 0)


def test_choices_stay_within_the_stated_error(recording: Recording):
    ids, weights = routing(recording).choices()
    assert (ids == recording.arrays["expert_idx"]).all()
    assert np.abs(weights - recording.arrays["expert_w"]).max() <= WEIGHT_ERROR + 1e-7


def test_sink_finding_is_computed(recording: Recording):
    view, mass = sinks(recording), recording.arrays["sink_mass"].mean(-1)
    layer, head = np.unravel_index(mass.argmax(), mass.shape)
    assert f"sinks take {mass.mean():.0%} of" in view.summary
    assert f"layer {layer} head {head}: {mass.max():.0%}" in view.summary
    assert (view.layer, view.head, view.token) == (layer, head, mass.shape[-1] and 32)
    assert len(view.table()) == mass.size
    assert view.table()[0]["mean sink mass"] == f"{mass.max():.0%}"
    assert {row["attention"] for row in view.table()} == {"sliding, 7 keys", "full"}


def test_routing_finding_is_computed():
    ids = np.array([[[0, 1], [0, 2], [3, 0]]], np.uint8)  # 1 layer, 3 tokens, 2 of 5 experts
    arrays = {"expert_idx": ids, "expert_w": np.full(ids.shape, 0.5, np.float32)}
    about = {"model": "m", "synthetic": True, "n_experts": 5, "tokens": ["a", "b", "c"]}
    view = routing(Recording(arrays, about))
    assert view.summary == (
        "Over 3 tokens the busiest expert, 0 of layer 0, works for 100% of them, 2.5 times an even "
        "split; 1 of 5 experts never work. A token keeps 1.00 of 2 experts from the one before "
        "(0.80 by chance)."
    )
    assert view.table() == [
        {
            "layer": 0,
            "busiest expert": 0,
            "works for": "100%",
            "times an even split": "2.5",
            "never work": 1,
            "kept from the token before": "1.00",
            "mean first weight": "50%",
        }
    ]


def test_one_token_is_enough():
    for make in RECORDED.values():
        view = make(made_up(L=2, H=3, E=5, A=2, T=1))
        assert Reader(view.html()).state()["token"] == 0
        assert "1 token " in view.summary
    # of two layers the last but one is layer 0 again
    assert "at 0%. On average layer 0" in lens(made_up(L=2, H=3, E=5, A=2, T=1)).summary


# --- the block ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), *(rung.config for rung in LADDER)], ids=lambda c: c.d_model
)
def test_parts_add_up_to_the_model(config: ModelConfig):
    parts = anatomy(config)
    assert sum(part.parameters for part in parts) == account.parameters(config)
    assert [part.name for part in parts] == [name for name in PARTS if name in _names(config)]
    for part in parts:
        assert places(part, config)


def _names(config: ModelConfig) -> set[str]:
    return {part.name for part in anatomy(config)}


def test_what_each_step_changes():
    found = [changed_parts(a.config, b.config) for a, b in pairwise(LADDER)]
    assert found[:-1] == [
        ([], ["dropout"]),
        (["rotation"], ["positions"]),
        (["rotation"], []),
        (["ffn"], []),
        (["ffn"], []),
        (["ffn", "router"], []),
        (["heads"], []),
        (["mask"], []),
        (["norms"], []),
        (["router", "sinks"], []),
        (["head"], []),
        (["ffn", "files"], []),
    ]
    assert len(found[-1][0]) >= 10


def test_no_changed_field_goes_unseen():
    """What a step changes in the config is shown by a part that the step marks."""
    for before, after in pairwise(LADDER):
        changed, gone = changed_parts(before.config, after.config)
        parts = {part.name: part for part in (*anatomy(before.config), *anatomy(after.config))}
        shown = {n.split(".")[0] for name in changed + gone for n, _ in parts[name].fields}
        assert set(changed_fields(before.config, after.config)) <= shown | {"n_layers"}


def test_the_block_view_holds_each_state_once():
    view = block()
    states = [json.dumps(part) for part in view.parts]
    assert len(set(states)) == len(states)
    assert len(view.rungs) == len(view.table()) == len(LADDER)
    for rung, shown in zip(LADDER, view.rungs, strict=True):
        parts = [view.parts[i] for i in shown["parts"]]
        assert [part["name"] for part in parts] == [part.name for part in anatomy(rung.config)]
        assert sum(part["parameters"] for part in parts) == shown["parameters"]
        assert shown["parameters"] == account.parameters(rung.config)
    assert len(view.html()) < 45_000


def test_the_block_view_starts_at_what_the_step_changes():
    firsts = [block(step=i).part for i in range(len(LADDER))]
    assert firsts == [
        "heads", "dropout", "rotation", "rotation", "ffn", "ffn", "ffn", "heads", "mask", "norms",
        "sinks", "head", "files", "head",
    ]  # fmt: skip
    assert block(step=7, part="ffn").part == "ffn"
    assert (block().step, block([LADDER[3]]).step) == (1, 0)


def test_the_block_view_says_what_changes():
    view = block()
    assert view.summary == (
        "13 steps take dropout and learned positions out, bring router, sinks and rotation in, and "
        "exchange unembedding, MLP or experts, mask, heads, norms and number format of the files "
        "in place. Only a change of sizes touches residual adds and embedding. Parameters: 232,896 "
        "at the start, 20,914,757,184 at the end."
    )
    assert view.table()[10]["changes"] == (
        "moe (router_bias False) → (router_bias True), sinks False → True"
    )
    assert view.table()[1]["parts"] == "dropout (gone)"


def test_what_qwen_builds_differently():
    found = compare_parts(PRESETS["gpt-oss-20b"], PRESETS["qwen3-30b-a3b"])
    kinds = {how: {n for n, h in found.items() if h == how} for how in found.values()}
    assert kinds == {
        "differs": {"ffn", "router", "mask", "rotation", "heads", "norms", "files"},
        "sizes": {"head", "adds", "embedding"},
        "only here": {"sinks"},
    }
    back = compare_parts(PRESETS["qwen3-30b-a3b"], PRESETS["gpt-oss-20b"])
    assert back == {**found, "sinks": "only there"}
    assert compare_parts(PRESETS["gpt2"], PRESETS["gpt2"]) == {}


def test_a_part_differs_in_sizes_if_only_numbers_do():
    small = LADDER[10].config
    for changes, how in (
        ({"rope_theta": 5_000.0}, {"rotation": "sizes"}),
        ({"norm_eps": 1e-7}, {"norms": "sizes"}),
        ({"sliding_window": None, "layer_pattern": "F"}, {"mask": "differs"}),
        ({"attn_bias": not small.attn_bias}, {"heads": "differs"}),
    ):
        assert compare_parts(small, small.but(**changes)) == how


def test_the_block_view_puts_another_model_beside():
    view = block(beside=QWEN)
    assert (view.step, view.part, view.beside) == (len(LADDER) - 1, "ffn", QWEN)
    config = PRESETS["qwen3-30b-a3b"]
    other = view.others[QWEN]
    assert [view.parts[i]["name"] for i in other["parts"]] == [p.name for p in anatomy(config)]
    assert other["parameters"] == account.parameters(config)
    alone = json.dumps(block(others={}).parts, separators=(",", ":"))
    assert len(json.dumps(view.parts, separators=(",", ":"))) - len(alone) < 6_000
    assert "Only gpt-oss-20b has sinks, only Qwen3-30B-A3B nothing." in view.summary
    rows = {row["part"]: row for row in view.table()}
    assert rows["sinks"][QWEN] == "none"
    assert rows["heads"][QWEN] == "32 query heads; 4 key/value heads; q and k normed"
    assert rows["heads"]["difference"] == "differs"
    assert [row["difference"] for row in view.table()].count("sizes") == 3
    with pytest.raises(TraitError, match=r"beside='GPT-5' is unknown\. Use one of"):
        block(beside="GPT-5")


def test_the_static_pair_marks_what_differs():
    pair = [(name, PRESETS[name]) for name in ("gpt-oss-20b", "qwen3-30b-a3b")]
    axes = block_pair(pair[0], pair[1])
    found = compare_parts(pair[0][1], pair[1][1])
    for ax, (name, config) in zip(axes, pair, strict=True):
        text = [t.get_text() for t in ax.texts]
        assert ax.get_title() == name
        for part in anatomy(config):
            sign = {"sizes": " ~", "": ""}.get(found.get(part.name, ""), " *")
            assert part.title + sign in text or part.name == "adds"
    plt.close(axes[0].figure)


def test_steps_and_parts_of_the_block_are_checked():
    view = block()
    with pytest.raises(TraitError, match="step=14 is not on this ladder: 0 to 13"):
        view.step = 14
    with pytest.raises(TraitError, match="part='gate' is unknown"):
        view.part = "gate"
    with pytest.raises(ConfigError, match="at least one rung"):
        block([])


def test_boxes_stay_apart_and_inside():
    for config in (*PRESETS.values(), *(rung.config for rung in LADDER)):
        boxes = [box for part in anatomy(config) for box, _ in places(part, config)]
        for i, (x, y, width, height) in enumerate(boxes):
            assert min(x, y) >= 0
            assert x + width <= WIDTH
            assert y + height <= HEIGHT
            assert min(width, height) >= 24  # a target for fingers
            for other_x, other_y, other_width, other_height in boxes[:i]:
                apart = x >= other_x + other_width or other_x >= x + width
                assert apart or y >= other_y + other_height or other_y >= y + height


def test_the_static_block_draws_every_part():
    for config, before in ((PRESETS["gpt2"], None), (LADDER[10].config, LADDER[9].config)):
        ax = draw_block(config, before)
        text = " ".join(t.get_text() for t in ax.texts)
        for part in anatomy(config):
            assert part.title in text or part.name == "adds"
        assert text.count(" *") == (2 if before else 0)
        plt.close(ax.figure)


# --- sizes --------------------------------------------------------------------------


def test_routing_of_24_layers_and_512_tokens_fits():
    view = routing(made_up(L=24, H=1, E=32, A=4, T=512))
    assert view.first == 0
    assert len(view.html()) < 200_000


@pytest.mark.parametrize(("L", "H", "E", "T"), [(24, 64, 32, 128), (36, 64, 128, 700)])
def test_large_recordings_are_thinned_and_say_so(L: int, H: int, E: int, T: int):
    recording = made_up(L=L, H=H, E=E, A=4, T=T)
    sink_view, routing_view = sinks(recording), routing(recording)
    assert len(sink_view.html()) < 300_000
    assert len(routing_view.html()) < 200_000
    assert sink_view.stride > 1
    assert sink_view.tokens == recording.about["tokens"][:: sink_view.stride]
    kept = recording.arrays["sink_mass"][..., :: sink_view.stride]
    assert np.abs(sink_view.mass() - kept).max() <= sink_view.error
    assert routing_view.first == T - len(routing_view.tokens)
    assert routing_view.tokens == recording.about["tokens"][routing_view.first :]
    ids, _ = routing_view.choices()
    assert (ids == recording.arrays["expert_idx"][:, routing_view.first :]).all()
    assert ("Over the last " in routing_view.summary) == (routing_view.first > 0)


def test_scripts_stay_small():
    sizes = {path.name: path.stat().st_size for path in ASSETS.iterdir()}
    assert sum(sizes[f"{view}.js"] for view in VIEWS) <= 60_000
    assert sum(size for name, size in sizes.items() if name.endswith(".js")) < 84_000
    for view in VIEWS:
        assert sizes[f"{view}.js"] < 11_000


# --- traits and mistakes ------------------------------------------------------------


def test_selection_is_observed_and_checked(recorded_view: PageWidget):
    view = recorded_view
    seen: list[int] = []
    view.observe(lambda change: seen.append(change["new"]), "layer")
    view.layer = (view.layer + 1) % 4
    assert seen == [view.layer]
    third = {"sinks": "head", "routing": "expert", "lens": "layer", "offload": "slots"}
    for name, value in {"layer": 4, "token": 33, third[view.view]: 6}.items():
        with pytest.raises(TraitError, match=rf"{name}={value} is not in this recording: \d+ to "):
            setattr(view, name, value)
    before = view.html()
    view.token = 0
    assert view.html() != before


def test_shift_and_color_are_checked(recording: Recording):
    with pytest.raises(TraitError, match="shift"):
        sinks(recording, shift=7)
    with pytest.raises(TraitError, match="color"):
        routing(recording, color="rainbow")


def test_options_that_do_not_exist_are_named(view: PageWidget, recording: Recording):
    name = view.options[0]
    wrong = name[::-1]
    with pytest.raises(TypeError, match=rf"{view.view} has no option '{wrong}'. Use \['{name}', "):
        view.select(**{name: getattr(view, name), wrong: 1})
    makes = {**RECORDED, "block": block, "fit": fit, "mask": mask, "mxfp4": mxfp4, "rope": rope}
    with pytest.raises(TypeError, match="has no option 'summary'"):  # a trait, but none to choose
        makes[view.view](**{"summary": "x"})
    assert set(view.options) < set(view.state())


def test_views_of_one_text_have_one_name(recording: Recording):
    long = made_up(L=24, H=64, E=32, A=4, T=600)
    names = [{make(run).text for make in RECORDED.values()} for run in (recording, long)]
    assert [len(name) for name in names] == [1, 1]
    assert names[0] != names[1]
    other = Recording(long.arrays, {**long.about, "tokens": [*long.about["tokens"][:-1], "x"]})
    assert sinks(other).text not in names[1]  # though none of the tokens that it keeps differs


def test_a_recording_without_tokens_is_refused():
    for make in RECORDED.values():
        with pytest.raises(ShapeError, match="is empty: this recording has no tokens"):
            make(made_up(L=2, H=3, E=5, A=2, T=0))


def test_missing_and_broken_arrays_are_named(recording: Recording):
    arrays = {name: a for name, a in recording.arrays.items() if name not in ("lse", "expert_w")}
    broken = {**recording.arrays, "lse": recording.arrays["lse"] * np.nan}
    with pytest.raises(ShapeError, match=r"no \['lse'\]"):
        sinks(Recording(arrays, recording.about))
    with pytest.raises(ShapeError, match=r"no \['expert_w'\]"):
        routing(Recording(arrays, recording.about))
    with pytest.raises(ShapeError, match="lse holds NaN"):
        sinks(Recording(broken, recording.about))


def test_no_warnings(recording: Recording, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in VIEWS.values():
            make(recording).save(tmp_path / "view.html")
