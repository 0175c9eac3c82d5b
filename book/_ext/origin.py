"""Where the checkout came from, if that is GitHub: links and the site's address depend on it."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def github_repository(origin: str) -> str:
    """Return "owner/name" of a GitHub address, or nothing if it is elsewhere.

    Example:
        >>> github_repository("git@github.com:someone/book.git")
        'someone/book'
        >>> github_repository("https://example.org/someone/book")
        ''
    """
    match = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", origin.strip())
    return match[1] if match else ""


def this_repository() -> str:
    """Return "owner/name" of this checkout's origin, or nothing."""
    asked = subprocess.run(
        ["git", "config", "--get", "remote.origin.url"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return github_repository(asked.stdout)


def published_repository() -> str:
    """Return "owner/name" of the repository that a chapter installs the package from on Colab."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return github_repository(project["urls"]["Repository"])
