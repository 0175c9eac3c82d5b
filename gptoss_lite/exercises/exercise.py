"""An exercise as data: what the reader sees, what the reader's function is held against."""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

Function = Callable[..., object]
LEVELS = ("easy", "implement", "find the bug")

# What a stub and a solution may use; a chapter's setup cell imports what its own need.
SETUP = """\
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_lite import PRESETS, ModelConfig, account
"""


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter.

    Args:
        id: "chNN.exM", or "chA.exM" in an appendix.
        title: a few words.
        minutes: for a reader who has just read the chapter.
        level: one of LEVELS.
        solution: the right function. Its docstring is the task, and its name the reader's.
        cases: argument tuples that the chapter talks about; tried first.
        hidden: more argument tuples, among them what a wrong version gets wrong.
        hints: from vague to plain; the first one comes with a wrong answer.
        stub: a wrong version to mend, named `broken_` + the solution's name; None asks for the
            function from its signature and docstring.
        wrong: plausible mistakes, which the cases must catch.
        tolerance: relative and absolute, for floats; everything else must be equal.
        outcome: where many answers are right: what is compared instead of the answer itself. It is
            called with the answer, then the arguments.
    """

    id: str
    title: str
    minutes: int
    level: str
    solution: Function
    cases: tuple[tuple[object, ...], ...]
    hidden: tuple[tuple[object, ...], ...]
    hints: tuple[str, ...]
    stub: Function | None = None
    wrong: tuple[Function, ...] = ()
    tolerance: float = 1e-6
    outcome: Function | None = None

    @property
    def name(self) -> str:
        """What the reader's function is called."""
        return self.solution.__name__

    @property
    def heading(self) -> str:
        """One line: id, title, level, minutes."""
        return f"{self.id}: {self.title} ({self.level}, {self.minutes} minutes)"

    def stub_source(self) -> str:
        """Return what the reader starts from, under a comment with the heading."""
        if self.stub is None:
            body = unsolved(inspect.getsource(self.solution))
        else:
            body = re.sub(r"\bbroken_(\w+)", r"\1", inspect.getsource(self.stub))
        return f"# {self.heading}\n{body.rstrip()}"

    def solution_source(self) -> str:
        """Return the solution's code."""
        return inspect.getsource(self.solution).rstrip()


def unsolved(source: str) -> str:
    r"""Keep a function's signature and docstring, and let it raise NotImplementedError.

    Example:
        >>> print(unsolved('def two():\n    "Return 2."\n    return 2'))
        def two():
            "Return 2."
            raise NotImplementedError
    """
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert ast.get_docstring(function), f"{function.name} needs a docstring: it is the task"
    lines = source.splitlines()[: function.body[0].end_lineno]
    return "\n".join([*lines, "    raise NotImplementedError"])
