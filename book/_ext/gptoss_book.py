"""The book's Sphinx extension: page widgets, repository buttons, and repairs.

**Page widgets.** A widget of the package leaves this in the page, whether or not a
kernel is near:

    <div class="gl-widget" data-gl-widget="NAME" data-gl-state="{JSON}"><p>sentence</p>...</div>

This extension packs the drawing modules `gptoss_lite/widgets/assets/NAME.js` (and
`NAME.css`; `_kit.js` and `_kit.css` are shared by all) once into `_static/gl-widgets.js`
and adds that script to the pages that hold a widget. There it starts each module with
the state from the page, through the same model contract that anywidget uses beside a
live kernel. Module files do not load from a page opened as a file; a `blob:` import
does, hence the packing.
"""

import json
import re
from pathlib import Path
from typing import Any

from origin import published_repository, this_repository
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "gptoss_lite" / "widgets" / "assets"
SCRIPT = "gl-widgets.js"
SIDE_BAR = 'class="bd-sidebar-primary bd-sidebar"'
EMPTY_HEAD = re.compile(r'<th class="head[^"]*">\s*(?:<p>\s*</p>)?\s*</th>')
RUNTIME = ASSETS / "_page.js"
LOGGER = logging.getLogger(__name__)


def pack(assets: Path) -> str:
    """Return the page script: the runtime with every module and style sheet inside it."""
    modules = {path.stem: path.read_text(encoding="utf-8") for path in sorted(assets.glob("*.js"))}
    styles = {path.stem: path.read_text(encoding="utf-8") for path in sorted(assets.glob("*.css"))}
    modules.pop(RUNTIME.stem, None)
    runtime = RUNTIME.read_text(encoding="utf-8")
    return runtime.replace("/*MODULES*/ {}", json.dumps(modules, sort_keys=True)).replace(
        "/*STYLES*/ {}", json.dumps(styles, sort_keys=True)
    )


def finish_site(app: Sphinx, error: Exception | None) -> None:
    """Write the packed script once the pages are there, and name the theme's side bar."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    (static / SCRIPT).write_text(pack(ASSETS), encoding="utf-8")
    for path in Path(app.outdir).rglob("*.html"):
        # Its title and search field belong to no landmark, so a screen reader's map lacks them.
        page = path.read_text(encoding="utf-8")
        if SIDE_BAR in page:
            named = f'{SIDE_BAR} role="complementary" aria-label="Book"'
            path.write_text(page.replace(SIDE_BAR, named, 1), encoding="utf-8")


def finish_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Add the page script where it is needed, and take Thebe's scripts out."""
    scripts = context.get("script_files")
    if scripts is not None:
        # sphinx-thebe puts its settings on every page, twice, although Thebe is off;
        # the second copy is a syntax error. In place: Sphinx keeps this very list.
        scripts[:] = [script for script in scripts if "thebe" not in _described(script).lower()]
    if "citation-list" in context.get("body", ""):
        # docutils 0.21 writes roles that ARIA has since dropped; a reader hears a broken list.
        for role in (' role="list"', ' role="doc-biblioentry"'):
            context["body"] = context["body"].replace(role, "")
    # The corner above a column of row names heads nothing.
    context["body"] = EMPTY_HEAD.sub("<td></td>", context.get("body", ""))
    if "data-gl-widget=" in context.get("body", ""):
        app.add_js_file(SCRIPT, loading_method="defer")


def _described(script: Any) -> str:
    attributes = getattr(script, "attributes", {})
    return f"{getattr(script, 'filename', script)} {attributes.get('body', '')}"


def add_repository(app: Sphinx, config: Config) -> None:
    """Point the repository's buttons at the checkout's origin, if it is on GitHub.

    A fork then links to itself, and a copy without an origin shows no dead buttons. A chapter on
    Colab installs the package from the Repository of pyproject.toml, so the Colab button is there
    only where that is the origin: a page never opens one repository and installs another.
    """
    repository = this_repository()
    if not repository:
        return
    launch = {
        "binderhub_url": "https://mybinder.org",  # builds what binder/ says
        "notebook_interface": "jupyterlab",
        "thebe": False,
    }
    published = published_repository()
    if repository.lower() == published.lower():
        launch["colab_url"] = "https://colab.research.google.com"
    else:
        LOGGER.info(
            "No Colab button: the origin is %s, and the chapters install %s. Set Repository in "
            "pyproject.toml and run: python book/tools/notebooks.py tidy",
            repository,
            published,
        )
    config.html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": launch,
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", add_repository)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", finish_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
