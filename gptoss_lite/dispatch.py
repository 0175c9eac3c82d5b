"""One operation, several ways to compute it: the plain one is the specification."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Any

from gptoss_lite.errors import BackendError

_OPS: dict[str, "Op"] = {}
_FORCED: str | None = None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Object to nothing."""


@dataclass(frozen=True)
class Backend:
    """A faster version, and three questions; each is answered by None or by a sentence."""

    function: Callable[..., Any]
    why_not: Callable[..., str | None]  # can this call not be computed? receives its arguments
    missing: Callable[[], str | None]  # what does this machine lack?
    too_small: Callable[..., str | None]  # would this call gain nothing? receives its arguments

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        """Say why this call cannot be computed here, or None."""
        return self.missing() or self.why_not(*args, **kwargs)


class Op:
    """A function with registered faster versions of the same signature.

    Calling it runs the first backend that can run here, else the plain function. See `Backend`
    for what a backend may be asked.

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
        self.fast: dict[str, Backend] = {}
        update_wrapper(self, plain)
        _OPS[plain.__name__] = self

    def backend(
        self,
        name: str,
        why_not: Callable[..., str | None] = _nothing,
        *,
        missing: Callable[[], str | None] = _nothing,
        too_small: Callable[..., str | None] = _nothing,
    ) -> Callable[..., Any]:
        """Register a faster version under a name; later ones are tried later.

        Args:
            name: the same for all operations of one family.
            why_not: receives the call's arguments; says why they cannot be computed.
            missing: says what this machine lacks. Asked often, so it must be quick from its second
                call on.
            too_small: receives the call's arguments; says why it is not worth it. Asked first, and
                not at all when `use_backend` forces this backend.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.fast[name] = Backend(function, why_not, missing, too_small)
            return function

        return register

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute with the first backend that can, or with the one that `use_backend` forced."""
        if _FORCED == "plain":
            return self.plain(*args, **kwargs)
        for name, backend in self.fast.items():
            if _FORCED not in (None, name):
                continue
            # Size first: a tiny model must not be what makes a backend look for a compiler.
            if not _FORCED and backend.too_small(*args, **kwargs):
                continue
            reason = backend.refusal(*args, **kwargs)
            if reason is None:
                return backend.function(*args, **kwargs)
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


def ways_taken(run: Callable[[], Any]) -> tuple[Any, dict[str, list[str]]]:
    """Run something; return its result, and for each operation the names of what computed it.

    Example:
        >>> @Op
        ... def halve(x):
        ...     return x / 2
        >>> ways_taken(lambda: halve(3))
        (1.5, {'halve': ['plain']})
        >>> _ = _OPS.pop("halve")
    """
    taken: dict[str, set[str]] = {}

    def noting(op_name: str, way: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            taken.setdefault(op_name, set()).add(way)
            return function(*args, **kwargs)

        return noted

    before = {name: (op.plain, dict(op.fast)) for name, op in _OPS.items()}
    try:
        for name, op in _OPS.items():
            op.plain = noting(name, "plain", op.plain)
            for way, backend in op.fast.items():
                op.fast[way] = replace(backend, function=noting(name, way, backend.function))
        result = run()
    finally:
        for name, (plain, fast) in before.items():
            _OPS[name].plain, _OPS[name].fast = plain, fast
    return result, {name: sorted(ways) for name, ways in sorted(taken.items())}


def backends() -> list[tuple[str, str, str]]:
    """List (operation, backend, state) for every way of computing every operation."""
    rows = []
    for op_name, op in sorted(_OPS.items()):
        for name, backend in op.fast.items():
            off = None if _FORCED in (None, name) else f"{_FORCED} is forced"
            reason = off or backend.missing()
            rows.append((op_name, name, f"off: {reason}" if reason else "tried first"))
        rows.append((op_name, "plain", "the specification"))
    return rows
