"""Five questions at the end of a chapter, with a reason for every option.

The items of chapter NN are in `data/quizzes/chNN.json`, those of appendix A in `chA.json`. On a
page each option is a fold: opening it says whether it is right, and why. That needs no scripts, and
works with the keyboard.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.shown import Shown, box, folded, inline

_FOLDER = Path(__file__).parent / "data" / "quizzes"
_LETTERS = "abcdef"


@dataclass(frozen=True)
class Option:
    """One possible answer, and why it is right or wrong."""

    text: str
    right: bool
    reason: str


@dataclass(frozen=True)
class Item:
    """One question."""

    question: str
    options: tuple[Option, ...]

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return next(a for a, o in zip(_LETTERS, self.options, strict=False) if o.right)


def show(chapter: str) -> Shown:
    """Return a chapter's quiz as the last line of a cell.

    Args:
        chapter: two digits, e.g. "01", or an appendix's letter.

    Example:
        >>> print(str(show("01")).splitlines()[0])
        Quiz of chapter 01. The answers are at the end.
    """
    items = load(chapter)
    title = f"Quiz of {'chapter' if chapter.isdigit() else 'appendix'} {chapter}"
    body = "<p>Open an option to see whether it is right, and why.</p>"
    body += f"<ol>{''.join(f'<li>{_item_html(item)}</li>' for item in items)}</ol>"
    lines = [f"{title}. The answers are at the end."]
    for number, item in enumerate(items, start=1):
        lines += [f"{number}. {item.question}"]
        lines += [f"   {a}) {o.text}" for a, o in zip(_LETTERS, item.options, strict=False)]
    lines += ["Answers:"]
    for number, item in enumerate(items, start=1):
        lines += [f"{number} {item.answer}"]
        lines += [f"   {a}) {o.reason}" for a, o in zip(_LETTERS, item.options, strict=False)]
    return Shown(box(title, body), "\n".join(lines))


@cache
def load(chapter: str) -> tuple[Item, ...]:
    """Read a chapter's items.

    Raises:
        GptOssLiteError: a chapter without a quiz; the message names those that have one.
    """
    have = sorted(path.stem.removeprefix("ch") for path in _FOLDER.glob("ch*.json"))
    if chapter not in have:
        known = ", ".join(have)
        raise GptOssLiteError(f"There is no quiz of chapter {chapter!r}. Chapters: {known}.")
    data = json.loads((_FOLDER / f"ch{chapter}.json").read_text(encoding="utf-8"))
    return tuple(
        Item(item["question"], tuple(Option(**option) for option in item["options"]))
        for item in data["items"]
    )


def _item_html(item: Item) -> str:
    options = "".join(
        folded(option.text, f"<p><strong>{_verdict(option)}</strong> {inline(option.reason)}</p>")
        for option in item.options
    )
    return f"<p>{inline(item.question)}</p>{options}"


def _verdict(option: Option) -> str:
    return "Right." if option.right else "Not quite."
