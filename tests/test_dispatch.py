from collections.abc import Iterator

import pytest

from gptoss_lite import backends, dispatch, use_backend
from gptoss_lite.dispatch import Op
from gptoss_lite.errors import BackendError, GptOssLiteError


@pytest.fixture
def double() -> Iterator[Op]:
    """An operation with two fast versions: for positive and for even numbers."""

    @Op
    def double_for_a_test(x: int, by: int = 2) -> tuple[str, int]:
        """Multiply."""
        return "plain", x * by

    @double_for_a_test.backend("positive", lambda x, by=2: None if x > 0 else "x is not positive")
    def _(x: int, by: int = 2) -> tuple[str, int]:
        return "positive", x * by

    @double_for_a_test.backend("even", lambda x, by=2: "x is odd" if x % 2 else None)
    def _(x: int, by: int = 2) -> tuple[str, int]:
        return "even", x * by

    yield double_for_a_test
    use_backend("auto")
    del dispatch._OPS["double_for_a_test"]


@pytest.mark.parametrize(
    ("x", "runs"), [(4, "positive"), (3, "positive"), (-4, "even"), (-3, "plain")]
)
def test_the_first_backend_that_can_runs(double: Op, x: int, runs: str) -> None:
    assert double(x) == (runs, 2 * x)
    assert double(x, by=5) == (runs, 5 * x)
    assert double.plain(x) == ("plain", 2 * x)


def test_plain_can_be_forced(double: Op) -> None:
    use_backend("plain")
    assert double(4) == ("plain", 8)
    use_backend("auto")
    assert double(4) == ("positive", 8)


def test_a_forced_backend_runs_though_another_comes_first(double: Op) -> None:
    use_backend("even")
    assert double(4) == ("even", 8)


def test_a_forced_backend_that_cannot_run_says_why(double: Op) -> None:
    use_backend("even")
    with pytest.raises(BackendError) as problem:
        double(3)
    assert str(problem.value) == (
        "Backend 'even' cannot run double_for_a_test: x is odd. "
        "Call use_backend('auto') to fall back to the plain version."
    )
    assert isinstance(problem.value, GptOssLiteError)
    assert isinstance(problem.value, RuntimeError)


def test_operations_without_the_forced_backend_run_plain(double: Op) -> None:
    @Op
    def other_for_a_test(x: int) -> int:
        return x

    try:
        use_backend("even")
        assert other_for_a_test(3) == 3
    finally:
        del dispatch._OPS["other_for_a_test"]


def test_an_unknown_backend_is_refused_and_changes_nothing(double: Op) -> None:
    use_backend("even")
    known = sorted({"auto", "plain", *(name for op in dispatch._OPS.values() for name in op.fast)})
    with pytest.raises(BackendError) as problem:
        use_backend("cuda-magic")
    assert str(problem.value) == f"No backend 'cuda-magic'. Known here: {known}."
    assert double(4) == ("even", 8)


def test_backends_lists_every_way_and_its_state(double: Op) -> None:
    mine = [row for row in backends() if row[0] == "double_for_a_test"]
    assert [row[1] for row in mine] == ["positive", "even", "plain"]
    assert mine[-1] == ("double_for_a_test", "plain", "the specification")
    use_backend("plain")
    mine = [row for row in backends() if row[0] == "double_for_a_test"]
    assert mine[0] == ("double_for_a_test", "positive", "off: plain is forced")


def test_a_backend_that_fails_is_not_hidden(double: Op) -> None:
    """Falling back in silence would hide why a machine is slow, or wrong."""

    @double.backend("broken", lambda x, by=2: None)
    def _(x: int, by: int = 2) -> None:
        raise ZeroDivisionError("planned")

    use_backend("broken")
    with pytest.raises(ZeroDivisionError, match="planned"):
        double(3)


def test_an_operation_keeps_its_name_and_its_docstring(double: Op) -> None:
    assert double.__name__ == "double_for_a_test"
    assert double.__doc__ == "Multiply."


def test_the_package_has_its_operations_and_starts_automatic() -> None:
    names = {row[0] for row in backends()}
    assert {"attend", "dequantize"} <= names
    assert not any("forced" in state for _, _, state in backends())
