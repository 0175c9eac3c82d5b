"""Load and run at the true widths of gpt-oss-20b, in a process of its own whose memory is measured.

The quick version has one layer and a short vocabulary; `-m slow` runs two layers and all 201,088
rows of the embeddings, 3.3 GB in all.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gptoss_lite as gl
from gptoss_lite import synthetic
from gptoss_lite.config import ModelConfig
from gptoss_lite.headers import INDEX_NAME, read_folder
from gptoss_lite.names import gpt_oss, gpt_oss_original
from gptoss_lite.presets import GPT_OSS_20B
from tools import write_random_checkpoint

ROOT = Path(__file__).parents[1]
GIB = 2**30
SPARE = 1.5 * GIB  # beyond the model itself, while loading and while answering
KEPT = 0.25 * GIB  # freed by the load's last steps and not yet given back to the system
SIZES = {
    "quick": ["--layers", "1", "--vocab", "4096"],
    "full": ["--layers", "2"],
}
FULL_BYTES = 3_300_000_000

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's /proc for its memory"
)

# Runs in a fresh process: memory once used by a test process would hide what loading takes.
MEASURE = """
import json, sys, threading, time
from pathlib import Path

import torch

import gptoss_lite as gl
from gptoss_lite.checkpoint import memory_needs
from gptoss_lite.config import ModelConfig
from gptoss_lite.headers import read_folder
from gptoss_lite.names import choose_layout


def now(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def own_bytes(model):
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if str(folder) in line]
    ends = [[int(end, 16) for end in span] for span in spans]
    tensors = [*model.parameters(), *model.buffers()]
    return sum(
        tensor.nbytes
        for tensor in tensors
        if not any(begin <= tensor.data_ptr() < end for begin, end in ends)
    )


def watch():
    while not done.is_set():
        peak["anonymous"] = max(peak["anonymous"], now("RssAnon"))
        done.wait(0.005)


folder, dtype, experts = Path(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
held = read_folder(folder)
layout = choose_layout(ModelConfig.from_hf(folder), held)
needs = memory_needs(layout, held, torch.device("cpu"), dtype, experts)
before, total_before = now("RssAnon"), now("VmRSS")
peak, done = {"anonymous": 0}, threading.Event()
threading.Thread(target=watch, daemon=True).start()

start, cpu_start = time.perf_counter(), time.process_time()
model = gl.load(folder, device="cpu", dtype=dtype, experts=experts, progress=False)
result = {
    "load_s": time.perf_counter() - start,
    "load_cpu_s": time.process_time() - cpu_start,
    "allocated": needs[0],
    "mapped": needs[1],
    "anonymous_before": before,
    "total_before": total_before,
    "anonymous_after": now("RssAnon"),
    "own_tensors": own_bytes(model),
    "anonymous_peak_of_load": peak["anonymous"],
    "peak_of_load": now("VmHWM"),
}
prompt = [1, 2, 3, 5, 8]
start, cpu_start = time.perf_counter(), time.process_time()
cache = gl.KVCache(model.config)
ids, times, cpu_times, finite = torch.tensor([prompt]), [], [], True
with torch.no_grad():
    for _ in range(3):
        logits = model(ids, cache)[0, -1]
        finite &= bool(logits.isfinite().all())
        ids = logits.argmax().view(1, 1)
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
        start, cpu_start = time.perf_counter(), time.process_time()
done.set()
result |= {
    "finite": finite,
    "spread": float(logits.float().std()),
    "prefill_s": times[0],
    "tokens_per_s": len(times[1:]) / sum(times[1:]),
    "cpu_s_per_token": sum(cpu_times[1:]) / len(times[1:]),
    "generated": list(gl.generate(model, prompt[:1], max_new_tokens=3)),
    "anonymous_peak": peak["anonymous"],
    "peak": now("VmHWM"),
}
print(json.dumps(result))
"""


def write(folder: Path, *options: str) -> Path:
    command = [sys.executable, "tools/write_random_checkpoint.py", str(folder), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def measure(folder: Path, dtype: str, experts: str) -> dict[str, Any]:
    command = [sys.executable, "-c", MEASURE, str(folder), dtype, experts]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    for name, value in result.items():
        print(f"{name:24} {value / 1e9:.3f} GB" if type(value) is int else f"{name:24} {value}")
    return result


@pytest.fixture(scope="module", params=["quick", pytest.param("full", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("true")
    if request.param == "full" and shutil.disk_usage(place).free < 2 * FULL_BYTES:
        pytest.skip("needs 7 GB of free disk")
    yield write(place / "random", *SIZES[request.param])
    shutil.rmtree(place)


def test_names_and_shapes_are_the_true_ones(folder: Path) -> None:
    held = read_folder(folder)
    config = ModelConfig.from_hf(folder)
    assert config.but(n_layers=24, vocab_size=201_088, layer_pattern="SF") == GPT_OSS_20B
    assert {name: info.shape for name, info in held.items()} == {
        name: shape for name, (shape, _) in gpt_oss(config).expected().items()
    }
    assert held["model.layers.0.mlp.experts.gate_up_proj_blocks"].shape == (32, 5760, 90, 16)
    assert len({info.file for name, info in held.items() if ".layers." in name}) > 1


@pytest.mark.parametrize(
    ("dtype", "experts"), [("bfloat16", "packed"), ("float32", "packed"), ("bfloat16", "dense")]
)
def test_memory_and_answers(folder: Path, dtype: str, experts: str) -> None:
    """Loading and answering take the model and 1.5 GiB at most; pages of mapped files count."""
    file_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    got = measure(folder, dtype, experts)
    final = got["allocated"] + got["mapped"]
    if (dtype, experts) == ("bfloat16", "packed"):
        assert got["allocated"] < 0.01 * file_bytes  # nearly all of it is mapped
        assert got["mapped"] <= file_bytes
    # while loading, not one tensor more than the model
    assert got["peak_of_load"] <= final + SPARE
    assert got["anonymous_peak_of_load"] - got["anonymous_before"] <= got["allocated"] + SPARE
    # and while answering
    assert got["peak"] <= final + SPARE
    assert got["anonymous_peak"] <= got["allocated"] + SPARE
    # the prediction: to the byte for the tensors; the allocator keeps some freed memory besides
    assert got["own_tensors"] == got["allocated"]
    took = got["anonymous_after"] - got["anonymous_before"]
    assert abs(took - got["allocated"]) <= 0.02 * got["allocated"] + KEPT
    assert got["finite"]
    assert 0.1 < got["spread"] < 100
    assert len(got["generated"]) == 3


# --- the tool, at the size of the bundled model --------------------------------------------------


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_the_tool_writes_both_layouts(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "random"
    options = [str(folder), "--model", "gpt-oss-nano", "--layout", layout]
    assert write_random_checkpoint.main(options) == 0
    shown = capsys.readouterr()
    label = "random weights, shapes of gpt-oss-nano; generates noise"
    assert label in shown.out
    assert label in (folder / "README.md").read_text()
    assert "writing" in shown.err
    held = read_folder(folder)
    config = ModelConfig.from_hf(folder)
    table = {"hf": gpt_oss, "original": gpt_oss_original}[layout]
    assert {name: info.shape for name, info in held.items()} == {
        name: shape for name, (shape, _) in table(config).expected().items()
    }
    if layout == "hf":
        assert config == gl.PRESETS["gpt-oss-nano"]
        numbers = sorted({info.file.name[6:11] for info in held.values()})
        assert numbers == [f"{n:05d}" for n in range(len(numbers))]
        straddling = [
            n
            for n in range(config.n_layers)
            if len({info.file for name, info in held.items() if f".layers.{n}." in name}) > 1
        ]
        assert straddling
        total = json.loads((folder / INDEX_NAME).read_text())["metadata"]["total_size"]
        assert total == sum(info.n_bytes for info in held.values())
    else:
        assert len(json.loads((folder / "config.json").read_text())) == 16
        dtypes = json.loads((folder / "dtypes.json").read_text())
        assert dtypes.keys() == held.keys()
        assert set(dtypes.values()) == {"BF16", "FP4", "UE8"}
    with torch.no_grad():
        logits = gl.load(folder, device="cpu", progress=False)(torch.arange(40)[None])
    assert logits.isfinite().all()
    assert 0.1 < logits.float().std() < 100


def test_the_tool_repeats_itself_by_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        write_random_checkpoint.main(
            [str(tmp_path / name), "--model", "gpt-oss-nano", "--layers", "1", "--seed", seed]
        )
    one, same, other = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors"))]
        for name in "abc"
    )
    assert one == same
    assert one != other


def test_no_two_rows_are_alike(tmp_path: Path) -> None:
    """Numbers are used again and again, but never from the start of a row on."""
    write_random_checkpoint.main([str(tmp_path / "random"), "--model", "gpt-oss-nano"])
    model = gl.load(tmp_path / "random", device="cpu", progress=False)
    for matrix in (model.embed.weight, model.unembed.weight, model.blocks[0].attn.q.weight):
        assert len(matrix.float().unique(dim=0)) == len(matrix)


def test_what_the_tool_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*options: str) -> str:
        assert write_random_checkpoint.main(list(options)) == 2
        return capsys.readouterr().err.strip()

    (tmp_path / "file").write_text("mine")
    full = "is not empty. Choose a new folder."
    assert said(str(tmp_path)) == f"{tmp_path} {full}"
    assert said(str(tmp_path / "file")) == f"{tmp_path / 'file'} {full}"
    lost = tmp_path / "no" / "where"
    assert said(str(lost)) == (
        f"There is no folder {tmp_path / 'no'} to write where into. Make it first."
    )
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2 * 10**9))
        assert said(str(tmp_path / "new"), "--model", "gpt-oss-120b") == (
            f"{tmp_path / 'new'} would take 65.2 GB and 2.0 GB are free there. Use fewer layers, "
            "or a folder on a larger disk."
        )
    with pytest.raises(SystemExit) as left:
        write_random_checkpoint.main([str(tmp_path / "new"), "--layers", "0"])
    assert left.value.code == 2
    assert "--layers 0: there must be at least 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint.main([str(tmp_path / "random"), "--model", "gpt-oss-nano"])
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        write_random_checkpoint.main(["--help"])
    shown = capsys.readouterr().out
    assert "python tools/write_random_checkpoint.py /tmp/random-20b" in shown
    assert "--layers 2" in shown
