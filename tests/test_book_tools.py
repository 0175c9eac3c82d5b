"""The tools that build and check the book see what they are meant to see."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import chromium

ROOT = Path(__file__).resolve().parents[1]


def _module(path: str) -> ModuleType:
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


notebooks = _module("book/tools/notebooks.py")
check_site = _module("book/tools/check_site.py")
origin = _module("book/_ext/origin.py")  # the next two import it by name
extension = _module("book/_ext/gptoss_book.py")
site = _module("book/_ext/gptoss_site.py")


# --- notebooks.py -------------------------------------------------------------------


def _notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    first = new_markdown_cell("# Title\n\nA sentence.\n\n## Section", id="first")
    return notebooks.tidy(new_notebook(cells=[first, *cells]))


def _code(source: str = "print(1)", outputs: tuple = (), **metadata: object):
    return new_code_cell(
        source, id="code", execution_count=7, outputs=list(outputs), metadata=metadata
    )


def _found(tmp_path: Path, notebook: nbformat.NotebookNode) -> str:
    path = tmp_path / "chapter.ipynb"
    path.write_text(notebooks.dumps(notebook))
    return "\n".join(notebooks.problems(path))


PICTURE = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
WIDGET = {"model_id": "1f", "version_major": 2, "version_minor": 0}


def test_a_good_notebook_passes(tmp_path: Path):
    shown = _code(outputs=(PICTURE,), mystnb={"image": {"alt": "A line."}})
    assert _found(tmp_path, _notebook(shown)) == ""


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (lambda: _code("x = 1\n" * 26), "26 lines of code"),
        (lambda: _code("plt.plot(x);"), "ends in `;`"),
        (lambda: _code("import sys\nsys.path.append('..')"), "edits sys.path"),
        (lambda: _code("from math import *"), "imports *"),
        (lambda: _code(tags=["nbval-skip"]), "only one of the tags"),
        (lambda: new_code_cell("print(1)", id="code"), "was not executed"),
        (lambda: _code(outputs=(PICTURE,)), "without alternative text"),
        (lambda: _code(outputs=(new_output("error", ename="KeyError"),)), "ends in KeyError"),
        (lambda: _code(outputs=(new_output("stream", name="stderr", text="!"),)), "to stderr"),
        (
            lambda: _code(outputs=(new_output("stream", text="<A at 0x7f12ab34>"),)),
            "memory address",
        ),
        (lambda: _code(outputs=(new_output("stream", text="in /tmp/x"),)), "absolute path"),
        (
            lambda: _code(
                outputs=(new_output("display_data", data={notebooks.WIDGET_VIEW: WIDGET}),)
            ),
            "plain widget",
        ),
        (lambda: _code(outputs=(new_output("stream", text="x" * 300_001),)), "bytes of output"),
        (lambda: new_markdown_cell("# Another title", id="second"), "2 titles"),
    ],
)
def test_each_rule_is_seen(tmp_path: Path, cell: Callable[[], nbformat.NotebookNode], problem: str):
    assert problem in _found(tmp_path, _notebook(cell()))


def test_stripped_outputs_are_seen(tmp_path: Path):
    notebook = _notebook(_code())
    notebook.cells[1].execution_count = None
    assert "was not executed" in _found(tmp_path, notebook)


def test_the_install_cell_comes_from_one_address(tmp_path: Path):
    """A fork sets `Repository` in pyproject.toml, and `tidy` writes the cell of each chapter."""
    address = notebooks.PROJECT["urls"]["Repository"]
    assert f'"gptoss_lite @ git+{address}"' in notebooks.INSTALL
    other = notebooks.INSTALL.replace(address, "https://github.com/someone/else")
    assert _notebook(_code(other)).cells[1].source == notebooks.INSTALL
    stale = _notebook(_code(notebooks.INSTALL))
    stale.cells[1].source = other
    assert "installs another package" in _found(tmp_path, stale)
    for path in sorted(notebooks.CHAPTERS.glob("*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
        assert cells.count(notebooks.INSTALL) == 1, path.name
        assert "git+" not in "".join(cell for cell in cells if cell != notebooks.INSTALL)


def test_tidy_is_stable_and_removes_what_the_run_left():
    stream = [new_output("stream", text="a"), new_output("stream", text="b")]
    ours = [
        new_output("display_data", data={notebooks.WIDGET_VIEW: WIDGET, "text/html": saved})
        for saved in ('<div data-gl-widget="rope"></div>', "<div data-gl-live></div>")
    ]
    notebook = new_notebook(
        cells=[_code(outputs=(*stream, *ours), collapsed=True)],
        metadata={"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.11"}},
    )
    once = notebooks.dumps(notebooks.tidy(notebook))
    assert notebooks.dumps(notebooks.tidy(nbformat.reads(once, as_version=4))) == once
    cell = json.loads(once)["cells"][0]
    assert cell["execution_count"] == 1
    assert cell["outputs"][0]["text"] == ["ab"]
    for output in cell["outputs"][1:]:
        assert list(output["data"]) == ["text/html"]
    assert cell["metadata"] == {}
    assert "widgets" not in once
    assert "3.11" not in once


# --- check_site.py ------------------------------------------------------------------


def _site(tmp_path: Path, body: str) -> list[str]:
    (tmp_path / "other.html").write_text('<h1 id="there">x</h1>')
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    site = check_site.Site(tmp_path)
    site.check()
    return site.problems


def test_a_good_page_passes(tmp_path: Path):
    body = (
        '<a href="other.html#there">in</a><a href="https://example.org">out</a>'
        '<link rel="canonical" href="https://example.org/x"><img src="data:," alt="A dot">'
    )
    assert _site(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="none.html">x</a>', "missing file: none.html"),
        ('<a href="other.html#nowhere">x</a>', "missing id: other.html#nowhere"),
        ('<p id="a"></p><p id="a"></p>', "'a' is defined 2 times"),
        ('<script src="https://example.org/a.js"></script>', "loads from outside"),
        ('<script src="//example.org/a.js"></script>', "loads from outside"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "loads from outside"),
        ('<link rel="preconnect" href="https://example.org">', "loads from outside"),
        ('<style>p { background: url("https://example.org/a.png") }</style>', "from outside"),
        ('<style>@import "https://example.org/a.css";</style>', "from outside"),
        ('<p style="background: url(https://example.org/a.png)"></p>', "from outside"),
        ('<script>import("https://example.org/a.js")</script>', "loads something from outside"),
        ('<script>s.src = "https://example.org/a.js"</script>', "loads something from outside"),
        ('<img src="data:,">', "without alternative text"),
        ('<img src="data:," alt="../_images/ab12.png">', "is a file name"),
        ('<img src="gone.png" alt="A dot">', "loads a missing file"),
    ],
)
def test_each_fault_of_a_page_is_seen(tmp_path: Path, body: str, problem: str):
    assert problem in "\n".join(_site(tmp_path, body))


# --- the Sphinx extension -----------------------------------------------------------


def test_pack_without_widgets(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        script = extension.pack(folder)
        assert "const MODULES = {};" in script
        assert "const STYLES = {};" in script


def test_pack_is_sorted_and_whole(tmp_path: Path):
    (tmp_path / "b.js").write_text("export default {};")
    (tmp_path / "a.js").write_text('export default { render() { return "é\\n"; } };')
    (tmp_path / "a.css").write_text(".a {}")
    script = extension.pack(tmp_path)
    packed = script.split("const MODULES = ")[1].split(";\n")[0]
    modules = json.loads(packed)
    assert list(modules) == ["a", "b"]
    assert modules["a"] == (tmp_path / "a.js").read_text()
    assert script == extension.pack(tmp_path)


def test_only_pages_with_a_widget_get_the_script():
    added: list[str] = []
    app = SimpleNamespace(add_js_file=lambda name, **_: added.append(name))
    extension.finish_page(app, "a", "page.html", {"body": "<p>text</p>"}, None)
    assert added == []
    extension.finish_page(app, "b", "page.html", {"body": '<div data-gl-widget="x">'}, None)
    assert added == ["gl-widgets.js"]


def test_thebe_scripts_go_in_place():
    keep = SimpleNamespace(filename="theme.js", attributes={})
    drop = SimpleNamespace(filename=None, attributes={"body": "const THEBE_JS_URL = 1"})
    scripts = [drop, keep, SimpleNamespace(filename="sphinx-thebe.js", attributes={})]
    extension.finish_page(None, "a", "page.html", {"script_files": scripts, "body": ""}, None)
    assert scripts == [keep]


@pytest.mark.parametrize(
    ("origin_is", "buttons"),
    [
        ("", None),
        ("gptoss/book", {"binderhub_url", "colab_url", "notebook_interface", "thebe"}),
        ("fork/book", {"binderhub_url", "notebook_interface", "thebe"}),
    ],
)
def test_the_colab_button_opens_what_the_chapters_install(monkeypatch, origin_is, buttons):
    monkeypatch.setattr(extension, "this_repository", lambda: origin_is)
    monkeypatch.setattr(extension, "published_repository", lambda: "GPToss/book")
    config = SimpleNamespace(html_theme_options={})
    extension.add_repository(None, config)
    options = config.html_theme_options
    assert set(options.get("launch_buttons", ())) == (buttons or set())
    if buttons:
        assert options["repository_url"] == f"https://github.com/{origin_is}"
    assert origin.published_repository() == origin.github_repository(
        notebooks.PROJECT["urls"]["Repository"]
    )


# --- gptoss_site.py -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:Someone/book.git", "https://someone.github.io/book/"),
        ("https://github.com/someone/book\n", "https://someone.github.io/book/"),
        ("https://github.com/someone/someone.github.io", "https://someone.github.io/"),
        ("https://example.org/someone/book.git", ""),
        ("", ""),
    ],
)
def test_the_address_of_the_site(remote: str, address: str):
    assert site.pages_address(origin.github_repository(remote)) == address


def test_a_description_is_running_text_without_formulas():
    document = nodes.document(None, None)
    section = nodes.section("", nodes.title("", "Title"))
    document += section
    for paragraph in (
        nodes.paragraph("", "short"),
        nodes.paragraph("", "", nodes.math("", "x^2"), nodes.Text("is a formula " * 9)),
        nodes.paragraph("", "", nodes.Text("this text  says\nwhat the page is about " * 9)),
    ):
        section += paragraph
    said = site.description(document)
    assert said.startswith("this text says what the page is about this")
    assert said.endswith(" …")
    assert len(said) <= site.LENGTH
    assert site.description(None) == site.ABOUT


def test_tags_invent_no_address():
    page = 'a/"b".html'
    without = site.tags('A "title" <x>', "about", "Book", "", page)
    assert "&quot;title&quot; &lt;x&gt;" in without
    assert "http" not in without
    assert "og:image" not in without
    there = site.tags("T", "about", "Book", "https://example.org/book/", "chapters/x.html")
    assert '"https://example.org/book/chapters/x.html"' in there
    assert '"https://example.org/book/_static/card.png"' in there


def test_an_empty_corner_is_no_header():
    corner = (
        '<tr class="row-odd"><th class="head"><p></p></th>\n<th class="head"><p>x</p></th></tr>'
    )
    assert extension.EMPTY_HEAD.sub("<td></td>", corner).count("<th") == 1


def test_the_card_is_there_and_has_the_size_it_claims():
    data = (ROOT / "book" / site.CARD).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1200, 630)
    assert len(data) < 100_000


def test_without_a_browser_one_sentence_says_so():
    with pytest.raises(pytest.fail.Exception, match="No Chromium on this machine"):
        chromium.executable(lambda name: None)
    assert chromium.executable({"google-chrome": "there"}.get) == "there"
