"""Random checkpoints of true shapes: complete or absent, marked, loaded by transformers too."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gptoss_lite as gl
from gptoss_lite import cli, synthetic
from gptoss_lite.config import ModelConfig, MoEConfig
from gptoss_lite.errors import CheckpointError, ConfigError
from gptoss_lite.headers import read_folder
from gptoss_lite.presets import GPT_OSS_20B, GPT_OSS_NANO
from gptoss_lite.synthetic import is_synthetic, write_synthetic

# all sizes differ; the blocks straddle no file boundary by accident
ODD = GPT_OSS_NANO.but(n_layers=3, d_model=96, d_ff=64, moe=MoEConfig(5, 3, True), vocab_size=301)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_it_loads_is_marked_and_its_logits_are_of_order_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_synthetic(ODD, tmp_path / "noise", progress=False)
    assert folder == tmp_path / "noise"
    assert [path.name for path in tmp_path.iterdir()] == ["noise"]
    assert is_synthetic(folder)
    mark = json.loads((folder / "synthetic.json").read_text())
    assert (mark["synthetic"], mark["layers"], mark["vocab"], mark["seed"]) == (True, 3, 301, 0)
    assert json.loads((folder / "config.json").read_text()) == ODD.to_hf()  # as published
    assert "random weights" in (folder / "README.md").read_text()
    model = gl.load(folder, device="cpu", progress=False)
    assert model.config == ODD
    with torch.no_grad():
        logits = model(torch.arange(300)[None])  # past the window and the trained context
    assert logits.isfinite().all()
    assert 0.1 < logits.float().std() < 100
    assert cli.main(["inspect", str(folder)]) == 0
    assert "layout: Hugging Face, MXFP4 experts" in capsys.readouterr().out


@pytest.mark.parametrize("original", [False, True])
def test_fewer_layers_and_tokens_of_a_preset(tmp_path: Path, original: bool) -> None:
    folder = write_synthetic(
        "gpt-oss-nano", tmp_path / "n", layers=2, vocab=77, original=original, progress=False
    )
    config = ModelConfig.from_hf(folder)
    assert (config.n_layers, config.vocab_size) == (2, 77)
    assert is_synthetic(folder)
    gl.load(folder, device="cpu", progress=False)


def test_shapes_of_the_published_files_are_planned_to_the_byte() -> None:
    """Without writing 13.8 GB: the plan of the whole model, against the published total."""
    tensors = synthetic._in_published_order(synthetic.gpt_oss(GPT_OSS_20B))
    assert len(tensors) == 459
    assert sum(map(synthetic._n_bytes, tensors.values())) == 13_761_264_768
    shards = synthetic._dealt(tensors, synthetic.SHARD_BYTES)
    assert len(shards) == 3
    assert list(tensors)[-3:] == [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    layers = [synthetic._layer_of(name) for name in tensors]
    assert layers == [*sorted(layers[:-3]), "", "", ""]


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    one, same, other = (
        files(write_synthetic(ODD, tmp_path / name, seed=seed, progress=False))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one == same
    weights = [name for name in one if name.endswith(".safetensors")]
    assert all(one[name] != other[name] for name in weights)


def test_experts_use_all_codes_and_no_scale_is_nan(tmp_path: Path) -> None:
    folder = write_synthetic(ODD, tmp_path / "noise", progress=False)
    model = gl.load(folder, device="cpu", progress=False)
    up = model.blocks[1].ffn.up
    assert len(up.blocks.unique()) == 256
    assert set(up.scales.unique().tolist()) == set(range(*synthetic.SCALE_BYTES))
    rows = up.blocks.flatten(0, 2).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_transformers_reads_it_as_we_do(tmp_path: Path) -> None:
    """The parity tests compare tightly; here the files are what is tested: names, order, bytes."""
    transformers = pytest.importorskip("transformers")
    folder = write_synthetic(ODD, tmp_path / "noise", progress=False)
    _compare(transformers, folder, ODD)


@pytest.mark.slow
def test_transformers_reads_true_widths(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_synthetic(
        "gpt-oss-20b", tmp_path / "noise", layers=2, vocab=4_096, progress=False
    )
    _compare(transformers, folder, ModelConfig.from_hf(folder))
    shutil.rmtree(folder)


def _compare(transformers: Any, folder: Path, config: ModelConfig) -> None:
    decode = transformers.Mxfp4Config(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=decode
    ).eval()
    ours = gl.load(folder, device="cpu", dtype=torch.float32, progress=False)
    tokens = torch.arange(40)[None] % config.vocab_size
    with torch.no_grad():
        want, got = theirs(tokens).logits, ours(tokens)
    # Both in float32; a wrong name or a swapped pair of rows moves logits by their own size.
    assert (got - want).abs().max() < 1e-3 * want.std()


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2 * 10**9))
    with pytest.raises(CheckpointError, match=r"would take 13\.8 GB and 2\.0 GB are free there"):
        write_synthetic("gpt-oss-20b", tmp_path / "big", progress=False)
    assert not list(tmp_path.iterdir())


def _breaking(problem: BaseException, after: int) -> Any:
    """Return a stand-in for the source of numbers that fails in the middle of a file."""
    whole = synthetic._Noise.of

    def of(self: Any, name: str, spec: Any) -> Iterator[memoryview]:
        self.given = getattr(self, "given", 0) + 1
        if self.given > after:
            raise problem
        yield from whole(self, name, spec)

    return of


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(synthetic._Noise, "of", _breaking(full, after=30))
    with pytest.raises(CheckpointError, match=r"became full while 0\.0 GB were being written"):
        write_synthetic(ODD, tmp_path / "noise", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 20, 58])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(synthetic._Noise, "of", _breaking(KeyboardInterrupt(), after))
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(ODD, tmp_path / "noise", progress=False)
    assert not list(tmp_path.iterdir())


def test_the_next_call_clears_up_after_a_killed_one(tmp_path: Path) -> None:
    abandoned = tmp_path / ".noise.writing-killed"
    (abandoned / "checkpoint").mkdir(parents=True)
    (abandoned / "checkpoint" / "model-00000-of-00004.safetensors").write_bytes(b"half")
    neighbor = tmp_path / ".noise2.writing-x"
    neighbor.mkdir()
    (tmp_path / "noise").mkdir()  # empty, so allowed
    write_synthetic(ODD, tmp_path / "noise", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".noise2.writing-x", "noise"]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("gpt-oss-20", '"gpt-oss-20" is no preset. Use gpt-oss-20b, gpt-oss-120b or a config.'),
        ("gpt2", "gpt2 is not of gpt-oss's shape with MXFP4 experts"),
        (ODD.but(expert_dtype="bfloat16"), "a config is not of gpt-oss's shape"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, model: str | ModelConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        write_synthetic(model, tmp_path / "noise", progress=False)


def test_zero_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_layers=0 must be"):
        write_synthetic("gpt-oss-nano", tmp_path / "noise", layers=0, progress=False)


def test_a_folder_without_the_mark_is_not_synthetic(tmp_path: Path) -> None:
    assert not is_synthetic(tmp_path)
    folder = gl.save_checkpoint(gl.load("gpt-oss-nano", progress=False), tmp_path / "nano")
    assert not is_synthetic(folder)
    assert read_folder(folder)
