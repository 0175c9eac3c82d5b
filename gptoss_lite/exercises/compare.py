"""Find the first place where an answer is wrong, and say values in a few words."""

import numbers
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass

import numpy as np
import torch
from torch import Tensor

from gptoss_lite.presets import PRESETS

MOST_VALUES = 8  # of a tensor that are shown in full
MOST_CHARACTERS = 100


@dataclass(frozen=True)
class Difference:
    """Where an answer first differs, and both values there; `where` is empty for the whole."""

    where: str
    got: str
    expected: str


def first_difference(got: object, expected: object, tolerance: float) -> Difference | None:
    """Compare an answer with what was expected.

    Floats may differ by the tolerance, absolute or relative, and float64 may answer for float32.
    Shapes, lengths, keys and everything else must be equal.

    Example:
        >>> first_difference([1, 2, 4], [1, 2, 3], 1e-6)
        Difference(where='[2]', got='4', expected='3')
    """
    if isinstance(expected, Tensor):
        return _tensors(got, expected, tolerance)
    if isinstance(expected, dict):
        return _dicts(got, expected, tolerance)
    if isinstance(expected, (list, tuple)):
        return _sequences(got, expected, tolerance)
    if isinstance(expected, numbers.Real) and not isinstance(expected, bool):
        same = _same_number(got, expected, tolerance)
    else:
        same = type(got) is type(expected) and bool(got == expected)
    return None if same else Difference("", in_short(got), in_short(expected))


def _tensors(got: object, expected: Tensor, tolerance: float) -> Difference | None:
    if isinstance(got, np.ndarray) and got.dtype.kind in "biuf":
        got = torch.as_tensor(got)
    if not isinstance(got, Tensor) or got.shape != expected.shape or _kind(got) != _kind(expected):
        return Difference("", _described(got), _described(expected))
    got, expected = got.detach().cpu(), expected.detach().cpu()
    if expected.is_floating_point():
        same = torch.isclose(got.double(), expected.double(), tolerance, tolerance, equal_nan=True)
    else:
        same = got == expected
    if bool(same.all()):
        return None
    index = (~same).nonzero()[0].tolist()
    values = [in_short(tensor[tuple(index)].item()) for tensor in (got, expected)]
    return Difference(str(index) if index else "", *values)


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "int"


def _dicts(got: object, expected: dict, tolerance: float) -> Difference | None:
    if not isinstance(got, dict) or set(got) != set(expected):
        return Difference("", in_short(got), in_short(expected))
    return _first(((f"[{key!r}]", got[key], expected[key]) for key in expected), tolerance)


def _sequences(got: object, expected: list | tuple, tolerance: float) -> Difference | None:
    if not isinstance(got, (list, tuple)):
        return Difference("", in_short(got), in_short(expected))
    if len(got) != len(expected):
        return Difference("", f"{len(got)} values", f"{len(expected)} values")
    pairs = enumerate(zip(got, expected, strict=True))
    return _first(((f"[{i}]", g, e) for i, (g, e) in pairs), tolerance)


def _first(parts: Iterable[tuple[str, object, object]], tolerance: float) -> Difference | None:
    for where, got, expected in parts:
        if found := first_difference(got, expected, tolerance):
            return Difference(where + found.where, found.got, found.expected)
    return None


def _same_number(got: object, expected: numbers.Real, tolerance: float) -> bool:
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if not isinstance(got, numbers.Real) or isinstance(got, bool):
        return False
    if isinstance(expected, numbers.Integral):
        return got == expected
    return bool(np.isclose(float(got), float(expected), tolerance, tolerance, equal_nan=True))


def in_short(value: object) -> str:
    """Say a value in one line.

    Example:
        >>> in_short(torch.zeros(2, 50)), in_short(1557611200), in_short(PRESETS["gpt2"])
        ('float tensor [2, 50]', '1,557,611,200', "PRESETS['gpt2']")
    """
    if isinstance(value, Tensor | np.ndarray):
        small = value.size if isinstance(value, np.ndarray) else value.numel()
        return _rounded(value.tolist()) if small <= MOST_VALUES else _described(value)
    if value is None or isinstance(value, bool | str):
        text = repr(value)
    elif isinstance(value, numbers.Real):
        text = f"{value:,}" if isinstance(value, numbers.Integral) else f"{float(value):.6g}"
    elif is_dataclass(value):
        names = [name for name, config in PRESETS.items() if config == value]
        text = f"PRESETS[{names[0]!r}]" if names else repr(value)
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(in_short, value[:MOST_VALUES])) + "]"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key!r}: {in_short(value[key])}" for key in value) + "}"
    else:
        text = f"a {type(value).__name__}"
    return textwrap.shorten(text, MOST_CHARACTERS, placeholder=" ...")


def _rounded(values: object) -> str:
    if isinstance(values, list):
        return "[" + ", ".join(map(_rounded, values)) + "]"
    return f"{values:.4g}" if isinstance(values, float) else str(values)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {list(value.shape)}"
    if isinstance(value, Tensor):
        return f"{_kind(value)} tensor {list(value.shape)}"
    return in_short(value)
