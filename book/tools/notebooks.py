"""Run, tidy and check the chapters.

    notebooks.py run   [--to DIR] [files]   execute from scratch, then tidy
    notebooks.py tidy  [files]              normalise without executing; write the install cell
    notebooks.py check [files]              refuse what the book's rules forbid

Without files, all of chapters/. Two runs on one machine give the same bytes, so a
diff of a notebook shows a change of the book and nothing else.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "chapters"

MAX_CODE_LINES = 25
MAX_CELL_BYTES = 300_000
MAX_NOTEBOOK_BYTES = 1_000_000
CELL_TIMEOUT_S = 600

# The cell that installs the package on Colab, from the one address in pyproject.toml.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COLAB = '"google.colab" in sys.modules'
INSTALL = f"""\
# On Colab this installs the book's package; anywhere else it does nothing.
import sys

if {COLAB}:
    %pip install -q "gptoss_lite @ git+{PROJECT["urls"]["Repository"]}\""""

CELL_METADATA = ("mystnb", "tags")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SKIP_TAGS = {"nbval-skip", "skip-execution"}  # skipped by nbval, skipped by nbclient
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
ABSOLUTE_PATH = re.compile(r"(?<![\w./:~-])(?:/(?:home|root|tmp|Users|mnt|content)/\w|[A-Z]:\\\w)")
STAR_IMPORT = re.compile(r"^\s*from\s+\S+\s+import\s+\*", re.MULTILINE)


# --- tidy ---------------------------------------------------------------------------


def tidy(notebook: Any) -> Any:
    """Normalise `notebook` in place: what depends on the run or the editor goes away."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        cell.source = cell.source.rstrip()
        cell.pop("attachments", None)
        if cell.cell_type != "code":
            continue
        if COLAB in cell.source:
            cell.source = INSTALL
        count += 1
        was_run = cell.execution_count is not None or bool(cell.outputs)
        cell.execution_count = count if was_run else None
        cell.outputs = _merge_streams(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            data = output.get("data", {})
            if "data-gl-" in data.get("text/html", ""):
                data.pop(WIDGET_VIEW, None)
    return notebook


def _merge_streams(outputs: list[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream: where it is cut depends on timing."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def dumps(notebook: Any) -> str:
    """Return the notebook's text as git should see it."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


# --- run ----------------------------------------------------------------------------


def run(path: Path, target: Path) -> float:
    """Execute `path` from scratch in its own folder, write it to `target`, return the seconds."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "skip-execution" not in cell.metadata.get("tags", ()):
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
    )
    start = time.perf_counter()
    client.execute(stderr=subprocess.DEVNULL)  # the kernel's own notices, not the cells'
    seconds = time.perf_counter() - start
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(dumps(tidy(notebook)), encoding="utf-8")
    return seconds


# --- check --------------------------------------------------------------------------


def problems(path: Path) -> Iterator[str]:
    """Yield one sentence for each rule that the notebook breaks."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    if len(text.encode()) > MAX_NOTEBOOK_BYTES:
        yield f"{len(text.encode()):,} bytes, more than {MAX_NOTEBOOK_BYTES:,}"
    missing = [i for i, cell in enumerate(notebook.cells) if "id" not in cell]
    if missing:
        yield f"cells {missing} have no id; use nbformat 4.5"
    elif text != dumps(tidy(nbformat.reads(text, as_version=4))):
        yield "is not tidy. Run: python book/tools/notebooks.py tidy"
    identifiers = [cell.get("id") for cell in notebook.cells]
    for identifier in sorted({i for i in identifiers if i and identifiers.count(i) > 1}):
        yield f"two cells have the id {identifier!r}"
    yield from _heading_problems(notebook)
    for index, cell in enumerate(notebook.cells):
        where = f"cell {index} ({cell.get('id', 'no id')})"
        for problem in _text_problems(cell.source):
            yield f"{where}: {problem}"
        if cell.cell_type == "code":
            for problem in _code_problems(cell):
                yield f"{where}: {problem}"


def _heading_problems(notebook: Any) -> Iterator[str]:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^(```|~~~|:::).*?^\1", "", prose, flags=re.MULTILINE | re.DOTALL)
    titles = len(re.findall(r"^# \S", prose, re.MULTILINE))
    if titles != 1:
        yield f"has {titles} titles (`# ...`); a chapter has one"
    if not re.search(r"^## \S", prose, re.MULTILINE):
        yield "has no section (`## ...`); the theme's script needs one"
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "does not begin with its title"


def _text_problems(text: str) -> Iterator[str]:
    if ADDRESS.search(text):
        yield "shows a memory address"
    if ABSOLUTE_PATH.search(text) or str(ROOT) in text:
        yield "shows an absolute path"


def _code_problems(cell: Any) -> Iterator[str]:
    lines = [line for line in cell.source.splitlines() if line.strip()]
    tags = set(cell.metadata.get("tags", ()))
    if len(lines) > MAX_CODE_LINES:
        yield f"{len(lines)} lines of code, more than {MAX_CODE_LINES}; move some to the package"
    if lines and lines[-1].rstrip().endswith(";"):
        yield "ends in `;`; write `_ = ...` or end in plt.show()"
    if COLAB in cell.source and cell.source != INSTALL:
        yield "installs another package than pyproject.toml's Repository; tidy writes the cell"
    if "sys.path" in cell.source:
        yield "edits sys.path"
    if STAR_IMPORT.search(cell.source):
        yield "imports *"
    if len(tags & SKIP_TAGS) == 1:
        yield f"has only one of the tags {sorted(SKIP_TAGS)}"
    if cell.execution_count is None:
        yield "was not executed; run: make notebooks"
    size = len(json.dumps(cell.outputs, ensure_ascii=False).encode())
    if size > MAX_CELL_BYTES:
        yield f"{size:,} bytes of output, more than {MAX_CELL_BYTES:,}"
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags:
            yield f"ends in {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield "writes to stderr"
        data = output.get("data", {})
        if WIDGET_VIEW in data:
            yield "holds a plain widget; on the page it is dead. Use a widget of the package"
        if any(kind.startswith("image/") for kind in data) and not alt:
            yield "shows a picture without alternative text (metadata mystnb.image.alt)"
        for shown in (
            output.get("text", ""),
            data.get("text/plain", ""),
            data.get("text/html", ""),
        ):
            yield from _text_problems(shown)


# --- command line -------------------------------------------------------------------


def shown(path: Path) -> str:
    """Return `path` relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def compared(files: list[Path]) -> tuple[int, int]:
    """Count the cells whose output nbval compares, and all cells that have output."""
    cells = [cell for path in files for cell in nbformat.read(path, as_version=4).cells]
    shows = [cell for cell in cells if cell.cell_type == "code" and cell.outputs]
    ignored = {"nbval-ignore-output", "nbval-skip"}
    return sum(not ignored & set(cell.metadata.get("tags", ())) for cell in shows), len(shows)


def main(argv: list[str] | None = None) -> int:
    """Carry out one command and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "tidy", "check"))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--to", type=Path, help="run: write here and leave the chapters alone")
    options = parser.parse_intermixed_args(argv)
    files = [path.resolve() for path in options.files] or sorted(CHAPTERS.glob("*.ipynb"))
    missing = [shown(path) for path in files if not path.is_file()]
    if missing:
        print(f"notebooks: no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    found = 0
    for path in files:
        if options.command == "run":
            target = options.to / path.name if options.to else path
            print(f"{shown(path)}: {run(path, target):.1f} s", flush=True)
        elif options.command == "tidy":
            path.write_text(dumps(tidy(nbformat.read(path, as_version=4))), encoding="utf-8")
        else:
            for problem in problems(path):
                print(f"{shown(path)}: {problem}")
                found += 1
    if options.command == "check":
        print(f"notebooks: {len(files)} checked, {found} problems")
        strict, shows = compared(files)
        share = f"{strict} of {shows} cells with output are compared"
        print(f"notebooks: {share} ({strict / max(1, shows):.0%})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
