"""Copy MathJax into book/_static, so that no page asks another site for it.

The files come from the installed package sphinx-mathjax-offline (MathJax 3.2.2,
Apache-2.0). Only the one combined component and its fonts are taken: 1.6 MB of
24. Their hash is checked, so a changed package cannot change the book unseen.
"""

import hashlib
import shutil
import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "sphinx-mathjax-offline"
WANTED = ("tex-chtml.js", "output/chtml/fonts/woff-v2/")
SHA256 = "a91e90e13db532fbd9ea0c1e356f6c57171983582a7db6f6b75e71a4e5e64ee1"
TARGET = Path(__file__).resolve().parents[1] / "_static" / "mathjax"


def installed_files() -> dict[str, Path]:
    """Return the wanted files of the installed package: path below MathJax's folder -> file."""
    found = {}
    for entry in metadata.files(PACKAGE) or []:
        _, marker, inside = entry.as_posix().partition("/static/mathjax/")
        if marker and inside.startswith(WANTED):
            found[inside] = Path(str(entry.locate()))
    return dict(sorted(found.items()))


def digest(files: dict[str, Path]) -> str:
    """Return one hash over the names and contents of `files`."""
    total = hashlib.sha256()
    for name, path in files.items():
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def main() -> int:
    """Copy the files unless they are there already; return the exit status."""
    try:
        files = installed_files()
    except metadata.PackageNotFoundError:
        print(f"vendor: {PACKAGE} is not installed. Run `make setup`.", file=sys.stderr)
        return 1
    present = {
        path.relative_to(TARGET).as_posix(): path
        for path in sorted(TARGET.rglob("*"))
        if path.is_file()
    }
    if digest(present) == SHA256:
        print(f"vendor: MathJax is in place ({len(present)} files)")
        return 0
    if digest(files) != SHA256:
        print(
            f"vendor: the MathJax files of {PACKAGE} are not the expected ones "
            f"(hash {digest(files)}, expected {SHA256}). Check the pinned version.",
            file=sys.stderr,
        )
        return 1
    shutil.rmtree(TARGET, ignore_errors=True)
    for name, path in files.items():
        (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, TARGET / name)
    print(f"vendor: copied MathJax ({len(files)} files)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
