"""What the live widgets know and compute; nothing here draws or needs a browser.

Each class holds a loaded model and one text or conversation. A change of the model lasts for one
forward pass (`gptoss_lite.interventions`), so two of these may share a model.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_lite.errors import ShapeError
from gptoss_lite.generate import generate
from gptoss_lite.interventions import PLAIN, SILENT, moved_sinks, rerouted, windowed
from gptoss_lite.model import Transformer
from gptoss_lite.tokenizer import Tokenizer
from gptoss_lite.trace import trace

TOP = 4  # next tokens shown, of each of the two passes
CONTEXT_TOKENS = 8  # shown before the place whose next token is asked for


# --- a conversation ------------------------------------------------------------------------------


class Turn(NamedTuple):
    """One message of a transcript: who says it, and its text."""

    role: str  # "user", "note", or a channel: "analysis", "commentary", "final"
    text: str


class Chat:
    """A conversation with a loaded model.

    Attributes:
        turns: the transcript; the last ones grow while a reply streams.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, max_new_tokens: int = 256, seed: int = 0
    ) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.turns: list[Turn] = []
        self._messages: list[dict[str, Any]] = []
        self._stopped = False
        self._dice = torch.Generator().manual_seed(seed)

    def clear(self) -> None:
        """Begin a new conversation."""
        self.turns, self._messages = [], []

    def stop(self) -> None:
        """End the reply that is streaming, before its next token."""
        self._stopped = True

    def reply(self, question: str, effort: str = "low", temperature: float = 0.0) -> Iterator[int]:
        """Ask a question; yield each id of the reply once `turns` holds it.

        A question that is refused leaves the conversation as it was.

        Raises:
            GptOssLiteError: an empty question, no such effort or temperature, or no room left.
        """
        if not question.strip():
            raise ShapeError("There is no question yet. Write one, then ask.")
        asked = [*self._messages, {"role": "user", "content": question}]
        ids = generate(
            self.model,
            self.tokenizer.render(asked, effort=effort),
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            stop=self.tokenizer.stop_ids,
            generator=self._dice,
        )
        self._stopped = False
        return self._stream(ids, asked)

    def _stream(self, ids: Iterator[int], asked: list[dict[str, Any]]) -> Iterator[int]:
        before = [*self.turns, Turn("user", asked[-1]["content"])]
        self.turns, self._messages = before, asked
        said: list[int] = []
        for i in ids:
            said.append(i)
            messages: list[Any] = self.tokenizer.parse(said)
            self._messages = [*asked, *messages]
            heard = [Turn(m.get("channel", "final"), m["content"]) for m in messages]
            self.turns = [*before, *heard]
            yield i
            if self._stopped:
                break
        if not said or said[-1] not in self.tokenizer.stop_ids:
            why = "Stopped" if self._stopped else "No room for more: stopped"
            self.turns = [*self.turns, Turn("note", f"{why} after {len(said)} tokens.")]

    def by_effort(self, question: str) -> list[dict[str, Any]]:
        """Ask once at each effort, greedily and outside the conversation; one row an effort."""
        rows = []
        for effort in ("low", "medium", "high"):
            aside = Chat(self.model, self.tokenizer, max_new_tokens=self.max_new_tokens)
            n_tokens = sum(1 for _ in aside.reply(question, effort))
            final = [turn.text for turn in aside.turns if turn.role == "final"]
            answer = final[-1] if final else "none"
            rows.append({"effort": effort, "tokens of the reply": n_tokens, "answer": answer})
        return rows


# --- one text, read twice ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One forward pass: what the output head reads, what it was worth, and who took part."""

    hidden: Float[Tensor, "T D"]
    loss: float  # nats a token
    sink_mass: Float[Tensor, "L H"] | None  # mean over the text
    expert_ids: list[Int[Tensor, "T A"]]  # of each layer; none in a model without experts


class Next(NamedTuple):
    """One candidate for the next token, with its probability in both passes."""

    token: str
    before: float
    after: float
    is_next: bool  # the text goes on with it


@dataclass(frozen=True)
class Comparison:
    """The same text, as the model is and with something changed."""

    before: Pass
    after: Pass
    next: list[Next]


class Reading:
    """A text that a model reads, as it is and changed.

    Args:
        model: any model; what can be changed depends on it.
        tokenizer: its own.
        ids: at least two tokens.

    Raises:
        ShapeError: fewer tokens, or more than the model reads.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        context = model.config.context
        if not 2 <= len(ids) <= context:
            raise ShapeError(
                f"The text has {len(ids)} tokens. It takes 2 to predict one, and this model reads "
                f"{context:,} at most."
            )
        self.model, self.tokenizer, self.ids = model, tokenizer, list(ids)
        self.before = self._read(nullcontext())

    @torch.no_grad()
    def _read(self, change: AbstractContextManager[None]) -> Pass:
        tokens = torch.tensor([self.ids], device=self.model.device)
        with change, trace(self.model, "sink_mass", "expert_ids") as seen:
            hidden = self.model.hidden(tokens)[0]
        loss = F.cross_entropy(self.model.unembed(hidden[:-1]).float(), tokens[0, 1:]).item()
        masses = [mass[0].mean(-1) for mass in seen.per_layer("sink_mass")]
        sink_mass = torch.stack(masses) if masses else None
        return Pass(hidden, loss, sink_mass, seen.per_layer("expert_ids"))

    def compare(self, change: AbstractContextManager[None], at: int = -1) -> Comparison:
        """Read the text again with a change, and compare what comes after token `at`.

        Raises:
            ShapeError: no such token, or what the change itself refuses.
        """
        if not -len(self.ids) <= at < len(self.ids):
            raise ShapeError(f"There is no token {at}: the text has {len(self.ids)}.")
        after = self._read(change)
        return Comparison(self.before, after, self._next(after, at % len(self.ids)))

    @torch.no_grad()
    def _next(self, after: Pass, at: int) -> list[Next]:
        both = [self.model.unembed(p.hidden[at]).float().softmax(-1) for p in (self.before, after)]
        actual = self.ids[at + 1] if at + 1 < len(self.ids) else None
        shown = {i for probs in both for i in probs.topk(min(TOP, len(probs))).indices.tolist()}
        shown |= {actual} - {None}
        first = sorted(shown, key=lambda i: -max(both[0][i].item(), both[1][i].item()))
        return [
            Next(self.tokenizer.token(i), both[0][i].item(), both[1][i].item(), i == actual)
            for i in first
        ]

    def place(self, at: int) -> str:
        """Return the text just before the place whose next token is asked for."""
        first = max(0, at + 1 - CONTEXT_TOKENS)
        return ("… " if first else "") + self.tokenizer.decode(self.ids[first : at + 1])


class Sinks(Reading):
    """A text, and what becomes of it when sinks are moved, switched off, or take everything."""

    MODES = ("shift", "off: a plain softmax", "takes all: the head is silent")

    def change(
        self, mode: str, shift: float, layer: int | None = None, head: int | None = None
    ) -> AbstractContextManager[None]:
        """Return the change that the controls describe; without layer and head it is of all."""
        by = {self.MODES[1]: PLAIN, self.MODES[2]: SILENT}.get(mode, shift)
        return moved_sinks(self.model, by, layer, head)

    def sweep(self, shifts: Sequence[float] = (PLAIN, -6, -2, 0, 2, 6)) -> list[dict[str, str]]:
        """Return loss and mean sink mass for all sinks moved, one row a shift."""
        rows = []
        for by in shifts:
            after = self.compare(moved_sinks(self.model, by)).after
            assert after.sink_mass is not None
            shift = "off" if by == PLAIN else f"{by:+g}" if by else "as learned"
            mass = f"{after.sink_mass.mean().item():.0%}"
            rows.append({"all sinks": shift, "loss": f"{after.loss:.3f}", "mean sink mass": mass})
        return rows


class Experts(Reading):
    """A text, and what becomes of it when an expert is forbidden or replaced.

    Raises:
        ShapeError: a model without experts, and as for any `Reading`.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        if model.config.moe is None:
            raise ShapeError("This model has no experts. gpt-oss has them.")
        super().__init__(model, tokenizer, ids)

    def change(
        self, layer: int, expert: int, instead: int | None = None
    ) -> AbstractContextManager[None]:
        """Return the change that the controls describe."""
        return rerouted(self.model, layer, expert, instead)

    def works_for(self, layer: int, expert: int) -> int:
        """Return how many tokens of the text an expert works for, unchanged."""
        return int((self.before.expert_ids[layer] == expert).sum())

    def busiest(self, layer: int) -> int:
        """Return the expert that works for most tokens of the text."""
        return int(self.before.expert_ids[layer].flatten().bincount().argmax())

    def sweep(self) -> list[dict[str, str | int]]:
        """Return the loss without each layer's busiest expert, one row a layer."""
        rows = []
        for layer in range(len(self.model.blocks)):
            expert = self.busiest(layer)
            after = self.compare(self.change(layer, expert)).after
            rows.append(
                {
                    "layer": layer,
                    "forbidden expert": expert,
                    "worked for": f"{self.works_for(layer, expert)} of {len(self.ids)} tokens",
                    "loss": f"{after.loss:.3f}",
                    "change": f"{round(after.loss - self.before.loss, 3) + 0:+.3f}",  # no -0
                }
            )
        return rows


# --- questions with one right reply --------------------------------------------------------------


class Question(NamedTuple):
    """What is asked, and the only right answer."""

    text: str
    answer: str


class Answered(NamedTuple):
    """How a model did on some questions: nats a token of the answers, and which were right."""

    loss: float
    right: list[bool]


class Windows:
    """Questions about facts, answered with other windows in the sliding layers.

    An answer is right if each of its tokens is the most likely one, so greedy decoding writes it.

    Raises:
        ShapeError: no questions, or other things than pairs of a question and its answer.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, questions: Sequence[tuple[str, str]]
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        try:
            self.questions = [Question(*question) for question in questions]
        except TypeError:
            raise ShapeError(
                "Questions are pairs with their answers: [('Who has the key?', 'Max')]."
            ) from None
        if not self.questions or not all(question.answer for question in self.questions):
            raise ShapeError("Give at least one question, and an answer to each.")
        self._texts = [self._render(question) for question in self.questions]
        sliding = [block.attn.window for block in model.blocks if block.attn.window is not None]
        self.window = sliding[0] if sliding else None

    def _render(self, question: Question) -> tuple[list[int], int]:
        """Return the ids of question and answer, and how many of them come before the answer."""
        asked = [{"role": "user", "content": question.text}]
        answer = {"role": "assistant", "channel": "final", "content": question.answer}
        n_answer = len(self.tokenizer.encode(question.answer)) + 1  # and the end of the turn
        ids = self.tokenizer.render([*asked, answer], effort="low", ending="training")
        return ids, len(ids) - n_answer

    @torch.no_grad()
    def ask(self, window: int | None) -> Answered:
        """Answer every question with this window; None sees everything."""
        losses, right = [], []
        with windowed(self.model, window):
            for ids, start in self._texts:
                tokens = torch.tensor([ids], device=self.model.device)
                logits = self.model.unembed(self.model.hidden(tokens)[0, start - 1 : -1]).float()
                losses.append(F.cross_entropy(logits, tokens[0, start:], reduction="sum").item())
                right.append(torch.equal(logits.argmax(-1), tokens[0, start:]))
        n_tokens = sum(len(ids) - start for ids, start in self._texts)
        return Answered(sum(losses) / n_tokens, right)

    def sweep(self) -> list[dict[str, str]]:
        """Return loss and share of right answers, one row a window."""
        trained = self.window or 1
        sizes = sorted({1, max(1, trained // 4), max(1, trained // 2), trained, 2 * trained})
        rows = []
        for window in (*sizes, None):
            found = self.ask(window)
            share = f"{sum(found.right)} of {len(found.right)}"
            name = f"{window} key{'s' * (window > 1)}" if window else "all keys"
            mark = " (as trained)" if window == self.window else ""
            loss = f"{found.loss:.3f}"
            rows.append({"window": name + mark, "right answers": share, "loss on answers": loss})
        return rows
