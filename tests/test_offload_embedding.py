"""An embedding that stays on the CPU: what is loaded where, and what then crosses over.

There is no second device here. The loader is given "meta" and its tensors are caught on the way;
the model and its recorded step run on torch's fake tensors, which have a device, compute only
shapes, and fail where two devices meet. There the sides are changed, as torch without CUDA cannot
fake all that a model does on a GPU: the table is "on the GPU" and the rest on the CPU.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import gptoss_lite as gl
from gptoss_lite import checkpoint, cli
from gptoss_lite.cache import KVCache
from gptoss_lite.errors import BackendError, CheckpointError, ConfigError
from gptoss_lite.kernels import decode
from tests.hostile import GPT2, GPT_OSS, GPT_OSS_MXFP4, hostile, tokens, without_type_checks

CONFIG = GPT_OSS_MXFP4.but(dtype="bfloat16")
DENSE = GPT_OSS.but(moe=None)  # to choose experts, values are looked at, which fakes have not
EMBEDDING_BYTES = 2 * CONFIG.vocab_size * CONFIG.d_model
TIED = (
    "This model's embedding is its output matrix, too, so it cannot be left on the CPU: every "
    "token reads all of it. Do without offload_embedding."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gl.save_checkpoint(hostile(CONFIG), tmp_path_factory.mktemp("offload") / "model")


# --- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", ["packed", "dense"])
@pytest.mark.parametrize("offloaded", [True, False])
def test_only_the_embedding_stays_on_the_cpu(
    experts: str,
    offloaded: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    devices, right, meta = {}, checkpoint.place, torch.device("meta")

    def caught(model: gl.Transformer, name: str, tensor: Tensor) -> None:
        devices[name] = tensor.device.type
        right(model, name, torch.zeros(tensor.shape, dtype=tensor.dtype))

    monkeypatch.setattr(checkpoint, "_device", lambda device: meta)
    monkeypatch.setattr(checkpoint, "place", caught)
    monkeypatch.setattr(checkpoint, "_decode_into", lambda *tensors: None)
    gl.load(folder, experts=experts, offload_embedding=offloaded)
    assert devices.pop("embed.weight") == ("cpu" if offloaded else "meta")
    assert len(devices) > 10
    assert set(devices.values()) == {"meta"}
    assert (" GB on meta, 0.00 GB on cpu, " in capsys.readouterr().err) == offloaded


def test_each_device_must_have_room_for_its_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare, meta = checkpoint.LOAD_SPARE_BYTES, torch.device("meta")
    free = {"meta": 0, "cpu": 2**40}
    monkeypatch.setattr(checkpoint, "_device", lambda device: meta)
    monkeypatch.setattr(
        checkpoint, "available_memory", lambda device: (free[device.type], free[device.type])
    )
    monkeypatch.setattr(checkpoint, "_assemble", lambda *args: None)
    needs = sum(info.n_bytes for info in checkpoint.read_folder(folder).values())

    told: list[bool] = []

    def is_refused(room: int, dtype: torch.dtype = torch.bfloat16, **options: bool) -> str:
        free["meta"] = spare + room
        with without_type_checks():
            try:
                checkpoint.load(folder, dtype=dtype, progress=False, **options)
            except CheckpointError as problem:
                told.append("16-bit dtype, pass offload_embedding=True, or" in str(problem))
                return str(problem).split(" and ")[0].split(" on ")[1]
        return ""

    assert is_refused(needs) == ""
    assert is_refused(needs - 1) == "meta"
    assert is_refused(needs - EMBEDDING_BYTES, offload_embedding=True) == ""
    assert is_refused(needs - EMBEDDING_BYTES - 1, offload_embedding=True) == "meta"
    # mapped, it needs no free memory; in another dtype it is a copy
    free["cpu"] = spare + EMBEDDING_BYTES
    assert is_refused(2 * needs, offload_embedding=True) == ""
    free["cpu"] -= 1
    assert is_refused(2 * needs, torch.float16, offload_embedding=True) == "cpu"
    assert told == [True, False, False]  # what would help is named where it would


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gl.save_checkpoint(hostile(GPT2), tmp_path / "model")
    with pytest.raises(ConfigError) as problem:
        gl.load(folder, offload_embedding=True)
    assert str(problem.value) == TIED
    with pytest.raises(ConfigError) as problem:
        gl.fit(GPT2, 1e9, offload_embedding=True)
    assert str(problem.value) == TIED
    asked = cli._parser().parse_args(["bench", "--model", str(folder), "--offload-embedding"])
    with pytest.raises(ConfigError, match="cannot be left on the CPU"):
        cli._load(asked)
    monkeypatch.setattr(cli.parallel, "is_launched", lambda: True)
    with pytest.raises(BackendError, match="--offload-embedding is for one process"):
        cli._load(asked)


def test_on_the_cpu_nothing_changes(folder: Path) -> None:
    ids = tokens(CONFIG, 1, 30)
    with torch.no_grad():
        got, want = (
            gl.load(folder, device="cpu", progress=False, offload_embedding=offloaded)(ids)
            for offloaded in (True, False)
        )
    assert torch.equal(got, want)


def test_the_sum_of_what_fits_leaves_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    config = gl.PRESETS["gpt-oss-20b"]
    whole, offloaded = (gl.fit(config, 16e9, offload_embedding=left) for left in (False, True))
    assert whole.weight_bytes - offloaded.weight_bytes == 2 * 201_088 * 2_880
    assert offloaded.longest_context_tokens > whole.longest_context_tokens
    wide, less = (
        gl.fit(config, 16e9, dense="float32", offload_embedding=left) for left in (False, True)
    )
    assert wide.weight_bytes - less.weight_bytes == 4 * 201_088 * 2_880
    assert cli.main(["fit", "--memory", "16GB", "--offload-embedding"]) == 0
    assert f"{offloaded}\n" in capsys.readouterr().out


# --- run -----------------------------------------------------------------------------------------


def on_two_devices(config: gl.ModelConfig) -> gl.Transformer:
    """Make a model whose embedding is on a GPU that only seems to be there."""
    model = gl.Transformer(config)
    for name, parameter in list(model.named_parameters()):
        device = "cuda" if name == "embed.weight" else "cpu"
        checkpoint.place(model, name, torch.empty(parameter.shape, device=device))
    return model


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Plain torch on fake tensors, without looking at the tokens' values."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return FakeTensorMode()


@pytest.mark.usefixtures("plain")
def test_rows_are_looked_up_where_the_table_is_and_come_over(devices: FakeTensorMode) -> None:
    with devices, torch.no_grad():
        model = on_two_devices(DENSE)
        assert model.embed.weight.device.type == "cuda"
        assert model.device.type == "cpu"
        cache, ids = KVCache(DENSE), torch.zeros(1, 20, dtype=torch.long)
        assert model(ids, cache).device.type == "cpu"
        assert model(ids[:, :1], cache).shape == (1, 1, DENSE.vocab_size)


@pytest.mark.usefixtures("plain")
def test_a_recorded_step_gets_the_row_instead_of_the_token(
    devices: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with devices, torch.no_grad():
        model = on_two_devices(DENSE)
        decoder = decode.Decoder(model, KVCache(DENSE), spare=3)
        for token in range(5):  # the buffers grow on the way
            assert decoder(token).device.type == "cpu"
        monkeypatch.setattr(decode, "RECORDS", "cpu")
        assert decode.why_not(model) is None
        checkpoint.place(model, "blocks.0.attn.sinks", torch.empty(DENSE.n_heads, device="cuda"))
        assert decode.why_not(model) == "the model lies on several devices"


@pytest.mark.usefixtures("plain")
def test_the_row_is_that_of_the_token() -> None:
    """With numbers, on the CPU: the same logits, also after the buffers have grown."""
    model, text = hostile(GPT_OSS), tokens(GPT_OSS, 1, 15)[0].tolist()
    with torch.no_grad():
        near, far = (decode.Decoder(model, KVCache(GPT_OSS), spare=4) for _ in range(2))
        far.state.row = torch.zeros(1, 1, GPT_OSS.d_model)
        for token in text:
            assert torch.equal(near(token), far(token))
    assert near.state.row is None
    assert int(far.state.token) == 0  # never told
