"""One operation, several ways to compute it: the plain one is the specification."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from gptoss_lite.errors import BackendError

_OPS: dict[str, "Op"] = {}
_FORCED: str | None = None


class Op:
    """A function with registered faster versions of the same signature.

    Calling it runs the first backend that can run here, else the plain function. `why_not`
    receives the call's arguments and returns None, or the sentence why this backend cannot.

    Example:
        >>> @Op
        ... def double(x):
        ...     return x + x
        >>> @double.backend("shift", why_not=lambda x: None if x >= 0 else "x is negative")
        ... def _(x):
        ...     return x << 1
        >>> double(3), double(-3), double.plain(3)
        (6, -6, 6)
        >>> _ = _OPS.pop("double")
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self.fast: dict[str, tuple[Callable[..., Any], Callable[..., str | None]]] = {}
        update_wrapper(self, plain)
        _OPS[plain.__name__] = self

    def backend(self, name: str, why_not: Callable[..., str | None]) -> Callable[..., Any]:
        """Register a faster version under a name; later ones are tried later."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.fast[name] = (function, why_not)
            return function

        return register

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute with the first backend that can, or with the one that `use_backend` forced."""
        if _FORCED == "plain":
            return self.plain(*args, **kwargs)
        for name, (function, why_not) in self.fast.items():
            if _FORCED not in (None, name):
                continue
            reason = why_not(*args, **kwargs)
            if reason is None:
                return function(*args, **kwargs)
            if name == _FORCED:
                raise BackendError(
                    f"Backend {name!r} cannot run {self.plain.__name__}: {reason}. "
                    "Call use_backend('auto') to fall back to the plain version."
                )
        return self.plain(*args, **kwargs)


def use_backend(name: str) -> None:
    """Choose how every operation is computed from now on.

    Args:
        name: "auto" (fastest that can run), "plain" (the specification), or one backend's name.

    Raises:
        BackendError: no operation has a backend of that name.
    """
    global _FORCED
    known = {"auto", "plain"}.union(*(op.fast for op in _OPS.values()))
    if name not in known:
        raise BackendError(f"No backend {name!r}. Known here: {sorted(known)}.")
    _FORCED = None if name == "auto" else name


def backends() -> list[tuple[str, str, str]]:
    """List (operation, backend, state) for every way of computing every operation."""
    rows = []
    for op_name, op in sorted(_OPS.items()):
        for name in op.fast:
            allowed = _FORCED in (None, name)
            rows.append((op_name, name, "tried first" if allowed else f"off: {_FORCED} is forced"))
        rows.append((op_name, "plain", "the specification"))
    return rows
