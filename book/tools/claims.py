"""Write book/claims.md, the ledger of the claims, from the package's data.

    claims.py           write the page
    claims.py --check   exit with 1 if the page is not what would be written

Run it after a change of the claims, and when a chapter is added to _toc.yml: only chapters in
the table of contents are linked.
"""

import sys
from pathlib import Path

import yaml

from gptoss_lite import claims

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "book" / "claims.md"

HEAD = """\
<!-- Written by book/tools/claims.py from gptoss_lite/data/claims.json; edit those. -->

# Claims ledger

Every claim that started this book, with its verdict and the chapter that decides it.

The occasion was a short retelling of Sebastian Raschka's article {cite}`raschka2025gptoss`. It
makes {total} statements of fact or cause. Each was held against its source, a calculation or an
experiment. "Wrong as stated" is about a statement as it was retold, which is often not how its
source has it. The figures below are computed by the package, or cited from the named source.
"""


def page() -> str:
    """Return the text of the ledger."""
    chapters = _chapters()
    parts = [HEAD.replace("{total}", str(len(claims.load())))]
    parts += ["## Verdicts\n", _verdicts()]
    parts += ["## All claims\n", _table(chapters)]
    parts += ["## What we found\n", *(_finding(claim) for claim in claims.load())]
    return "\n".join(parts)


def _chapters() -> dict[str, str]:
    """Return the number and the path of each chapter in the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    notebooks = [Path(name) for name in files if name.startswith("chapters/")]
    return {path.name[:2]: f"../{path.as_posix()}.ipynb" for path in notebooks}


def _verdicts() -> str:
    rows = [
        f"| {verdict} | {count} | {claims.VERDICTS[verdict]} |"
        for verdict, count in claims.counts().items()
    ]
    return "\n".join(["| verdict | claims | meaning |", "| --- | --- | --- |", *rows, ""])


def _table(chapters: dict[str, str]) -> str:
    rows = [
        f"| {{ref}}`{c.id} <{_label(c)}>` | {c.claim} | {c.verdict} | {_place(c, chapters)} |"
        for c in claims.load()
    ]
    head = ["| | claim | verdict | decided in |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


def _finding(claim: claims.Claim) -> str:
    return (
        f"({_label(claim)})=\n"
        f"**{claim.id}: {claim.verdict}.** *{claim.claim}*\n"
        f"{claim.finding} {{cite}}`{','.join(claim.keys)}`\n"
    )


def _label(claim: claims.Claim) -> str:
    return f"claim-{claim.id.lower()}"


def _place(claim: claims.Claim, chapters: dict[str, str]) -> str:
    return f"[chapter {claim.chapter}]({chapters[claim.chapter]})"


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    text = page()
    if "--check" in arguments:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("book/claims.md is out of date. Run: python book/tools/claims.py", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
