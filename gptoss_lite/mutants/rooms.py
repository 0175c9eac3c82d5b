"""The museum as a page shows it: a card for each exhibit, and a table of everything else."""

import html
import re

from gptoss_lite.mutants.catalog import EXHIBITS, OTHERS, PARTS, REFERENCE, Mutant
from gptoss_lite.mutants.hostile import TOLERANCE
from gptoss_lite.mutants.measure import LAZY, caught, damage
from gptoss_lite.shown import Shown, box, inline


def room(part: str) -> Shown:
    """Return the exhibits of one part, each with its damage.

    Args:
        part: a key of `PARTS`.
    """
    exhibits = [one for one in EXHIBITS if one.part == part]
    return Shown("".join(map(_card, exhibits)), "\n\n".join(map(_text, exhibits)))


def storage() -> Shown:
    """Return a table of the mistakes that are no exhibits."""
    head = ("mistake", "part", "moves the logits by", "under the lazy test", "which")
    rows = [
        (one.name, PARTS[one.part], moved(damage(one)), moved(damage(one, LAZY)), _verdict(one))
        for one in OTHERS
    ]
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows)
    lines = [f"{n:<45} {p:<16} {strict:>8} {lazy:>9}  {v}" for n, p, strict, lazy, v in rows]
    grid = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
    return Shown(box("More mistakes", grid), "\n".join(lines))


def moved(difference: float) -> str:
    """Write how far logits moved, to one digit; below the tolerance of parity it is rounding.

    Example:
        >>> moved(3.14), moved(0.00042), moved(3e-8)
        ('3', '0.0004', 'nothing')
    """
    if difference < TOLERANCE:
        return "nothing"
    digits = f"{difference:.0e}"  # one digit and its power of ten
    return f"{float(digits):.{max(0, -int(digits[2:]))}f}"


def _verdict(one: Mutant) -> str:
    return "sees it" if caught(one, LAZY) else "misses it"


def _lines(one: Mutant) -> tuple[tuple[str, str], ...]:
    strict, lazy = moved(damage(one)), moved(damage(one, LAZY))
    return (
        ("In public", one.seen),
        ("Hides from", one.hides),
        ("Damage", f"{strict} in the logits; {lazy} in the lazy test, which {_verdict(one)}."),
    )


def _card(one: Mutant) -> str:
    lines = "<br>".join(f"<em>{label}:</em> {_linked(text)}" for label, text in _lines(one))
    return box(
        one.name, f"<p><strong>{html.escape(one.name)}.</strong> {inline(one.what)}<br>{lines}</p>"
    )


def _text(one: Mutant) -> str:
    return "\n".join([f"{one.name}: {one.what}", *(f"  {a}: {text}" for a, text in _lines(one))])


def _linked(text: str) -> str:
    """Set a sentence, its references to GitHub as links (an issue's address finds pulls, too)."""

    def link(match: re.Match[str]) -> str:
        repository, number = match[0].split("#")
        return f'<a href="https://github.com/{repository}/issues/{number}">{match[0]}</a>'

    return REFERENCE.sub(link, inline(text))
