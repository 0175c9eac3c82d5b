"""Widgets that run the model again: they need a kernel, and leave a finding where there is none.

    from gptoss_lite.widgets import live
    live.chat(model, tokenizer)

Each function computes a sentence and a small table first, which the saved notebook and the page
keep, and returns a thin shell of plain ipywidgets around a class of `live_state`. What goes wrong
is said in the widget.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as ipw

from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.harmony import EFFORTS
from gptoss_lite.model import Transformer
from gptoss_lite.tokenizer import Tokenizer
from gptoss_lite.widgets.live_state import (
    Answered,
    Chat,
    Comparison,
    Experts,
    Question,
    Reading,
    Sinks,
    Turn,
    Windows,
)

REDRAW_S = 0.05  # a streaming transcript is sent at most so often
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
EDGES = {  # colors of the bar beside a turn; the role is also written
    "user": "#0072b2",
    "analysis": "#c57b00",
    "commentary": "#8a6d00",
    "final": "#008a64",
    "note": "#808080",
}
CLOSE = '<div style="line-height:1.45">'  # a widget's own lines are as high as its buttons
AS_IT_IS = -1  # the choice "all" of a layer or head, and "nobody" of an expert


class Live:
    """A live widget in a notebook; its sentence and its table everywhere else.

    Attributes:
        state: what the widget changes and reads; see `live_state`.
        controls: the ipywidgets by name.
        rows: the table, computed before anything is moved.
    """

    def __init__(
        self,
        state: Any,
        title: str,
        summary: str,
        rows: Sequence[Mapping[str, Any]],
        controls: Mapping[str, Any],
    ) -> None:
        self.state, self.controls, self.rows = state, dict(controls), rows
        self.title, self.summary = title, summary
        self.result, self.problem = ipw.HTML(), ipw.HTML()
        bar = ipw.HBox(list(self.controls.values()), layout=ipw.Layout(flex_flow="row wrap"))
        found = ipw.HTML(f"{CLOSE}{_finding(title, summary, rows)}</div>")
        self.box = ipw.VBox([found, bar, self.problem, self.result])

    def html(self) -> str:
        """Return what a page without a kernel shows."""
        found = _finding(self.title, self.summary, self.rows)
        advice = "<p>Run this chapter in a notebook to change it and let the model run again.</p>"
        return f'<div class="gl-widget" data-gl-live>{found}{advice}</div>'

    def show(self, draw: Callable[[], str]) -> None:
        """Show what `draw` returns, or say what went wrong."""
        try:
            self.result.value, self.problem.value = f"{CLOSE}{draw()}</div>", ""
        except Exception as problem:  # a widget has no other place to say it
            self.result.value, self.problem.value = "", _problem(problem)

    def __repr__(self) -> str:
        return f"{self.title}. {self.summary}"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {"text/plain": repr(self), "text/html": self.html(), WIDGET_VIEW: view}


# --- a conversation ------------------------------------------------------------------------------


class LiveChat(Live):
    """A prompt box; the reply streams while the kernel stays free for Stop."""

    state: Chat
    _reply: asyncio.Task[None] | None = None  # that is streaming, or was

    async def stream(self) -> None:
        """Ask what the controls say, and draw the reply as it comes."""
        controls = self.controls
        self._busy(True)
        try:
            reply = self.state.reply(
                controls["question"].value, controls["effort"].value, controls["temperature"].value
            )
            await self._draw(reply)
            self.problem.value = ""
        except Exception as problem:  # a widget has no other place to say it
            self.problem.value = _problem(problem)
        finally:
            self._busy(False)
            self.result.value = transcript(self.state.turns)

    async def _draw(self, reply: Iterator[int]) -> None:
        drawn = 0.0
        for _ in reply:
            if time.monotonic() - drawn > REDRAW_S:
                self.result.value, drawn = transcript(self.state.turns), time.monotonic()
            await asyncio.sleep(0.001)  # lets the kernel read a click on Stop

    def _busy(self, busy: bool) -> None:
        for name, off in (("ask", busy), ("clear", busy), ("stop", not busy)):
            self.controls[name].disabled = off

    def ask(self, button: Any = None) -> None:
        """Start the reply in the kernel's own loop, unless one is streaming."""
        if self._reply and not self._reply.done():
            return
        self._reply = asyncio.get_running_loop().create_task(self.stream())

    def stop(self, button: Any = None) -> None:
        """End the reply before its next token."""
        self.state.stop()

    def clear(self, button: Any = None) -> None:
        """Begin anew."""
        self.state.clear()
        self.result.value, self.problem.value = "", ""


def chat(
    model: Transformer,
    tokenizer: Tokenizer,
    question: str = "What is 47 + 38?",
    *,
    max_new_tokens: int = 256,
) -> LiveChat:
    """Talk to a loaded model: a prompt box with effort and temperature, and a Stop button.

    Args:
        model: any model that speaks harmony.
        tokenizer: its own.
        question: the first one; the table shows what the model answers at each effort.
        max_new_tokens: of each reply.

    Raises:
        GptOssLiteError: a tokenizer without harmony, or an empty question.
    """
    state = Chat(model, tokenizer, max_new_tokens=max_new_tokens)
    rows = state.by_effort(question)
    lengths = " / ".join(str(row["tokens of the reply"]) for row in rows)
    controls = {
        "question": ipw.Textarea(
            question,
            description="Question",
            continuous_update=False,
            layout=ipw.Layout(width="98%", height="4em"),
            **_named(),
        ),
        "effort": ipw.Dropdown(options=EFFORTS, value="medium", description="Effort", **_named()),
        "temperature": _number(ipw.BoundedFloatText, "Temperature", 0.0, 2.0, 0.0, 0.1),
        "ask": ipw.Button(description="Ask", button_style="primary"),
        "stop": ipw.Button(description="Stop", disabled=True),
        "clear": ipw.Button(description="New conversation"),
    }
    live = LiveChat(
        state,
        f"A conversation with {_name(model)}",
        f"Asked “{question}” at low, medium and high effort, it writes {lengths} tokens.",
        rows,
        controls,
    )
    for name in ("ask", "stop", "clear"):
        controls[name].on_click(getattr(live, name))
    return live


# --- one text, read twice ------------------------------------------------------------------------


def sinks(model: Transformer, tokenizer: Tokenizer, ids: Sequence[int], *, at: int = -2) -> Live:
    """Move the sinks in the real forward pass: all, those of a layer, or one head's.

    Unlike the page's view of a recording, every layer above feels the change.

    Args:
        model: a model with sinks.
        tokenizer: its own.
        ids: the text it reads.
        at: the token whose successor is shown first; negative counts from the end.

    Raises:
        ShapeError: a model without sinks, or a text too short or too long.
    """
    state = Sinks(model, tokenizer, ids)
    rows = state.sweep()
    n_layers, n_heads = len(model.blocks), model.config.n_heads
    controls = {
        "mode": ipw.Dropdown(options=Sinks.MODES, description="Sinks", **_named()),
        "shift": _number(ipw.BoundedFloatText, "Shift in nats", -6.0, 6.0, 0.0, 0.5),
        "layer": _choice("Layer", n_layers),
        "head": _choice("Head", n_heads),
        "at": _place(state, at),
    }
    live = Live(
        state,
        f"Sinks of {_name(model)} in the forward pass",
        f"On {len(ids)} tokens the loss is {state.before.loss:.3f} nats as learned and "
        f"{rows[0]['loss']} without sinks.",
        rows,
        controls,
    )

    def draw() -> str:
        place = controls["at"].value
        change = state.change(
            controls["mode"].value,
            controls["shift"].value,
            _chosen(controls["layer"]),
            _chosen(controls["head"]),
        )
        return comparison(state.compare(change, place), state.place(place))

    return _wired(live, draw)


def experts(model: Transformer, tokenizer: Tokenizer, ids: Sequence[int], *, at: int = -2) -> Live:
    """Forbid an expert, or send its tokens to another, and see what the model would say.

    Args:
        model: a model with experts.
        tokenizer: its own.
        ids: the text it reads.
        at: the token whose successor is shown first; negative counts from the end.

    Raises:
        ShapeError: a model without experts, or a text too short or too long.
    """
    state = Experts(model, tokenizer, ids)
    rows = state.sweep()
    n_experts = model.config.moe.n_experts if model.config.moe else 0
    controls = {
        "layer": _number(ipw.BoundedIntText, "Layer", 0, len(model.blocks) - 1, 0, 1),
        "expert": _number(
            ipw.BoundedIntText, "Forbid expert", 0, n_experts - 1, state.busiest(0), 1
        ),
        "instead": _choice("Its tokens go to", n_experts, "the next best"),
        "at": _place(state, at),
    }
    worst = max(rows, key=lambda row: float(row["loss"]))
    live = Live(
        state,
        f"Experts of {_name(model)}, forbidden or replaced",
        f"On {len(ids)} tokens the loss is {state.before.loss:.3f} nats, and {worst['loss']} "
        f"without expert {worst['forbidden expert']} of layer {worst['layer']}.",
        rows,
        controls,
    )

    def draw() -> str:
        layer, expert, place = (controls[name].value for name in ("layer", "expert", "at"))
        works = f"Expert {expert} of layer {layer} works for {state.works_for(layer, expert)}"
        change = state.change(layer, expert, _chosen(controls["instead"]))
        found = comparison(state.compare(change, place), state.place(place))
        return f"<p>{works} of the {len(ids)} tokens.</p>{found}"

    return _wired(live, draw)


def windows(model: Transformer, tokenizer: Tokenizer, questions: Sequence[tuple[str, str]]) -> Live:
    """Widen or narrow the sliding layers, and see which questions are still answered.

    Args:
        model: a model with sliding layers.
        tokenizer: its own.
        questions: (question, answer) pairs, asked at low effort.

    Raises:
        ShapeError: a model without sliding layers, or no questions.
    """
    state = Windows(model, tokenizer, questions)
    rows = state.sweep()
    trained = state.window or 1
    controls = {
        "window": _number(ipw.BoundedIntText, "Window in keys", 1, 4 * trained, trained, 1),
        "all": ipw.Checkbox(description="All keys", indent=False),
    }
    live = Live(
        state,
        f"Sliding windows of {_name(model)} in the forward pass",
        f"With the window it was trained with, {trained} keys, it answers "
        f"{sum(state.ask(trained).right)} of {len(questions)} questions.",
        rows,
        controls,
    )

    def draw() -> str:
        window = None if controls["all"].value else controls["window"].value
        return answers(state.ask(window), state.questions)

    return _wired(live, draw)


# --- drawing: numbers and text in, HTML out ------------------------------------------------------


def transcript(turns: Sequence[Turn]) -> str:
    """Return a conversation as HTML; what was said is text, whatever is in it."""
    return "".join(
        f'<div style="border-left:4px solid {EDGES.get(turn.role, EDGES["note"])};'
        'margin:6px 0;padding:0 10px;line-height:1.45">'
        f'<b style="font-size:smaller">{_text(turn.role)}</b><br>'
        f'<span dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">'
        f"{_text(turn.text)}</span></div>"
        for turn in turns
    )


def comparison(found: Comparison, place: str) -> str:
    """Return both passes as HTML: loss, sink mass, and the candidates for the next token."""
    before, after = found.before, found.after
    rows = [["loss, nats a token", f"{before.loss:.3f}", f"{after.loss:.3f}"]]
    if before.sink_mass is not None and after.sink_mass is not None:
        masses = [f"{mass.mean().item():.1%}" for mass in (before.sink_mass, after.sink_mass)]
        rows.append(["mean sink mass", *masses])
    for token in found.next:
        name = f"<code>{_text(repr(token.token)[1:-1])}</code>{' ← the text' * token.is_next}"
        rows.append([name, _bar(token.before), _bar(token.after)])
    head = f'<p>Next after <code dir="auto">{_text(repr(place)[1:-1])}</code></p>'
    return head + _table(["", "as it is", "changed"], rows)


def answers(found: Answered, questions: Sequence[Question]) -> str:
    """Return as HTML which questions were answered."""
    rows = [
        [_text(question.text), _text(question.answer), "right" if right else "<b>wrong</b>"]
        for question, right in zip(questions, found.right, strict=True)
    ]
    share = f"{sum(found.right)} of {len(found.right)} right"
    table = _table(["question", "answer", "reply"], rows)
    return f"<p><b>{share}</b>, {found.loss:.3f} nats a token of the answers.</p>{table}"


def _finding(title: str, summary: str, rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[_text(str(value)) for value in row.values()] for row in rows]
    return f"<p><b>{_text(title)}</b>. {_text(summary)}</p>{_table(list(rows[0]), cells)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are HTML already."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{value}</td>' for value in row)}</tr>" for row in rows)
    style = "border-collapse:separate;border-spacing:14px 1px;margin-left:-14px;text-align:left"
    return f'<table style="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _bar(p: float) -> str:
    fill = f"linear-gradient(#0a7cc4 0 0) 0/{100 * p:.0f}% 100% no-repeat"
    style = f"display:inline-block;width:60px;height:.7em;margin-right:8px;background:{fill}"
    return f'<span aria-hidden="true" style="{style}"></span>{p:.1%}'


def _problem(problem: Exception) -> str:
    kind = "" if isinstance(problem, GptOssLiteError) else f"{type(problem).__name__}: "
    return f'<p role="alert"><b>Not done.</b> {_text(kind + str(problem))}</p>'


def _text(text: str) -> str:
    # half of a surrogate pair cannot be sent to a browser
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


# --- controls ------------------------------------------------------------------------------------


def _wired(live: Live, draw: Callable[[], str]) -> Live:
    """Draw now, and again whenever a control is moved."""
    for control in live.controls.values():
        control.observe(lambda change: live.show(draw), "value")
    live.show(draw)
    return live


def _named() -> dict[str, Any]:
    return {"style": {"description_width": "initial"}}


def _number(kind: Any, name: str, low: float, high: float, value: float, step: float) -> Any:
    # a field, not a slider: those of ipywidgets have no name for a screen reader
    bounds = {"min": low, "max": high, "step": step, "value": value}
    return kind(description=f"{name} ({low:g} to {high:g})", **bounds, **_named())


def _choice(name: str, size: int, nothing: str = "all") -> Any:
    options = [(nothing, AS_IT_IS), *((str(i), i) for i in range(size))]
    return ipw.Dropdown(options=options, value=AS_IT_IS, description=name, **_named())


def _chosen(control: Any) -> int | None:
    return None if control.value == AS_IT_IS else control.value


def _place(state: Reading, at: int) -> Any:
    last = len(state.ids) - 1
    return _number(ipw.BoundedIntText, "Next token after", 0, last, at % len(state.ids), 1)


def _name(model: Transformer) -> str:
    return model.source.name if model.source else "random weights"
