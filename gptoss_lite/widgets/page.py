"""Widgets that outlive their kernel: live in a notebook, drawn again in a page without one."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import numpy as np
from traitlets import Any as Anything
from traitlets import Int, List, Unicode

from gptoss_lite.errors import ShapeError

ASSETS = Path(__file__).with_name("assets")

# One file: nothing may be loaded, and the browser is told so.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; "
    "img-src blob: data:"
)
_FILE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 56rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ position: absolute; clip-path: inset(50%); }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{widget}
</main>
<script>
{script}
</script>
</body>
</html>
"""


def module_source(view: str) -> str:
    """Return the ES module that draws a view: the shared style and kit, then its own file."""
    style = f"const CSS = {json.dumps(_asset('_kit.css'))};"
    return "\n".join((style, _asset("_kit.js"), _asset(f"{view}.js")))


def page_script(view: str) -> str:
    """Return the script that starts one view in a page without a kernel."""
    modules = {name: _asset(f"{name}.js") for name in ("_kit", view)}
    script = _asset("_page.js").replace("/*MODULES*/ {}", json.dumps(modules))
    script = script.replace("/*STYLES*/ {}", json.dumps({"_kit": _asset("_kit.css")}))
    return script.replace("</", "<\\/")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


class PageWidget(anywidget.AnyWidget):
    """A figure with all its data in traits and all its drawing in one ES module.

    A running notebook shows the widget itself, and its selection can be read back and observed
    in Python. Its saved output is HTML with the same data, a sentence with the finding and a small
    table: a published page starts the drawing from it, and where scripts are stripped the sentence
    and the table remain. That HTML holds no ids, times or addresses, so it is the same in each run.

    A view sets `view`, the name of its module, `_esm = module_source(view)`, its traits, and
    `options`, those that say where to start, and has a method `figure(ax=None)` that draws the same
    with matplotlib, for print.

    Attributes:
        title: names the model and says where the data come from.
        summary: the finding in a sentence or two, with its numbers.
        rows: the finding as a table, the most telling row first.
    """

    view: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    rows_shown: ClassVar[int] = 6  # of the table, where scripts are stripped

    title = Unicode().tag(sync=True)
    summary = Unicode().tag(sync=True)
    rows = List()

    # ipywidgets 7 would display itself without the HTML; IPython then asks for the bundle below.
    _ipython_display_ = None

    def select(self, **options: Any) -> None:
        """Set where to start.

        Raises:
            TypeError: a name that is none of `options`.
        """
        if wrong := [name for name in options if name not in self.options]:
            raise TypeError(f"{self.view} has no option {wrong[0]!r}. Use {list(self.options)}.")
        for name, value in options.items():
            setattr(self, name, value)

    def describe(self) -> str:
        """Say what is shown, and the finding, on one line."""
        return f"{self.title}. {self.summary}"

    def table(self) -> list[dict[str, Any]]:
        """Return the finding as rows, the most telling first."""
        return self.rows

    def state(self) -> dict[str, Any]:
        """Return what a page needs to draw: every trait of the view, bytes as base64."""
        inherited = anywidget.AnyWidget.class_trait_names()
        names = [name for name in self.trait_names(sync=True) if name not in inherited]
        return {name: _plain(getattr(self, name)) for name in names if not name.startswith("_")}

    def html(self) -> str:
        """Return the saved form: data in attributes, and what a reader sees without scripts."""
        state = json.dumps(self.state(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return (
            f'<div class="gl-widget" data-gl-widget="{_escape(self.view)}" '
            f'data-gl-state="{_escape(state)}">'
            f"<p>{_escape(self.describe())}</p>{_html_table(self.table()[: self.rows_shown])}</div>"
        )

    def save(self, path: str | Path) -> Path:
        """Write one HTML file with the data and the drawing in it; it loads nothing."""
        path = Path(path)
        parts = {
            "policy": _POLICY,
            "title": _escape(self.title),
            "widget": self.html(),
            "script": page_script(self.view),
        }
        path.write_text(_FILE.format(**parts), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return self.describe()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/plain": self.describe(), "text/html": self.html()}, metadata


class TextView(PageWidget):
    """A view of a recorded text, or of a part of it.

    Attributes:
        layer, token: the selection; `token` counts positions of the whole text.
        tokens: those that are kept.
        first: position of the first of them.
        text: names the whole text; on a page the views of one text move together.
    """

    layer = Int(0).tag(sync=True)
    token = Int(0).tag(sync=True)
    tokens = List(Unicode()).tag(sync=True)
    first = Int(0).tag(sync=True)
    text = Unicode().tag(sync=True)
    recording = Anything()


def kept(tokens: Sequence[str], first: int = 0, stride: int = 1) -> dict[str, Any]:
    """Return the traits of a `TextView` that keeps every so many tokens, from the first on."""
    text = hashlib.sha256("\0".join(tokens).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return {"tokens": list(tokens[first::stride]), "first": first, "text": text}


def told(n_tokens: int, first: int = 0, of: str = "") -> str:
    """Say how many tokens something is about; only the last, if `first` are left out."""
    which = "the last " if first else "the " if of else ""
    return f"{which}{n_tokens} token{'s' * (n_tokens != 1)}{of}"


# --- numbers as bytes ----------------------------------------------------------------------------


def to_bytes(array: np.ndarray, dtype: str) -> bytes:
    """Return an array's values as little-endian bytes, row after row."""
    return np.ascontiguousarray(array).astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def from_bytes(data: bytes, dtype: str, *shape: int) -> np.ndarray:
    """Read back what `to_bytes` wrote."""
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def require(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
    """Refuse a recording that lacks an array a view draws, or holds nothing or no numbers in it.

    Raises:
        ShapeError: with the missing names, or the array that is empty or holds NaN.
    """
    if missing := [name for name in names if name not in arrays]:
        raise ShapeError(
            f"This recording has no {missing}, only {sorted(arrays)}. Record it again with "
            "gptoss_lite.recording.record."
        )
    for name in names:
        if not arrays[name].size:
            raise ShapeError(f"{name} is empty: this recording has no tokens. Record a text.")
        if np.isnan(arrays[name]).any():
            raise ShapeError(f"{name} holds NaN, so there is nothing to draw. Check the weights.")


def origin(about: Mapping[str, Any]) -> str:
    """Say which model a recording comes from, and whether its weights mean anything."""
    return f"{about['model']}, {'synthetic' if about['synthetic'] else 'recorded'}"


def percent(part: float | np.floating) -> str:
    """Show a share as whole percents."""
    return f"{100 * part:.0f}%"


# --- HTML ----------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    return value


def _escape(value: object) -> str:
    # half of a surrogate pair cannot be written to a file
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    text = html.escape(text).replace("\n", "&#10;")
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{_escape(value)}</td>' for value in row.values())}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
