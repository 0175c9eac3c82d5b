"""Settings of the unit tests: one thread, property tests that repeat, the plain operations."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from gptoss_lite import use_backend
from tests import chromium

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

settings.register_profile(
    "small",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("small")


@pytest.fixture
def plain() -> Iterator[None]:
    """Compute with the specification, whatever fast versions this machine has."""
    use_backend("plain")
    yield
    use_backend("auto")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of a process: a second one could not be started."""
    with chromium.launched() as browser:
        yield browser


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests of the site measured, one page or one view a line."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for kind, title in (("row", "the site"), ("view", "the views")):
        rows = [row for report in reports for name, row in report.user_properties if name == kind]
        if rows:
            terminalreporter.section(title)
            _print_table(terminalreporter, rows)


def _print_table(terminalreporter: pytest.TerminalReporter, rows: list[dict[str, object]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([str(row.get(column, "-")) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in [lines[0], *sorted(lines[1:])]:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        terminalreporter.write_line("  ".join(cells))
