"""A headless Chromium for the tests of the site, and the accessibility checker axe-core.

The tests that use it carry the marker `site` and run with `make test-site`. Asked for, they
fail where something is missing: a check that was skipped has checked nothing.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
DESKTOP, PHONE = (1280, 900), (390, 844)


def executable(which: Callable[[str], str | None] = shutil.which) -> str:
    """Return the path of a Chromium, or fail with one sentence."""
    found = next(filter(None, map(which, NAMES)), None)
    if found is None:
        pytest.fail(
            "No Chromium on this machine: install it (Debian, Ubuntu: apt install chromium) "
            f"or put a browser named {', '.join(NAMES[:-1])} on the PATH.",
            pytrace=False,
        )
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """Start the browser and end it."""
    if importlib.util.find_spec("playwright") is None:
        pytest.fail("playwright is not installed; `make test-site` installs it.", pytrace=False)
    from playwright.sync_api import sync_playwright

    path = executable()
    with sync_playwright() as driver:
        # a container's root has no sandbox
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def axe_source() -> str:
    """Return axe-core, which comes with a package, as a script."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.fail(
            "axe-playwright-python is not installed; `make test-site` installs it.", pytrace=False
        )
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def violations(page: Any, *rules: str) -> list[str]:
    """Return what axe finds wrong, by all rules or some: rule, impact, and the first elements."""
    if not page.evaluate("typeof axe === 'object' && !!axe.run"):
        page.evaluate(axe_source())
    found = page.evaluate(
        """only => axe.run(document, {
             runOnly: only, resultTypes: ['violations'], preload: false })""",
        {"type": "rule" if rules else "tag", "values": rules or RULES},
    )
    assert found["testEngine"]["name"] == "axe-core"
    return [
        f"{rule['id']} ({rule['impact']}, {len(rule['nodes'])}): {node['html'][:160]}"
        f" | {_details(node)}"
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]


def _details(node: dict[str, Any]) -> str:
    return " ".join((node.get("failureSummary") or "").split())[:260]


class Watched:
    """A page, with every request that left the machine and everything the console said."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.outside: list[str] = []
        self.console: list[str] = []
        page.on("request", lambda request: self._saw(request.url))
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("dialog", lambda dialog: self.console.append(dialog.message))

    def _saw(self, url: str) -> None:
        if not url.startswith(("file:", "blob:", "data:")):
            self.outside.append(url)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.console.append(message.text)

    def until(self, expression: str) -> None:
        """Wait for something; Playwright's own waiting needs eval, which a saved file forbids."""
        for _ in range(300):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true: {expression}")

    def settle(self) -> None:
        """Wait for the next drawing."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def size(self, size: tuple[int, int]) -> None:
        """Give the window another size."""
        self.page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        self.settle()
