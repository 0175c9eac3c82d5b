"""What the site says of itself: descriptions, a card for links to it, a 404 page, a site map.

Some of it needs the address under which the site will stand. That is the environment variable
`BOOK_URL`, or else the GitHub Pages address of the checkout's origin. Without an address the
site still says what each page is about, and leaves out what would have to be invented: canonical
links, the picture of the card (which must be absolute) and the site map.
"""

import html
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from docutils import nodes
from origin import this_repository
from sphinx.application import Sphinx
from sphinx.config import Config

CARD = "_static/card.png"  # drawn by book/tools/card.py
CARD_ALT = (
    "Two stacks of parts side by side: GPT-2 of 2019 and gpt-oss of 2025, with a ladder between."
)
ABOUT = (
    "One small Transformer turns from GPT-2 into gpt-oss, a switch at a time, and every step is "
    "checked by running it."
)
LENGTH = 200
STYLE = """
:root { color-scheme: light dark; }
body { max-width: 40rem; margin: 0 auto; padding: 2rem 1rem; font: 1.1rem/1.6 system-ui, sans-serif;
  color: #1b1f24; background: #fff; }
a { color: #0a58ca; } li { padding: 0.2rem 0; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e8eb; background: #16181c; } a { color: #8ab8ff; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{head}<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def pages_address(repository: str) -> str:
    """Return the GitHub Pages address of "owner/name", or nothing for nothing.

    Example:
        >>> pages_address("someone/book")
        'https://someone.github.io/book/'
        >>> pages_address("Someone/someone.github.io")
        'https://someone.github.io/'
    """
    if not repository:
        return ""
    owner, name = repository.lower().split("/")
    home = f"https://{owner}.github.io/"
    return home if name == f"{owner}.github.io" else f"{home}{repository.split('/')[1]}/"


def add_address(app: Sphinx, config: Config) -> None:
    """Learn where the site will stand; Sphinx then adds canonical links."""
    address = os.environ.get("BOOK_URL") or config.html_baseurl or pages_address(this_repository())
    config.html_baseurl = f"{address.rstrip('/')}/" if address else ""


def shortened(text: str, length: int = LENGTH) -> str:
    """Return `text` on one line, cut after a word.

    Example:
        >>> shortened("one  two three", 9)
        'one two …'
    """
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1].rsplit(' ', 1)[0]} …"


def description(doctree: nodes.document | None) -> str:
    """Return the first paragraph of running text that holds no formula."""
    if doctree is None:
        return ABOUT
    for paragraph in doctree.findall(nodes.paragraph):
        if not isinstance(paragraph.parent, nodes.section):
            continue
        if next(paragraph.findall(nodes.math), None) is None and len(paragraph.astext()) > 40:
            return shortened(paragraph.astext())
    return ABOUT


def tags(title: str, about: str, project: str, address: str, page: str) -> str:
    """Return the elements of a page's head that say what it is."""
    said = {
        "og:title": title,
        "og:description": about,
        "og:type": "website" if page == "index.html" else "article",
        "og:site_name": project,
        "og:locale": "en",
    }
    if address:
        said |= {
            "og:url": urljoin(address, page),
            "og:image": urljoin(address, CARD),
            "og:image:width": "1200",
            "og:image:height": "630",
            "og:image:alt": CARD_ALT,
        }
    named = {"description": about, "twitter:card": "summary_large_image" if address else "summary"}
    return "".join(
        f'<meta {kind}="{name}" content="{html.escape(value)}">\n'
        for kind, group in (("name", named), ("property", said))
        for name, value in group.items()
    )


def describe_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Put the tags into one page."""
    title = re.sub(r"<[^>]+>", "", html.unescape(context.get("title") or app.config.project))
    parts = (title, description(doctree), app.config.project, app.config.html_baseurl)
    context["metatags"] = f"{context.get('metatags', '')}\n{tags(*parts, f'{page}.html')}"


def finish_site(app: Sphinx, error: Exception | None) -> None:
    """Write the pages that belong to no chapter."""
    if error is not None or app.builder.format != "html":
        return
    out, address, project = Path(app.outdir), app.config.html_baseurl, app.config.project
    home = app.config.root_doc
    (out / "index.html").write_text(
        PAGE.format(
            title=html.escape(project),
            head=f'<meta http-equiv="refresh" content="0; url={home}.html">\n'
            + tags(project, ABOUT, project, address, "index.html"),
            style=STYLE,
            body=f'<h1>{html.escape(project)}</h1>\n<p><a href="{home}.html">Open the book</a></p>',
        ),
        encoding="utf-8",
    )
    titles = {name: node.astext() for name, node in app.env.titles.items()}
    # The page is served at any depth, so with an address its links are absolute.
    links = "\n".join(
        f'<li><a href="{urljoin(address, f"{name}.html")}">{html.escape(titles[name])}</a></li>'
        for name in (home, *sorted(name for name in titles if name != home))
        if name == home or name.startswith("chapters/")
    )
    (out / "404.html").write_text(
        PAGE.format(
            title=f"Page not found - {html.escape(project)}",
            head='<meta name="robots" content="noindex">\n',
            style=STYLE,
            body="<h1>This page is not in the book</h1>\n<p>It may have been renamed. These are "
            f"there:</p>\n<ul>\n{links}\n</ul>",
        ),
        encoding="utf-8",
    )
    if address:
        places = "".join(
            f"<url><loc>{html.escape(urljoin(address, f'{name}.html'))}</loc></url>\n"
            for name in sorted(titles)
        )
        (out / "sitemap.xml").write_text(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}</urlset>\n',
            encoding="utf-8",
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", add_address)
    app.connect("html-page-context", describe_page, priority=900)
    app.connect("build-finished", finish_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
