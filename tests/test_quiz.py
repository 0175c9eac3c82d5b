"""Quizzes: complete, fair, escaped, and the same bytes on every run."""

import html
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gptoss_lite import quiz
from gptoss_lite.errors import GptOssLiteError

FOLDER = Path(quiz.__file__).parent / "data" / "quizzes"
CHAPTERS = sorted(path.stem.removeprefix("ch") for path in FOLDER.glob("*.json"))
each = pytest.mark.parametrize("chapter", CHAPTERS)


class Structure(HTMLParser):
    """Elements in order, and whether each is closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.names += [name for name, _ in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_first_chapters_have_a_quiz():
    assert CHAPTERS[:2] == ["00", "01"]


@each
def test_schema(chapter: str):
    data = json.loads((FOLDER / f"ch{chapter}.json").read_text(encoding="utf-8"))
    assert set(data) == {"items"}
    assert len(data["items"]) == 5
    for item in data["items"]:
        assert set(item) == {"question", "options"}
        assert item["question"].strip()
        assert 3 <= len(item["options"]) <= 4
        for option in item["options"]:
            assert set(option) == {"text", "right", "reason"}
            assert isinstance(option["right"], bool)
            assert option["text"].strip()
            assert len(option["reason"].split()) >= 5, "a reason is a sentence"
        assert sum(option["right"] for option in item["options"]) == 1
        for texts in ("text", "reason"):
            assert len({option[texts] for option in item["options"]}) == len(item["options"])


@each
def test_the_right_option_cannot_be_guessed(chapter: str):
    items = quiz.load(chapter)
    assert len({item.answer for item in items}) >= 3, "the right option is often at one place"
    longest = sum(
        next(o for o in item.options if o.right) == max(item.options, key=lambda o: len(o.text))
        for item in items
    )
    assert longest <= 3, "the right option is often the longest"


@each
def test_the_page_is_complete_without_scripts(chapter: str):
    page = quiz.show(chapter)._repr_html_()
    structure = Structure(page)
    options = sum(len(item.options) for item in quiz.load(chapter))
    assert structure.open == []
    assert structure.seen["details"] == structure.seen["summary"] == options
    assert structure.seen["li"] == 5
    assert page.count("<strong>Right.</strong>") == 5
    assert not {"id", "onclick", "href", "src"} & set(structure.names)
    assert not re.search(r"#[0-9a-f]{3}|rgb|background", page), "colors are inherited"
    said = html.unescape(re.sub("<[^>]+>", "", page))
    for item in quiz.load(chapter):
        for text in (item.question, *(o.text for o in item.options)):
            assert text.replace("`", "") in said


@each
def test_the_same_bytes_again(chapter: str):
    assert quiz.show(chapter) == quiz.show(chapter)
    quiz.load.cache_clear()
    assert quiz.show(chapter).html == quiz.show(chapter)._repr_html_()


@each
def test_plain_text_holds_every_option_and_reason(chapter: str):
    text = repr(quiz.show(chapter))
    for item in quiz.load(chapter):
        for option in item.options:
            assert option.text in text
            assert option.reason in text
    assert text.index("Answers:") > text.index(quiz.load(chapter)[-1].question)


def test_everything_is_escaped(monkeypatch: pytest.MonkeyPatch):
    bad = '<img src=x onerror="alert(1)"> & `a<b`'
    options = (quiz.Option(bad, True, bad), quiz.Option("b", False, bad))
    monkeypatch.setattr(quiz, "load", lambda chapter: (quiz.Item(bad, options),))
    page = quiz.show("01").html
    assert "<img" not in page
    assert page.count("&lt;img") == 4
    assert page.count("<code>a&lt;b</code>") == 4
    assert Structure(page).open == []


def test_a_chapter_without_a_quiz_is_explained():
    with pytest.raises(GptOssLiteError, match=r"no quiz of chapter '99'\. Chapters: 00, 01"):
        quiz.show("99")


@each
def test_the_notebook_shows_the_quiz(chapter: str):
    for path in (FOLDER.parents[2] / "chapters").glob(f"{chapter}_*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        assert code.count(f'quiz.show("{chapter}")') == 1, path.name
