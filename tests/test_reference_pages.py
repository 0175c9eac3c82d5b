"""The reference pages: made from the package, or held against it."""

import copy
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gptoss_lite
from gptoss_lite import PRESETS, ModelConfig, account, exercises, experiments_data

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"


def _extension() -> ModuleType:
    path = BOOK / "_ext" / "gptoss_reference.py"
    spec = importlib.util.spec_from_file_location("gptoss_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gptoss_reference"] = module
    spec.loader.exec_module(module)
    return module


reference = _extension()


def _rows(markdown: str, first: str) -> list[list[str]]:
    """Return the rows of the one table whose first heading is `first`."""
    (table,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[- |]+\n((?:\|.*\n)+)", markdown, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


# --- notation ------------------------------------------------------------------------------------

NOTATION = (BOOK / "notation.md").read_text(encoding="utf-8")
FILES = {
    "GPT-2": PRESETS["gpt2-xl"].to_hf(),
    "gpt-oss": PRESETS["gpt-oss-20b"].to_hf(),
    "gpt-oss, `original/`": PRESETS["gpt-oss-20b"].to_original(),
    "Qwen3-MoE": PRESETS["qwen3-30b-a3b"].to_hf(),
}
TABLES = {
    "field": ("GPT-2", "gpt-oss", "Qwen3-MoE"),
    "YaRN and others": ("gpt-oss", "gpt-oss, `original/`"),
}
NAMED = [
    pytest.param(row[0].strip("`"), file, key.strip("`"), id=f"{row[0]} {file}".replace("`", ""))
    for first, files in TABLES.items()
    for row in _rows(NOTATION, first)
    for file, key in zip(files, row[1:], strict=True)
    if key != "–"
]


def _another(value: Any) -> Any:
    """Return a value that the key could have instead."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return ["full_attention"] * len(value)
    if isinstance(value, dict):
        return None
    if isinstance(value, str):
        return {"bfloat16": "float32", "float32": "bfloat16"}[value]
    return 5 if value is None else value * 2


def _get(config: ModelConfig, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("field", "file", "key"), NAMED)
def test_a_key_of_config_json_changes_its_field(field: str, file: str, key: str):
    raw = copy.deepcopy(FILES[file])
    before = _get(ModelConfig.from_hf(raw), field)
    inner, *path = reversed(key.split("."))
    target = raw
    for part in reversed(path):
        target = target[part]
    assert inner in target, f"the file has no key {key}"
    target[inner] = _another(target[inner])
    if key == "num_hidden_layers":
        raw.pop("layer_types", None)  # its length must fit, and its absence means S and F in turn
    assert _get(ModelConfig.from_hf(raw), field) != before


def test_the_notation_names_the_keys_that_published_files_lack():
    keys = {row[2].strip("`") for row in _rows(NOTATION, "field")} - {"–"}
    lacking = keys - experiments_data.published_config()["config"].keys()
    (said,) = re.findall(r"published files: gpt-oss's `(\w+)` and `(\w+)`", NOTATION)
    assert set(said) == lacking


def test_every_field_is_in_the_notation():
    named = {row[0].strip("`") for first in TABLES for row in _rows(NOTATION, first)}
    decided = re.search(r"are in no file.*?ladder\.", NOTATION, re.DOTALL)
    assert decided is not None
    named |= set(re.findall(r"`([\w.]+)`", decided[0]))
    assert named == set(reference.fields())


def test_other_keys_of_the_original_config_are_those_of_the_hub():
    renamed = {row[2].strip("`") for row in _rows(NOTATION, "YaRN and others")}
    assert set(FILES["gpt-oss, `original/`"]) - renamed <= set(FILES["gpt-oss"])


def test_the_headings_name_the_files():
    for first, files in TABLES.items():
        assert f"| {first} | {' | '.join(files)} |" in NOTATION


def test_the_letters_are_those_of_the_code():
    for letter, name, _ in _rows(NOTATION, "letter"):
        field = name.strip("`")
        known = {"q_per_kv", "n_experts", "n_active", *ModelConfig.__dataclass_fields__}
        assert not field or field in known, letter


# --- made pages ----------------------------------------------------------------------------------


def test_every_mark_is_known_and_used():
    marks = [m for page in BOOK.glob("*.md") for m in reference.PLACE.findall(page.read_text())]
    assert sorted(marks) == sorted(reference.MADE)


def test_a_mark_is_filled():
    source = ["before\n<!-- made here: cards -->\nafter"]
    reference.fill(None, "book/configs", source)
    assert source[0].startswith("before\n::::{grid}")
    assert source[0].endswith("\nafter")
    unmarked = ["# A page\n"]
    reference.fill(None, "book/intro", unmarked)
    assert unmarked == ["# A page\n"]


def test_cards_say_what_the_presets_say():
    text = reference.cards()
    assert text.count("{grid-item-card}") == 4
    for key in reference.LEDGER_MODELS:
        assert f"{account.parameters(PRESETS[key]):,}" in text
        assert f"{account.weight_bytes(PRESETS[key]):,}" in text
    said = reference.summary(PRESETS["gpt-oss-20b"])
    assert said["attention"] == (
        "64 heads of 64 on 8 kv heads; 12 of 24 layers see 128 tokens; sinks"
    )
    assert said["positions"] == "RoPE, base 150,000, YaRN x 32 from 4,096; context 131,072"
    assert said["biases"] == "attention, feed-forward, router"
    assert said["as published"] == "12.82 GiB, MXFP4 experts, the rest bfloat16"
    old = reference.summary(PRESETS["gpt2-xl"])
    assert old["attention"] == "25 heads of 64"
    assert old["positions"] == "a learned table of 1,024"
    assert old["dropout"] == "0.1"
    assert reference.summary(PRESETS["qwen3-30b-a3b"])["biases"] == "none"


def test_side_by_side_has_every_field():
    table = reference.side_by_side()
    for name in reference.fields():
        assert f"| `{name}` |" in table


def test_the_first_section_of_the_api_is_the_package():
    text = (BOOK / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   ~gptoss_lite\.[\w.]+\.(\w+)$", text, re.M)
    listed += re.findall(r"py:data:: gptoss_lite\.(\w+)", text)
    modules = {"account", "mxfp4"}  # documented as modules
    assert sorted(listed) == sorted(set(gptoss_lite.__all__) - modules)


def test_the_api_documents_modules_that_exist():
    text = (BOOK / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"automodule:: (\S+)", text)
    assert len(set(documented)) == len(documented)
    for name in documented:
        assert importlib.util.find_spec(name) is not None
    # A page of a site must be built everywhere: nothing here needs a GPU or a front end.
    assert not [name for name in documented if "kernels" in name or "widgets" in name]


def test_docstrings_become_restructured_text():
    lines = ["Take `x | y` and *rows, `` b ``", ">>> a | b", "1 * 2", "", "<|end|> ` z`"]
    reference.as_rst(None, "module", "m", None, None, lines)
    assert lines == [
        "Take ``x | y`` and \\*rows, ``b``",
        ">>> a | b",
        "1 * 2",
        "",
        "<\\|end\\|> ``z``",
    ]
    lines = ["Do it.", "", "Returns:", "    Keys: a, b."]
    reference.as_rst(None, "function", "f", None, None, lines)
    assert lines[3] == "    : Keys: a, b."


def test_a_property_is_a_sentence():
    lines = ["Where it is: here."]
    reference.as_rst(None, "property", "p", None, None, lines)
    lines[:] = ["here.", "", ":type: Where it is"]  # what napoleon makes of it
    reference.restore(None, "property", "p", None, None, lines)
    assert lines == ["Where it is: here."]
    kept = ["Do it."]
    reference.restore(None, "function", "f", None, None, kept)
    assert kept == ["Do it."]


def test_the_glossary_is_in_order_and_closed():
    text = (BOOK / "glossary.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"```\{glossary\}\n(.*?)```", text, re.DOTALL)
    terms = re.findall(r"^(\S.*)$", body, re.M)
    assert terms == sorted(terms, key=str.lower)
    linked = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", body)
    assert set(linked) <= set(terms)


def test_tensor_names_of_one_layer():
    text = reference.tensors()
    for row in (
        "| `blocks.N.attn.q.weight` | `h.N.attn.c_attn.weight` | 1,600 × 4,800 |",
        "| `blocks.N.attn.sinks` | `model.layers.N.self_attn.sinks` | 64 |",
        "| `blocks.N.ffn.router.bias` | `block.N.mlp.gate.bias` | 32 |",
        "| `embed.weight` | `model.embed_tokens.weight` | 151,936 × 2,048 |",
    ):
        assert row in text
    assert "experts.127.up_proj.weight` (256 tensors)" in text
    assert not re.search(r"(?:blocks|layers|block|h)\.\d", text)


def test_every_exercise_has_its_solution_on_the_page():
    text = reference.solutions()
    folder = ROOT / "gptoss_lite" / "exercises"
    chapters = [path.stem for path in folder.glob("ch*.py")]
    for chapter in chapters:
        for number in (1, 2, 3):
            one = exercises.exercise(f"{chapter}.ex{number}")
            assert text.count(f"### {one.id}: ") == 1
            assert one.stub_source() in text
            assert one.solution_source() in text
    assert text.count("````{dropdown} Solution") == 3 * len(chapters)
    assert "Chapter 01: " in text
    assert "](../chapters/01_gpt2.ipynb)" in text
    assert "```" not in "".join(  # it would end the fold
        exercises.exercise(f"{c}.ex{n}").solution_source() for c in chapters for n in (1, 2, 3)
    )


def test_the_bibliography_is_complete():
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@(\w+)\{(\w+),(.*?)^\}", text, re.M | re.DOTALL)
    keys = [key for _, key, _ in entries]
    assert len(set(keys)) == len(keys) == text.count("\n@")
    for kind, key, body in entries:
        given = dict(re.findall(r"^  (\w+) *= \{(.*)\},$", body, re.M))
        assert {"author", "title", "year"} <= set(given), key
        assert kind in ("misc", "article", "inproceedings", "techreport"), key
        assert re.fullmatch(r"20\d\d", given["year"]), key
        if "eprint" in given:
            assert given["archivePrefix"] == "arXiv"
            assert given["url"] == f"https://arxiv.org/abs/{given['eprint']}", key
