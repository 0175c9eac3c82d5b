"""The book's exercises: three per chapter, each with a checker, hints and a solution.

`gptoss_lite/exercises/chNN.py` holds those of chapter NN in a tuple `EXERCISES`, `chA.py` those of
appendix A. An exercise is found by its id, "ch05.ex2", so there is no list to keep.
"""

import copy
import inspect
import linecache
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.exercises.compare import first_difference, in_short
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.shown import Shown, box, code, folded, inline

__all__ = ["Exercise", "Judgement", "check", "exercise", "hint", "judge", "solution", "stub"]


_WAITS = "waits for your code"


@dataclass(frozen=True)
class Judgement:
    """What `check` says about an answer."""

    passed: bool
    text: str


def check(id: str, answer: object) -> None:
    """Try an answer on every case and print the first that is wrong, or that all are right.

    Args:
        id: of the exercise, e.g. "ch01.ex2".
        answer: the reader's function.

    Example:
        >>> check("ch01.ex1", lambda n: n)
        ch01.ex1: case 1 of 6 is wrong.
          input     n = 3
          got       3
          expected  bool tensor [3, 3]
          hint      Compare a column of query positions with a row of key positions.
    """
    print(judge(id, answer).text)


def judge(id: str, answer: object) -> Judgement:
    """Try an answer as `check` does, and return the outcome instead of printing it."""
    this = exercise(id)
    if not callable(answer):
        example = f'check("{id}", {this.name})'
        return Judgement(False, f"{id}: give the function itself, as in {example}.")
    cases = this.cases + this.hidden
    for number, arguments in enumerate(cases, start=1):
        if problem := _problem(this, answer, arguments):
            place = "" if problem.startswith(_WAITS) else f"case {number} of {len(cases)} "
            return Judgement(False, f"{id}: {place}{problem}")
    return Judgement(True, f"{id}: all {len(cases)} cases pass.")


def hint(id: str) -> Shown:
    """Return the hints, each folded on a page and all in order as plain text."""
    this = exercise(id)
    titles = [f"Hint {n} of {len(this.hints)} for {id}" for n in range(1, len(this.hints) + 1)]
    pairs = list(zip(titles, this.hints, strict=True))
    body = "".join(folded(title, f"<p>{inline(text)}</p>") for title, text in pairs)
    return Shown(box(f"Hints for {id}", body), "\n".join(f"{t}: {text}" for t, text in pairs))


def solution(id: str) -> Shown:
    """Return the solution's code, folded on a page."""
    this = exercise(id)
    source = this.solution_source()
    body = folded(f"Solution of {id}: {this.title}", code(source))
    return Shown(box(f"Solution of {id}", body), f"# Solution of {id}\n{source}")


def stub(id: str) -> Shown:
    """Return the code that the reader starts from, as it stands in the chapter."""
    source = exercise(id).stub_source()
    return Shown(code(source), source)


def exercise(id: str) -> Exercise:
    """Find an exercise.

    Raises:
        GptOssLiteError: no such id; the message names those that are near.
    """
    match = re.fullmatch(r"(ch(?:\d\d|[A-Z]))\.ex\d+", id)
    if match is None:
        raise GptOssLiteError(f"{id!r} is not an exercise's id. They look like 'ch05.ex2'.")
    name = f"{__name__}.{match[1]}"
    known = import_module(name).EXERCISES if find_spec(name) else ()
    for one in known:
        if one.id == id:
            return one
    ids = ", ".join(one.id for one in known) or "none"
    raise GptOssLiteError(f"There is no exercise {id!r}. Those of its chapter: {ids}.")


def _problem(
    this: Exercise, answer: Callable[..., object], arguments: tuple[object, ...]
) -> str | None:
    """Say what is wrong with the answer to one case; each call gets its own copy of the input."""
    expected = this.solution(*copy.deepcopy(arguments))
    try:
        got = answer(*copy.deepcopy(arguments))
    except Exception as error:
        if isinstance(error, NotImplementedError) and not error.args:  # a stub's own
            return f'{_WAITS}. For help: hint("{this.id}").'
        return f"stopped {_where(error, answer)}\n  input     {_input(this, arguments)}"
    if this.outcome is not None:
        expected = this.outcome(expected, *copy.deepcopy(arguments))
        got = this.outcome(got, *copy.deepcopy(arguments))
    found = first_difference(got, expected, this.tolerance)
    if found is None:
        return None
    place = [f"  first difference at {found.where}"] if found.where else []
    lines = [
        "is wrong.",
        f"  input     {_input(this, arguments)}",
        *place,
        f"  got       {found.got}",
        f"  expected  {found.expected}",
        f"  hint      {this.hints[0]}",
    ]
    return "\n".join(lines)


def _input(this: Exercise, arguments: tuple[object, ...]) -> str:
    names = inspect.signature(this.solution).parameters
    return ", ".join(f"{n} = {in_short(a)}" for n, a in zip(names, arguments, strict=False))


def _where(error: Exception, answer: Callable[..., object]) -> str:
    """Say in one sentence what was raised, and in which line of the reader's own code."""
    what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [n.lineno for n in traceback.extract_tb(error.__traceback__) if n.filename == file]
    if not lines or file is None:
        return f"before your code ran, with {what}"
    return f"in line {lines[-1]}, `{linecache.getline(file, lines[-1] or 0).strip()}`, with {what}"
