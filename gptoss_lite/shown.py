"""What a call leaves in a page: HTML for a notebook, plain text for a terminal."""

import html
import re
from dataclasses import dataclass

# Inherited colors only, so that it reads the same on a light and on a dark page.
BOX = "border:1px solid;border-radius:6px;padding:0.5em 1em;margin:0.5em 0"


@dataclass(frozen=True)
class Shown:
    """Something to display as the last line of a cell; the same bytes on every run."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def inline(text: str) -> str:
    """Escape a sentence for HTML, and set what stands in `backticks` as code.

    Example:
        >>> inline("`a < b` & c")
        '<code>a &lt; b</code> &amp; c'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def code(source: str) -> str:
    """Return a block of code for HTML."""
    return f"<pre><code>{html.escape(source)}</code></pre>"


def folded(summary: str, body: str) -> str:
    """Return HTML that opens on a click or the Enter key, without scripts.

    Args:
        summary: the visible line, as text.
        body: what it opens, as HTML.
    """
    return f"<details><summary>{inline(summary)}</summary>{body}</details>"


def box(label: str, body: str) -> str:
    """Return a framed piece of a page that screen readers announce by its label."""
    return (
        f'<div class="gl-box" role="group" aria-label="{html.escape(label)}" style="{BOX}">'
        f"{body}</div>"
    )
