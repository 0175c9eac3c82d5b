"""The claims: complete, each in one chapter, with numbers that are computed or cited."""

import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_lite import claims
from gptoss_lite.errors import GptOssLiteError

ROOT = Path(__file__).resolve().parents[1]
DATA = json.loads((ROOT / "gptoss_lite/data/claims.json").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
CHAPTERS = {path.name[:2] for path in NOTEBOOKS}  # a claim whose chapter is not there is open
# Digits that belong to a name or a date. Every other number of a finding must be a placeholder.
NAMES = re.compile(
    r"GPT-\d|bfloat16|gpt-oss-\d+b|\b(?:20|120)b|Qwen\d(?:\.\d)?(?:-30B-A3B)?|MXFP4|[HA]\d00"
    r"|Gemma \d|T5|Llama-2-13B|o[34]-mini|DeepSeek-V3|AIME 2025|\b20(?:19|2\d)\b|\bC\d\d\b"
)
each = pytest.mark.parametrize("raw", DATA["claims"], ids=lambda raw: raw["id"])


def test_every_claim_once():
    assert [claim.id for claim in claims.load()] == [f"C{n:02d}" for n in range(1, 42)]


def test_the_verdicts():
    assert claims.counts() == {
        "true": 10,
        "true, nuance": 14,
        "imprecise": 7,
        "wrong as stated": 8,
        "opinion": 2,
    }


@each
def test_fields(raw: dict):
    assert set(raw) - {"numbers"} == {"id", "chapter", "claim", "verdict", "finding", "sources"}
    assert raw["chapter"] in CHAPTERS
    assert raw["verdict"] in claims.VERDICTS
    assert raw["sources"]
    assert len(raw["claim"]) < 130
    assert raw["claim"].endswith((".", '".'))


@each
def test_every_number_is_computed_or_cited(raw: dict):
    numbers = raw.get("numbers", {})
    used = {name for _, name, _, _ in string.Formatter().parse(raw["finding"]) if name}
    assert used == set(numbers)
    typed = NAMES.sub("", re.sub(r"\{\w+\}", "", raw["finding"]))
    assert not re.search(r"\d", typed), f"a number typed by hand: {typed}"
    for number in numbers.values():
        assert ("cited" in number) != ("expr" in number)
        assert set(number) <= {"cited", "expr", "as", "from", "where"}
        assert "cited" not in number or number["from"] in raw["sources"]
        assert "from" not in number or number["from"] in raw["sources"]


def test_sources_are_in_the_bibliography():
    bib = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    entries = dict(re.findall(r"@\w+\{(\w+),(.*?)(?=^@|\Z)", bib, re.MULTILINE | re.DOTALL))
    named = {key for raw in DATA["claims"] for key in raw["sources"]}
    assert named == set(DATA["sources"])
    for key, label in DATA["sources"].items():
        year = re.search(r"year *= *\{(\d{4})\}", entries[key])
        assert year is not None
        assert year[1] in label, f"{key}: {label}"


def _finding(id: str) -> str:
    return next(claim.finding for claim in claims.load() if claim.id == id)


@pytest.mark.parametrize(
    ("id", "figures"),
    [
        ("C03", ["20,914,757,184", "1,557,611,200", "13.4", "3,608,307,264", "2.3"]),
        ("C07", ["1,638,400", "0.105%"]),
        ("C09", ["7", "1.702", "0.020", "0.193"]),
        ("C10", ["25%", "50%"]),
        ("C12", ["8 times", "48", "384"]),
        ("C14", ["6.00", "3.00", "131,072"]),
        ("C15", ["0.040%", "0.020%"]),
        ("C16", ["2,880", "2,048", "120", "43", "80"]),
        ("C18", ["24 KiB", "96", "39.0", "56.9"]),
        ("C19", ["3.12%", "6.25%", "5.3"]),
        ("C20", ["1.1", "4", "5.8", "10.7"]),
        ("C22", ["1,536"]),
        ("C24", ["98,304", "12,288", "69,120"]),
        ("C26", ["0.75"]),
        ("C31", ["32", "4.25", "91.4%", "5.26"]),
        ("C32", ["13.76", "12.82", "47,275", "23,701", "2,962"]),
        ("C33", ["60.8", "4.5", "74.5"]),
        ("C34", ["41.8", "233.7", "14.8", "2.7%"]),
    ],
)
def test_numbers_worked_out_by_hand(id: str, figures: list[str]):
    for figure in figures:
        assert figure in _finding(id)


def test_a_box_is_complete_and_escaped(monkeypatch: pytest.MonkeyPatch):
    shown = claims.box("C04", "C06")
    assert shown == claims.box("C04", "C06")
    assert shown.html.count('role="group"') == 2
    assert "<strong>Verdict: wrong as stated.</strong>" in shown._repr_html_()
    assert repr(shown).startswith("Claim C04: ")
    assert "Liu et al. 2025; Raschka 2025." in repr(shown)
    bad = claims.Claim("C01", "00", "<b>", "true", "`a<b` & <i>", (), ("<s>",))
    monkeypatch.setattr(claims, "load", lambda: (bad,))
    page = claims.box("C01").html
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<s>" not in page
    assert "<code>a&lt;b</code> &amp; &lt;i&gt;" in page
    assert "&lt;b&gt;" in claims.table().html


def test_a_table_of_all():
    assert claims.table().html.count("<tr>") == 42
    assert len(repr(claims.table()).splitlines()) == 41


def test_an_unknown_claim_is_explained():
    with pytest.raises(GptOssLiteError, match=r"no claim 'C42'\. They run from C01 to C41"):
        claims.box("C42")


def test_the_ledger_page_is_up_to_date():
    asked = subprocess.run(
        [sys.executable, "book/tools/claims.py", "--check"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_shows_its_claims_and_no_others(path: Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    shown = [
        id
        for call in re.findall(r"claims\.box\(([^)]*)\)", code)
        for id in re.findall(r"C\d\d", call)
    ]
    expected = [claim.id for claim in claims.of_chapter(path.name[:2])]
    assert sorted(shown) == expected, f"{path.name}: show them with claims.box(...)"
