"""The ledger row of every chapter, against numbers that were worked out by hand."""

import re

import pytest

from gptoss_lite.errors import ConfigError
from gptoss_lite.ladder import show_ledger

# gpt2-xl, gpt-oss-20b, gpt-oss-120b, qwen3-30b-a3b
REFERENCE = {
    "parameters": ["1,557,611,200", "20,914,757,184", "116,829,156,672", "30,532,122,624"],
    "active parameters per token": [
        "1,555,972,800",
        "3,608,307,264",
        "5,132,849,472",
        "3,041,867,776",
    ],
    "weights in bfloat16, GiB": ["2.90", "38.96", "217.61", "56.87"],
    "weights as published, GiB": ["5.80", "12.82", "60.77", "56.87"],
    "KV cache, KiB per new token": ["300.00", "24.00", "36.00", "96.00"],
    "KV cache at 4,096 tokens, GiB": ["1.17", "0.10", "0.15", "0.38"],
    "matrices, GFLOP per token": ["3.11", "7.21", "10.26", "6.08"],
    "attention at 4,096, GFLOP": ["1.26", "0.83", "1.25", "3.22"],
}


def test_every_row_of_the_four_models(capsys: pytest.CaptureFixture[str]):
    show_ledger()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["gpt2-xl", "gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b"]
    rows = {line[:30].strip(): line[30:].split() for line in lines[:-2]}
    assert rows == REFERENCE
    assert lines[-1] == "gpt2-xl reads at most 1,024 tokens; the rows at 4,096 are arithmetic."
    assert max(map(len, lines)) <= 94, "wider than the page"


def test_the_models_can_be_chosen(capsys: pytest.CaptureFixture[str]):
    show_ledger("gpt-oss-20b", "gpt2")
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["gpt-oss-20b", "gpt2"]
    assert "gpt2 reads at most" in out
    assert "gpt-oss-20b reads" not in out


def test_a_model_that_is_no_preset_is_refused_before_anything_is_printed(capsys):
    message = "There is no preset 'nope'. Use one of gpt2, gpt2-medium, "
    with pytest.raises(ConfigError, match=re.escape(message)):
        show_ledger("gpt2", "nope")
    assert capsys.readouterr().out == ""
