"""Exercises: each solution passes, each stub and planted mistake fails, and check explains it."""

import ast
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_lite import exercises
from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.exercises import judge
from gptoss_lite.exercises.compare import first_difference
from gptoss_lite.exercises.exercise import LEVELS, SETUP, Exercise

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "gptoss_lite/exercises").glob("ch*.py")
CHAPTERS = sorted(path.stem for path in FILES if re.fullmatch(r"ch(\d\d|[A-Z])", path.stem))
ALL = [exercises.exercise(f"{chapter}.ex{number}") for chapter in CHAPTERS for number in (1, 2, 3)]
each = pytest.mark.parametrize("this", ALL, ids=lambda this: this.id)


def _run(source: str, name: str):
    """Run code as a chapter would after its setup cell, and return one function from it."""
    names: dict = {}
    exec(SETUP, names)
    exec(source, names)
    return names[name]


def test_the_first_chapters_have_exercises():
    assert CHAPTERS[:2] == ["ch00", "ch01"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_three_per_chapter_from_easy_to_the_bug(chapter: str):
    found = [this for this in ALL if this.id.startswith(chapter)]
    module = __import__(f"gptoss_lite.exercises.{chapter}", fromlist=["EXERCISES"])
    assert tuple(found) == module.EXERCISES
    assert [this.level for this in found] == list(LEVELS)


@each
def test_the_solution_as_shown_passes(this: Exercise):
    verdict = judge(this.id, _run(this.solution_source(), this.name))
    assert verdict.passed, verdict.text
    assert verdict.text == f"{this.id}: all {len(this.cases + this.hidden)} cases pass."


@each
def test_the_stub_as_shown_fails(this: Exercise):
    verdict = judge(this.id, _run(this.stub_source(), this.name))
    assert not verdict.passed
    assert ("waits for your code" in verdict.text) == (this.level != "find the bug")


@each
def test_every_planted_mistake_fails(this: Exercise):
    assert this.wrong, "name at least one plausible mistake"
    for mistake in this.wrong:
        verdict = judge(this.id, mistake)
        assert not verdict.passed, mistake.__name__
        assert "is wrong" in verdict.text, verdict.text


@each
def test_it_is_complete(this: Exercise):
    assert 1 <= this.minutes <= 30
    assert len(this.hints) >= 2
    assert len(this.cases) >= 1
    assert len(this.hidden) >= 2
    assert len(this.title) < 50
    assert len((this.solution.__doc__ or "").split()) >= 8
    code = this.stub_source()
    assert len(code.splitlines()) < 25, "a cell of the book holds at most 25 lines"
    assert "broken" not in code
    assert (this.stub is None) == (this.level != "find the bug")
    ast.parse(code)


@each
def test_hint_and_solution_show_everything(this: Exercise):
    for call in (exercises.hint, exercises.solution, exercises.stub):
        shown = call(this.id)
        assert shown._repr_html_() == call(this.id)._repr_html_()
        assert repr(shown) == repr(call(this.id))
    assert exercises.hint(this.id).html.count("<details>") == len(this.hints)
    assert all(text in repr(exercises.hint(this.id)) for text in this.hints)
    assert this.solution_source() in repr(exercises.solution(this.id))
    assert "<script" not in exercises.solution(this.id).html


def test_known_numbers():
    assert exercises.exercise("ch00.ex1").solution(1_600) == 30_740_800
    growth = exercises.exercise("ch00.ex2").solution
    assert [growth(*case) // 1_024 for case in exercises.exercise("ch00.ex2").cases] == [300, 24]
    assert exercises.exercise("ch00.ex3").solution(exercises.compare.PRESETS["gpt-oss-20b"]) == (
        13_761_264_768
    )


def test_a_wrong_case_names_input_values_and_place():
    verdict = judge("ch01.ex1", lambda n: torch.ones(n, n, dtype=torch.bool))
    assert verdict.text.splitlines() == [
        "ch01.ex1: case 1 of 6 is wrong.",
        "  input     n = 3",
        "  first difference at [0, 1]",
        "  got       True",
        "  expected  False",
        "  hint      Compare a column of query positions with a row of key positions.",
    ]


def test_an_exception_is_one_sentence_with_the_line():
    def attention(q, k, v):
        return torch.cat((q, k), -2) @ v.unflatten(-1, (3, 5))

    line = inspect.getsourcelines(attention)[1] + 1
    first, second = judge("ch01.ex3", attention).text.splitlines()
    assert first.startswith(
        f"ch01.ex3: case 1 of 5 stopped in line {line}, "
        "`return torch.cat((q, k), -2) @ v.unflatten(-1, (3, 5))`, with RuntimeError: "
    )
    assert second.startswith("  input     q = float tensor [2, 4, 4], k = ")


def test_an_operation_that_torch_lacks_is_not_a_stub():
    def causal_mask(n):
        raise NotImplementedError("no such kernel")

    assert "with NotImplementedError: no such kernel" in judge("ch01.ex1", causal_mask).text


def test_a_function_of_the_wrong_kind_is_explained():
    assert "before your code ran, with TypeError" in judge("ch01.ex1", lambda: 1).text
    assert judge("ch01.ex1", 3).text == (
        'ch01.ex1: give the function itself, as in check("ch01.ex1", causal_mask).'
    )


def test_an_answer_cannot_spoil_the_cases():
    def spoil(q, k, v):
        q.zero_(), k.zero_(), v.zero_()
        return v

    assert not judge("ch01.ex3", spoil).passed
    assert judge("ch01.ex3", exercises.exercise("ch01.ex3").solution).passed


def test_check_prints_and_returns_nothing(capsys: pytest.CaptureFixture[str]):
    exercises.check("ch01.ex1", exercises.exercise("ch01.ex1").solution)
    assert capsys.readouterr().out == "ch01.ex1: all 6 cases pass.\n"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda shapes, config, seed: None, "no pair of a dict of weights"),
        (lambda shapes, config, seed: ({}, torch.zeros(1, 1)), "no tensor of shape [97, 24] for"),
        (lambda shapes, config, seed: (_zeros(shapes), torch.ones(1, 2)), "no [B, T] tensor"),
        (lambda shapes, config, seed: (_zeros(shapes), torch.tensor([[97]])), "beyond 0 to 96"),
        (lambda shapes, config, seed: (_zeros(shapes), torch.tensor([[1]])), "YaRN's ramp rounded"),
    ],
)
def test_where_many_answers_are_right_a_wrong_one_is_explained(answer, says: str):
    assert says in judge("chA.ex2", answer).text


def _zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("ch01", "look like 'ch05.ex2'"),
        ("ch01.ex9", "Those of its chapter: ch01.ex1, ch01.ex2, ch01.ex3."),
        ("ch99.ex1", "Those of its chapter: none."),
    ],
)
def test_an_unknown_id_is_explained(id: str, says: str):
    with pytest.raises(GptOssLiteError, match=says):
        exercises.exercise(id)


EQUAL = [
    (3.0000001, 3.0),
    (torch.tensor(3), 3),
    (np.float32(0.5), 0.5),
    (float("nan"), float("nan")),
    (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan])),
    (torch.zeros(2, dtype=torch.float64), torch.zeros(2)),
    (np.array([1, 2]), torch.tensor([1, 2])),
    ([torch.ones(2), "a"], (torch.ones(2), "a")),
    ({"b": 2, "a": 1}, {"a": 1, "b": 2}),
    (None, None),
]
DIFFERENT = [
    (4, 3, "", "4"),
    (True, 1, "", "True"),
    (1, True, "", "1"),
    ("a", "b", "", "'a'"),
    (None, 1, "", "None"),
    (3.001, 3.0, "", "3.001"),
    (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), "", "int tensor [2]"),
    (torch.zeros(2, 1), torch.zeros(1, 2), "", "float tensor [2, 1]"),
    (torch.tensor([1, 0]), torch.tensor([True, False]), "", "int tensor [2]"),
    ([1.0], torch.ones(1), "", "[1]"),
    (np.array(["a"]), torch.ones(1), "", "<U1 array [1]"),
    (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), "[1]", "nan"),
    ([1, (2, 3)], [1, (2, 4)], "[1][1]", "3"),
    ([1], [1, 2], "", "1 values"),
    (3, [3], "", "3"),
    ({"a": 1}, {"b": 1}, "", "{'a': 1}"),
    ({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1.0])}, "['a'][1]", "0"),
]


@pytest.mark.parametrize(("got", "expected"), EQUAL)
def test_what_counts_as_equal(got: object, expected: object):
    assert first_difference(got, expected, 1e-6) is None


@pytest.mark.parametrize(("got", "expected", "where", "said"), DIFFERENT)
def test_what_counts_as_different(got: object, expected: object, where: str, said: str):
    found = first_difference(got, expected, 1e-6)
    assert found is not None
    assert (found.where, found.got) == (where, said)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_notebook_holds_stub_check_hint_and_solution(chapter: str):
    """A chapter shows each exercise as it is here, or the two have drifted apart."""
    for path in (ROOT / "chapters").glob(f"{chapter[2:]}_*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        for this in (one for one in ALL if one.id.startswith(chapter)):
            stubs = [text for text in code if this.stub_source() in text]
            assert len(stubs) == 1, f"{path.name}: paste what stub({this.id!r}) prints"
            for call in (f'check("{this.id}", {this.name})', f'hint("{this.id}")'):
                assert sum(call in text for text in code) == 1, f"{path.name} lacks {call}"
            assert sum(f'solution("{this.id}")' in text for text in code) == 1, path.name
