"""The ladder: every rung runs, moves at most two fields, and ends at gpt-oss's switches."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from gptoss_lite import LADDER, PRESETS, Transformer, account, ladder, show_step
from gptoss_lite.errors import ConfigError
from gptoss_lite.ladder import acting_code, changed_fields
from tests.hostile import without_type_checks

SIZES = {
    "vocab_size",
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "d_ff",
    "context",
    "sliding_window",
}
RUNGS = pytest.mark.parametrize("rung", LADDER[:-1], ids=lambda rung: rung.name)


@RUNGS
def test_every_rung_runs_and_has_the_parameters_of_the_account(rung):
    model = Transformer(rung.config).eval()
    tokens = torch.randint(rung.config.vocab_size, (2, 40))
    assert model(tokens).shape == (2, 40, rung.config.vocab_size)
    assert sum(p.numel() for p in model.parameters()) == account.parameters(rung.config)


def test_each_step_changes_what_it_says_and_at_most_two_fields():
    for before, after in pairwise(LADDER):
        changed = changed_fields(before.config, after.config)
        assert set(changed) == set(after.changes)
        assert after is LADDER[-1] or len(changed) <= 2


def test_starts_at_gpt2s_switches():
    start, gpt2 = LADDER[0].config, PRESETS["gpt2"]
    assert set(changed_fields(start, gpt2)) <= SIZES


def test_the_last_step_changes_sizes_only():
    """So the rung before it has gpt-oss's switches, YaRN and experts included."""
    before, last = LADDER[-2].config, LADDER[-1].config
    assert last == PRESETS["gpt-oss-20b"]
    differing = set(changed_fields(before, last)) - SIZES
    assert differing == {"yarn", "moe"}  # whose own switches agree:
    assert before.yarn is not None
    assert last.yarn is not None
    assert before.yarn.truncate == last.yarn.truncate
    assert before.moe is not None
    assert last.moe is not None
    assert before.moe.router_bias == last.moe.router_bias


@pytest.mark.parametrize("i", range(1, len(LADDER) - 1), ids=lambda i: LADDER[i].name)
def test_each_step_changes_what_the_model_computes(i):
    """A rung that gave its predecessor's logits would teach nothing. Three do, by design."""
    before, after = LADDER[i - 1].config, LADDER[i].config
    model = Transformer(before).eval()
    other = Transformer(after).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    shared = {name for name in mine if name in theirs and mine[name].shape == theirs[name].shape}
    for name in shared:
        theirs[name].data.copy_(mine[name].data)
    tokens = torch.randint(before.vocab_size, (1, 100), generator=generator)
    with torch.no_grad():
        same = torch.equal(model(tokens), other(tokens))
    assert same == (LADDER[i].name in {"no dropout", "MXFP4"})


def test_show_step_names_fields_costs_and_code(capsys):
    show_step(LADDER[7], LADDER[8])
    text = capsys.readouterr().out
    assert "sliding_window       None -> 16" in text
    assert "KV bytes at 1,024 tokens" in text
    assert "-49.2%" in text
    assert "attention.py:" in text
    assert "self.window = config.window(layer)" in text


def test_show_step_takes_configs(capsys):
    show_step(PRESETS["gpt-oss-20b"], PRESETS["gpt-oss-120b"])
    text = capsys.readouterr().out
    assert "n_layers             24 -> 36" in text
    assert "20,914,757,184 ->    116,829,156,672  +458.6%" in text


def test_show_step_takes_no_names(capsys):
    message = "A ModelConfig is needed, got 'GPT-2' of type str. Give one of gptoss_lite.PRESETS"
    with without_type_checks(), pytest.raises(ConfigError, match=message):
        show_step("GPT-2", LADDER[2])
    with without_type_checks(), pytest.raises(ConfigError, match="got 'RoPE' of type str"):
        show_step(LADDER[1], "RoPE")
    assert capsys.readouterr().out == ""


def test_every_field_that_the_model_reads_is_found():
    """A field whose lines cannot be found would leave its chapter without code to show."""
    described_elsewhere = {"vocab_size", "dtype", "norm_eps"}
    # A rotation has no table, so no part of gpt-oss is built from the context.
    config_of = {"context": PRESETS["gpt2"]}
    for field in fields(PRESETS["gpt-oss-20b"]):
        if field.name not in described_elsewhere:
            config = config_of.get(field.name, PRESETS["gpt-oss-20b"])
            assert acting_code(config, (field.name,)), field.name


@pytest.mark.parametrize("i", range(1, len(LADDER)), ids=lambda i: LADDER[i].name)
def test_the_code_shown_is_of_parts_that_the_rung_has(i):
    """A line of a class that is not built acts on nothing."""
    rung = LADDER[i]
    with torch.device("meta"):
        built = {type(module).__name__ for module in Transformer(rung.config).modules()}
    for name, is_built in ladder._BUILT_IF.items():
        assert is_built(rung.config) == (name in built), name
    shown = acting_code(rung.config, rung.changes)
    assert shown
    assert any("yarn_ramp" in line for line in shown) <= (rung.config.yarn is not None)
    table = "torch.empty(config.context"
    assert any(table in line for line in shown) <= (rung.config.positions == "learned")
