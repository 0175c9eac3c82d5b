"""Check the built site: every link, id, file and alternative text; nothing loaded from outside.

Usage: `check_site.py _build/html`.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "source": ("src", "srcset"),
    "embed": ("src",),
    "object": ("data",),
}
# What a browser fetches for <link>; canonical, search and next are only statements.
LINK_LOADS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "manifest",
}
CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")
SCRIPT_LOAD = re.compile(
    r"""(?:\bimport\s*\(?|\bfrom\s*|\bfetch\s*\(|\.src\s*=|\bimportScripts\s*\()\s*["'`](https?:)?//"""
)
FILE_NAME = re.compile(r"\.(png|svg|jpe?g|gif|webp)$|^\S*[/\\]\S*$", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """What one page defines, links to and loads."""

    path: Path
    ids: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str | None]] = field(default_factory=list)
    inline: list[tuple[str, str]] = field(default_factory=list)
    widgets: int = 0

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._inside = ""
        self.feed(self.path.read_text(encoding="utf-8"))

    def has(self, fragment: str) -> bool:
        """Say whether `#fragment` leads somewhere; the top of a page always does."""
        return fragment in ("", "top") or unquote(fragment) in self.ids

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one element."""
        attributes = {name: value or "" for name, value in attrs}
        self._inside = tag if tag in ("script", "style") else ""
        if identifier := attributes.get("id"):
            self.ids[identifier] += 1
        if "data-gl-widget" in attributes:
            self.widgets += 1
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
            if name := attributes.get("name"):
                self.ids[name] += 1
        if tag == "link" and LINK_LOADS & set(attributes.get("rel", "").lower().split()):
            self.loads.append(attributes.get("href", ""))
        for name in LOADS.get(tag, ()):
            if value := attributes.get(name):
                self.loads += (
                    [part.split()[0] for part in value.split(",") if part.strip()]
                    if name == "srcset"
                    else [value]
                )
        if tag == "img":
            has_alt = any(name == "alt" for name, _ in attrs)
            self.pictures.append(
                (attributes.get("src", ""), attributes["alt"] if has_alt else None)
            )
        if "style" in attributes:
            self.inline.append(("style", attributes["style"]))

    def handle_endtag(self, tag: str) -> None:
        """Leave a script or style."""
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        """Keep the text of scripts and styles."""
        if self._inside:
            self.inline.append((self._inside, data))


def outside(address: str) -> bool:
    """Say whether loading `address` would leave the site."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ws", "wss", "ftp")


class Site:
    """All pages of one folder, and the problems found in them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.pages = {
            path: Page(path)
            for path in sorted(self.root.rglob("*.html"))
            if "_static" not in path.relative_to(self.root).parts
        }
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter(pages=len(self.pages))

    def check(self) -> None:
        """Fill `problems` and `counts`."""
        for page in self.pages.values():
            self._links(page)
            self._loads(page)
            self._pictures(page)
            self.counts["widgets"] += page.widgets
        for sheet in sorted(self.root.rglob("*.css")):
            self.counts["style sheets"] += 1
            for address in _css_addresses(sheet.read_text(encoding="utf-8", errors="replace")):
                self._load(sheet, address)
        self._unused_scripts()

    def _say(self, path: Path, text: str) -> None:
        self.problems.append(f"{path.relative_to(self.root)}: {text}")

    def _resolve(self, base: Path, address: str) -> Path:
        path = unquote(urlsplit(address).path)
        return base if not path else Path((base.parent / path).as_posix()).resolve()

    def _links(self, page: Page) -> None:
        for href in page.links:
            parts = urlsplit(href)
            if parts.scheme or parts.netloc:
                self.counts["outside links"] += 1
                continue
            self.counts["inside links"] += 1
            target = self._resolve(page.path, href)
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                self._say(page.path, f"link to a missing file: {href}")
            elif target in self.pages and not self.pages[target].has(parts.fragment):
                self._say(page.path, f"link to a missing id: {href}")
        for identifier, times in page.ids.items():
            if times > 1:
                self._say(page.path, f"id {identifier!r} is defined {times} times")

    def _loads(self, page: Page) -> None:
        for address in page.loads:
            self._load(page.path, address)
        for kind, text in page.inline:
            if kind == "style":
                for address in _css_addresses(text):
                    self._load(page.path, address)
            elif SCRIPT_LOAD.search(text):
                self._say(page.path, "a script in the page loads something from outside")

    def _load(self, base: Path, address: str) -> None:
        if not address or address.startswith(("data:", "blob:", "#", "about:")):
            return
        self.counts["loads"] += 1
        if outside(address):
            self._say(base, f"loads from outside: {address}")
        elif not self._resolve(base, address).is_file():
            self._say(base, f"loads a missing file: {address}")

    def _pictures(self, page: Page) -> None:
        for source, alt in page.pictures:
            self.counts["pictures"] += 1
            if alt is None:
                self._say(page.path, f"picture without alternative text: {source}")
            elif FILE_NAME.search(alt.strip()):
                self._say(page.path, f"alternative text is a file name: {alt}")

    def _unused_scripts(self) -> None:
        """Check the scripts that pages load; those that nothing loads do not matter."""
        used = {
            self._resolve(page.path, address)
            for page in self.pages.values()
            for address in page.loads
            if not outside(address) and urlsplit(address).path.endswith(".js")
        }
        for script in sorted(path for path in used if path.is_file()):
            self.counts["scripts"] += 1
            text = script.read_text(encoding="utf-8", errors="replace")
            if script.name == "gl-widgets.js" and SCRIPT_LOAD.search(text):
                self._say(script, "a widget loads something from outside")


def _css_addresses(text: str) -> list[str]:
    return [(a or b).strip() for a, b in CSS_URL.findall(text)]


def main(argv: list[str] | None = None) -> int:
    """Print problems and counts; return 1 if there was a problem."""
    arguments = sys.argv[1:] if argv is None else argv
    root = Path(arguments[0] if arguments else "_build/html")
    if not (root / "index.html").is_file():
        print(f"check_site: {root} holds no index.html. Run `make book`.", file=sys.stderr)
        return 1
    site = Site(root)
    site.check()
    for problem in site.problems:
        print(problem)
    counted = ", ".join(f"{number} {name}" for name, number in site.counts.items())
    print(f"check_site: {counted}; {len(site.problems)} problems")
    return 1 if site.problems else 0


if __name__ == "__main__":
    sys.exit(main())
