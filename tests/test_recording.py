"""Recordings and the figures drawn from them."""

import copy
import errno
import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gptoss_lite import Transformer, load_tokenizer, record, trace, viz
from gptoss_lite.bench import bytes_read_per_token, measure, measured_bandwidth
from gptoss_lite.config import MoEConfig
from gptoss_lite.errors import CheckpointError, ShapeError
from gptoss_lite.presets import GPT_OSS_NANO
from gptoss_lite.recording import Recording
from gptoss_lite.viz.grid import printable
from gptoss_lite.viz.routing import expert_weights
from tests.hostile import GPT2, hostile

mpl.use("Agg")
CONFIG = GPT_OSS_NANO.but(n_layers=3, d_model=64, d_ff=32, moe=MoEConfig(7, 3, True), n_heads=6)
IDS = list(range(5, 98))  # longer than the window


@pytest.fixture(scope="module")
def model() -> Transformer:
    return hostile(CONFIG)


@pytest.fixture(scope="module")
def run(model):
    return record(model, load_tokenizer("gpt-oss-nano"), IDS)


def test_shapes_and_facts(run):
    shapes = {name: array.shape for name, array in run.arrays.items()}
    T = len(IDS)
    assert shapes == {
        "sink": (3, 6),
        "sink_mass": (3, 6, T),
        "lse": (3, 6, T),
        "router_logits": (3, T, 7),
        "expert_idx": (3, T, 3),
        "expert_w": (3, T, 3),
        "token_ids": (T,),
    }
    assert run.about["window"] == [32, None, 32]
    assert run.about["synthetic"]
    assert len(run.about["tokens"]) == T


def test_sink_mass_is_what_the_rows_of_probabilities_lack(model, run):
    with trace(model, "probs") as t, torch.no_grad():
        model(torch.tensor([IDS]))
    missing = 1 - torch.cat(t.per_layer("probs")).sum(-1)
    np.testing.assert_allclose(run.arrays["sink_mass"], missing, atol=1e-6)


def test_sink_mass_follows_from_lse_and_sink(run):
    """So a page can move the sinks without the model."""
    sink, lse = run.arrays["sink"].astype(float), run.arrays["lse"].astype(float)
    again = 1 / (1 + np.exp(lse - sink[:, :, None]))
    np.testing.assert_allclose(again, run.arrays["sink_mass"], atol=1e-6)


def test_routing_is_the_models(run):
    logits, ids = run.arrays["router_logits"], run.arrays["expert_idx"]
    np.testing.assert_array_equal(np.argsort(-logits, axis=-1)[:, :, :3], ids)
    weights = expert_weights(run, 1)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert ((weights > 0).sum(-1) == 3).all()


def test_saved_file_reads_back(run, tmp_path):
    path = run.save(tmp_path / "run.safetensors")
    assert list(tmp_path.iterdir()) == [path]
    again = Recording.load(path)
    assert again.about == run.about
    assert set(again.arrays) == set(run.arrays)
    for name, array in run.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_a_path_that_cannot_be_written_is_told_and_nothing_is_left(run, tmp_path, monkeypatch):
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_text("mine")
    os.mkfifo(pipe)
    for path, message in (
        (tmp_path / "no" / "run", r"no.run cannot be written: No such file .* Name a file in a fo"),
        (file / "run", "run cannot be written: Not a directory"),
        (tmp_path / ("x" * 300), "x cannot be written: File name too long"),
        (tmp_path, "is a folder: name a file to write"),
        ("", r"^\. is a folder: name a file to write"),
        (pipe, "is no plain file: name a file to write"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run.save(path)
        assert sorted(tmp_path.iterdir()) == [file, pipe]
    assert pipe.is_fifo()

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match=r"file cannot be written: .*No space left"):
        run.save(file)
    assert sorted(tmp_path.iterdir()) == [file, pipe]
    assert file.read_text() == "mine"


@pytest.mark.parametrize("damaged", ["norm.weight", "unembed.weight", "blocks.1.attn.o.weight"])
def test_a_broken_model_is_not_recorded(model, damaged):
    broken = copy.deepcopy(model)
    broken.state_dict()[damaged].flatten()[3] = torch.nan
    with pytest.raises(ShapeError, match="numbers are not finite: its weights are damaged"):
        record(broken, load_tokenizer("gpt-oss-nano"), IDS)


def test_an_expert_that_only_earlier_tokens_meet_is_seen_to_be_broken(model, run):
    chosen = run.arrays["expert_idx"][-1]  # in the last layer, after which no position looks back
    (expert, *_) = set(chosen[:-1].flatten().tolist()) - set(chosen[-1].tolist())
    broken = copy.deepcopy(model)
    broken.state_dict()["blocks.2.ffn.down.bias"][expert] = torch.nan
    with pytest.raises(ShapeError, match="numbers are not finite"):
        record(broken, load_tokenizer("gpt-oss-nano"), IDS)


def test_other_files_are_no_recordings(run, tmp_path):
    with pytest.raises(CheckpointError, match="There is no recording at"):
        Recording.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    save_file({"x": np.zeros(2)}, tmp_path / "weights")
    for name in ("text", "weights"):
        with pytest.raises(CheckpointError, match="is no recording"):
            Recording.load(tmp_path / name)
    newer = Recording(run.arrays, {**run.about, "schema": 99}).save(tmp_path / "newer")
    with pytest.raises(CheckpointError, match="has schema 99, not 1"):
        Recording.load(newer)


def test_a_model_without_sinks_or_experts_is_refused():
    with pytest.raises(ShapeError, match="Only a model with sinks and experts"):
        record(hostile(GPT2), load_tokenizer("gpt-oss-nano"), [1, 2])


# --- figures --------------------------------------------------------------------------------------


def drawn(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_figures_draw_the_recorded_numbers(run):
    mass = run.arrays["sink_mass"]
    np.testing.assert_allclose(drawn(viz.sink_by_head(run)), mass.mean(-1))
    np.testing.assert_allclose(drawn(viz.sink_by_position(run)), mass.mean(1))
    np.testing.assert_allclose(drawn(viz.sink_by_position(run, layer=2)), mass[2])
    np.testing.assert_allclose(drawn(viz.routing(run, layer=0)), expert_weights(run, 0).T)
    np.testing.assert_allclose(drawn(viz.routing(run, 0, first=9)), expert_weights(run, 0).T[:, 9:])
    load = drawn(viz.expert_load(run))
    np.testing.assert_allclose(load.mean(-1), 1)  # the even split is the unit
    plt.close("all")


def test_figures_draw_where_they_are_told_and_say_which_layers_slide(run):
    fig, ax = plt.subplots()
    assert viz.sink_by_head(run, ax=ax) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0 S", "1 F", "2 S"]
    plt.close(fig)


def test_the_first_token_drawn_is_the_first_labelled(run):
    short = viz.sink_by_position(run, first=60)
    assert short.get_xticklabels()[0].get_text() == printable(run.about["tokens"][60])
    long = viz.sink_by_position(run, first=5)  # too many to label: positions instead
    assert long.get_xticklabels()[0].get_text() == "5"
    plt.close("all")


def test_tokens_that_look_like_mathematics_or_markup_are_drawn_as_text(run):
    run.about["tokens"][:4] = ["$x^", "<script>", "\n", "\\frac{"]
    ax = viz.routing(run, layer=0)
    ax.figure.draw_without_rendering()
    assert printable("$x^") == r"\$x^"
    plt.close("all")


# --- bench ----------------------------------------------------------------------------------------


def test_bytes_per_token_are_the_used_weights_and_the_cache(model):
    """Counted by hand from the tensors: all but the embedding and the idle experts."""
    used = 0
    for name, parameter in model.named_parameters():
        if name == "embed.weight":
            continue
        is_expert = ".ffn.up." in name or ".ffn.down." in name  # biases, too
        used += parameter.nbytes * (3 / 7 if is_expert else 1)
    T = 50
    cache = 2 * 2 * 32 * 4 * (T + 2 * min(T, 32))  # k and v, 2 heads of 32, float32, by layer
    assert bytes_read_per_token(model, T) == pytest.approx(used + cache, rel=1e-4)


def test_measure_reports_what_it_did(model):
    result = measure(model, prompt_tokens=3, new_tokens=2).to_dict()
    assert result["prompt_tokens"] == 3
    assert result["dtype"] == "float32"
    assert result["peak_memory_bytes"] > 10**6


def test_bandwidth_is_of_this_world():
    assert 1e8 < measured_bandwidth(torch.device("cpu")) < 1e13
