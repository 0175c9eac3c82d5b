"""Live widgets: what they compute, what they show, and that nothing breaks or breaks out."""

import asyncio
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import gptoss_lite as gl
from gptoss_lite import Transformer
from gptoss_lite.errors import GptOssLiteError, ShapeError
from gptoss_lite.interventions import PLAIN, moved_sinks, windowed
from gptoss_lite.tokenizer import Tokenizer
from gptoss_lite.widgets import live
from gptoss_lite.widgets.live_state import Chat, Experts, Reading, Sinks, Turn, Windows
from tests import hostile
from tests.test_widgets import HOSTILE

FACTS = ("The owners are: cup Dan, key Max, hat Eva. Who has the key?", "Max")


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Random weights, sizes that all differ, a window of 7; it speaks nano's tokens."""
    return hostile.hostile(hostile.GPT_OSS.but(vocab_size=2_048, context=300))


@pytest.fixture(scope="module")
def nano() -> Transformer:
    return gl.load("gpt-oss-nano", dtype=torch.float32, progress=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return gl.load_tokenizer("gpt-oss-nano")


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> list[int]:
    messages = [
        {"role": "user", "content": "What is 38 + 15?"},
        {"role": "assistant", "channel": "final", "content": "53"},
    ]
    return tokenizer.render(messages, effort="low", ending="training")


def parameters(model: Transformer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(model: Transformer, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


class Tags(HTMLParser):
    """Collect the elements of a piece of HTML, their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


# --- a conversation -----------------------------------------------------------------


def test_a_reply_streams_into_turns(nano: Transformer, tokenizer: Tokenizer):
    chat = Chat(nano, tokenizer, max_new_tokens=40)
    lengths = []
    said = []
    for i in chat.reply("What is 2 + 2?", "medium"):
        said.append(i)
        lengths.append(sum(len(turn.text) for turn in chat.turns))
    assert chat.turns[0] == Turn("user", "What is 2 + 2?")
    assert lengths == sorted(lengths)
    prompt = tokenizer.render([{"role": "user", "content": "What is 2 + 2?"}], effort="medium")
    stop = tokenizer.stop_ids
    assert said == list(gl.generate(nano, prompt, max_new_tokens=40, stop=stop))
    replied = [turn for turn in chat.turns[1:] if turn.role != "note"]
    assert [t.text for t in replied] == [m["content"] for m in tokenizer.parse(said)]


def test_the_second_question_sees_the_first(nano: Transformer, tokenizer: Tokenizer):
    chat = Chat(nano, tokenizer, max_new_tokens=12)
    list(chat.reply("What is 2 + 2?", "low"))
    first = list(chat.turns)
    asked: list[Any] = []
    tokenizer_render = tokenizer.render
    tokenizer.render = lambda messages, **kw: (
        asked.extend(messages) or tokenizer_render(messages, **kw)
    )
    try:
        list(chat.reply("And 3 + 3?", "low"))
    finally:
        del tokenizer.render
    assert [m["content"] for m in asked][:2] == [turn.text for turn in first[:2]]
    assert asked[-1] == {"role": "user", "content": "And 3 + 3?"}
    chat.clear()
    assert chat.turns == []
    assert list(chat.reply("What is 2 + 2?", "low"))
    assert chat.turns == first


def test_stop_ends_before_the_next_token(model: Transformer, tokenizer: Tokenizer):
    chat = Chat(model, tokenizer)
    said = []
    for i in chat.reply("What is 47 + 38?", "low"):
        said.append(i)
        if len(said) == 5:
            chat.stop()
    assert len(said) == 5
    assert chat.turns[-1] == Turn("note", "Stopped after 5 tokens.")
    chat = Chat(model, tokenizer, max_new_tokens=6)
    list(chat.reply("What is 47 + 38?", "low"))
    assert chat.turns[-1] == Turn("note", "No room for more: stopped after 6 tokens.")


def test_temperature_draws_and_a_seed_repeats(model: Transformer, tokenizer: Tokenizer):
    def draw(seed: int, temperature: float) -> list[int]:
        chat = Chat(model, tokenizer, max_new_tokens=24, seed=seed)
        return list(chat.reply("Tell me a story.", "low", temperature))

    assert draw(1, 2.0) == draw(1, 2.0) != draw(2, 2.0)
    assert draw(1, 0.0) == draw(2, 0.0)


@pytest.mark.parametrize(
    ("question", "effort", "temperature"),
    [(" \n", "low", 0.0), ("x", "none", 0.0), ("x", "low", -1.0), ("x", "low", float("nan"))],
)
def test_a_refused_question_changes_nothing(
    model: Transformer, tokenizer: Tokenizer, question: str, effort: str, temperature: float
):
    chat = Chat(model, tokenizer, max_new_tokens=8)
    with pytest.raises(GptOssLiteError):
        chat.reply(question, effort, temperature)
    assert chat.turns == []
    with pytest.raises(GptOssLiteError, match="Shorten the prompt"):
        chat.reply("word " * model.config.context, "low")
    assert chat.turns == []


# --- one text, read twice -----------------------------------------------------------


def test_a_reading_measures_what_the_model_says(
    model: Transformer, tokenizer: Tokenizer, ids: list[int]
):
    state = Sinks(model, tokenizer, ids)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        plain = model(tokens)[0]
        with moved_sinks(model, PLAIN, layer=2, head=1):
            changed = model(tokens)[0]
    at = len(ids) - 4
    found = state.compare(state.change(Sinks.MODES[1], 3.0, 2, 1), at)
    for logits, got in ((plain, found.before), (changed, found.after)):
        assert got.loss == pytest.approx(F.cross_entropy(logits[:-1], tokens[0, 1:]).item(), 1e-4)
    probs = [logits[at].softmax(-1) for logits in (plain, changed)]
    best = probs[0].argmax().item()
    row = next(row for row in found.next if row.token == tokenizer.token(best))
    assert (row.before, row.after) == pytest.approx([p[best].item() for p in probs], abs=1e-5)
    assert [row.token for row in found.next if row.is_next] == [tokenizer.token(ids[at + 1])]
    assert found.after.sink_mass[2, 1] == 0
    assert found.before.sink_mass[2, 1] > 0


def test_modes_and_shift_do_what_they_say(model: Transformer, tokenizer: Tokenizer, ids: list[int]):
    state = Sinks(model, tokenizer, ids)
    masses = [
        state.compare(state.change(mode, shift)).after.sink_mass.mean().item()
        for mode, shift in ((Sinks.MODES[1], 6.0), ("shift", -6.0), ("shift", 0.0), ("shift", 6.0))
    ]
    assert masses[0] == 0
    assert masses == sorted(set(masses))
    assert masses[2] == state.before.sink_mass.mean().item()
    silent = state.compare(state.change(Sinks.MODES[2], 0.0)).after.sink_mass
    assert torch.equal(silent, torch.ones_like(silent))


def test_the_sweeps_agree_with_single_changes(
    model: Transformer, tokenizer: Tokenizer, ids: list[int]
):
    before = parameters(model)
    sinks = Sinks(model, tokenizer, ids)
    rows = sinks.sweep()
    assert [row["all sinks"] for row in rows] == ["off", "-6", "-2", "as learned", "+2", "+6"]
    assert rows[3]["loss"] == f"{sinks.before.loss:.3f}"
    experts = Experts(model, tokenizer, ids)
    for layer, row in enumerate(experts.sweep()):
        expert = row["forbidden expert"]
        ids_of_layer = experts.before.expert_ids[layer]
        counts = ids_of_layer.flatten().bincount()
        assert counts[expert] == counts.max() == experts.works_for(layer, expert)
        after = experts.compare(experts.change(layer, expert)).after
        assert row["loss"] == f"{after.loss:.3f}"
        assert not (after.expert_ids[layer] == expert).any()
    assert same(model, before)


def test_windows_count_right_answers(nano: Transformer, tokenizer: Tokenizer):
    state = Windows(nano, tokenizer, [FACTS, ("What is 2 + 2?", "no number")])
    found = state.ask(state.window)
    prompt = tokenizer.render([{"role": "user", "content": FACTS[0]}], effort="low")
    reply = list(gl.generate(nano, prompt, max_new_tokens=20, stop=tokenizer.stop_ids))
    says = [m["content"] for m in tokenizer.parse(reply) if m.get("channel") == "final"]
    assert found.right == [says == [FACTS[1]], False]
    with windowed(nano, 99):  # of the two the inner one counts
        narrow = state.ask(1)
    assert narrow.loss > found.loss
    assert narrow.right == [False, False]
    names = [row["window"] for row in state.sweep()]
    assert names.count(f"{state.window} keys (as trained)") == 1
    assert names[-1] == "all keys"


@pytest.mark.parametrize("n", [0, 1])
def test_a_text_must_predict_something(model: Transformer, tokenizer: Tokenizer, n: int):
    with pytest.raises(ShapeError, match=f"The text has {n} tokens"):
        Reading(model, tokenizer, [3] * n)


# --- the shells ---------------------------------------------------------------------


@pytest.fixture(params=["sinks", "experts"])
def lab(request: pytest.FixtureRequest, model: Any, tokenizer: Any, ids: list[int]) -> live.Live:
    return getattr(live, request.param)(model, tokenizer, ids, at=-4)


def test_a_cell_shows_widget_sentence_and_table(lab: live.Live):
    data = lab._repr_mimebundle_()
    assert data[live.WIDGET_VIEW]["model_id"] == lab.box.model_id
    assert data["text/plain"] == repr(lab)
    assert lab.box.model_id not in data["text/html"]
    seen = Tags(data["text/html"])
    assert lab.summary in seen.text
    for value in lab.rows[0].values():
        assert str(value) in seen.text
    assert {"table", "th", "td"} <= seen.tags


def test_controls_run_the_model_and_leave_it(lab: live.Live, model: Transformer):
    before = parameters(model)
    drawn = {lab.result.value}
    for name, control in lab.controls.items():
        old = control.value
        if hasattr(control, "options"):
            control.value = list(live_values(control))[2]
        else:
            control.value = control.min + control.step
        assert lab.problem.value == "", name
        drawn.add(lab.result.value)
        control.value = old
    assert len(drawn) >= 4
    assert same(model, before)


def live_values(control: Any) -> list[Any]:
    return [o[1] if isinstance(o, tuple) else o for o in control.options]


def test_what_goes_wrong_is_said(lab: live.Live):
    lab.show(lambda: (_ for _ in ()).throw(ShapeError("No <b>way</b>.")))
    assert "No &lt;b&gt;way&lt;/b&gt;." in lab.problem.value
    lab.show(lambda: 1 / 0)
    assert "ZeroDivisionError: division by zero" in lab.problem.value
    assert lab.result.value == ""
    lab.show(lambda: "fine")
    assert "fine" in lab.result.value
    assert lab.problem.value == ""


def test_an_expert_cannot_stand_in_for_itself(model: Any, tokenizer: Any, ids: list[int]):
    lab = live.experts(model, tokenizer, ids)
    lab.controls["instead"].value = lab.controls["expert"].value
    assert "cannot stand in for itself" in lab.problem.value
    lab.controls["instead"].value = live.AS_IT_IS
    assert lab.problem.value == ""


def test_the_window_moves(model: Transformer, tokenizer: Tokenizer):
    lab = live.windows(model, tokenizer, [FACTS])
    before, drawn = parameters(model), lab.result.value
    lab.controls["window"].value = 1
    narrow = lab.result.value
    assert live.answers(lab.state.ask(1), lab.state.questions) in narrow
    lab.controls["all"].value = True
    assert len({drawn, narrow, lab.result.value}) == 3
    assert same(model, before)


@pytest.mark.parametrize("questions", [[1, 2], ["Who?"], [("Who?",)]])
def test_questions_without_answers_are_refused(
    model: Transformer, tokenizer: Tokenizer, questions: Any
):
    with hostile.without_type_checks(), pytest.raises(ShapeError, match="pairs with their answers"):
        Windows(model, tokenizer, questions)


def test_the_chat_streams_stops_and_says_what_is_wrong(model: Transformer, tokenizer: Tokenizer):
    chat = live.chat(model, tokenizer, "What is 2 + 2?", max_new_tokens=30)
    assert [row["effort"] for row in chat.rows] == ["low", "medium", "high"]
    controls = chat.controls

    async def ask_and_stop() -> None:
        chat.ask()
        for _ in range(50):
            await asyncio.sleep(0.001)
            if len(chat.state.turns) > 1:
                break
        assert (controls["ask"].disabled, controls["stop"].disabled) == (True, False)
        controls["stop"].click()
        await chat._reply

    controls["effort"].value = "high"
    asyncio.run(ask_and_stop())
    assert (controls["ask"].disabled, controls["stop"].disabled) == (False, True)
    assert "Stopped after" in chat.result.value
    controls["question"].value = "\t"
    asyncio.run(chat.stream())
    assert "There is no question yet" in chat.problem.value
    controls["clear"].click()
    assert chat.result.value == chat.problem.value == ""


def test_a_second_question_waits_for_the_first(model: Transformer, tokenizer: Tokenizer):
    chat = live.chat(model, tokenizer, "What is 2 + 2?", max_new_tokens=12)

    async def ask_twice() -> None:
        chat.ask()
        chat.ask()  # before the first has begun
        await asyncio.sleep(0.01)
        chat.ask()  # while it streams
        assert chat._reply is not None
        await chat._reply

    asyncio.run(ask_twice())
    assert [turn.role for turn in chat.state.turns].count("user") == 1
    asyncio.run(ask_twice())
    assert [turn.role for turn in chat.state.turns].count("user") == 2


@pytest.mark.parametrize("bad", HOSTILE)
def test_what_is_typed_stays_text(model: Transformer, tokenizer: Tokenizer, bad: str):
    chat = Chat(model, tokenizer, max_new_tokens=3)
    list(chat.reply(f"{bad} 2", "low"))
    drawn = live.transcript([*chat.turns, Turn(bad, bad)])
    seen = Tags(drawn)
    assert seen.tags <= {"div", "b", "br", "span"}
    assert seen.names <= {"style", "dir"}
    assert bad.encode("utf-8", "replace").decode() in seen.text
    lab = Reading(model, tokenizer, tokenizer.encode(f"{bad}{bad} and {bad}"))
    table = live.comparison(lab.compare(moved_sinks(model, 1.0), 1), bad)
    assert Tags(table).tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td", "span"}
    shown = live._finding(bad, bad, [{bad: bad}])
    assert Tags(shown).tags <= {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    drawn.encode()


def test_models_without_the_part_are_refused(tokenizer: Tokenizer):
    with hostile.without_type_checks():
        gpt2 = hostile.hostile(hostile.GPT2)
        for make in (live.sinks, live.experts):
            with pytest.raises(ShapeError, match="This model has no"):
                make(gpt2, tokenizer, [1, 2, 3])
        with pytest.raises(ShapeError, match="No layer of this model slides"):
            live.windows(gpt2, tokenizer, [("a", "b")])
