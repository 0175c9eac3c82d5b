"""The benchmarks run, at toy size; what they measure here means nothing and is not looked at."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cpu_peers, decode_turns, gpu_peers, make_gguf, peers, time_peer
from benchmarks.peers import Peer
from gptoss_lite import account
from gptoss_lite.config import ModelConfig, MoEConfig
from gptoss_lite.headers import read_folder
from gptoss_lite.mxfp4 import VALUES, dequantize
from gptoss_lite.presets import GPT_OSS_NANO
from gptoss_lite.synthetic import write_synthetic

ODD = GPT_OSS_NANO.but(n_layers=2, d_model=96, d_ff=64, moe=MoEConfig(5, 3, True), vocab_size=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(ODD, tmp_path_factory.mktemp("bench") / "odd", progress=False)


def tensor(folder: Path, name: str) -> np.ndarray:
    """Read one tensor of the checkpoint as float32, or as bytes."""
    info = read_folder(folder)[name]
    raw = np.fromfile(info.file, np.uint8, info.n_bytes, offset=info.offset)
    if info.dtype == "U8":
        return raw.reshape(info.shape)
    return torch.from_numpy(raw).view(torch.bfloat16).float().numpy().reshape(info.shape)


# --- GGUF ----------------------------------------------------------------------------------------


def test_blocks_in_ggufs_order_decode_to_the_same_numbers() -> None:
    """One number at a time: byte j of a GGUF block holds numbers j and j + 16."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (2, 3, 5, 16), np.uint8)
    scales = generator.integers(110, 140, (2, 3, 5), np.uint8)
    packed = make_gguf.to_gguf_blocks(blocks, scales).reshape(2, 3, 5, 17)
    want = dequantize(torch.from_numpy(blocks), torch.from_numpy(scales), torch.float32)
    want = want.reshape(2, 3, 5, 32).numpy()
    for expert, row, group in np.ndindex(2, 3, 5):
        scale, *codes = packed[expert, row, group].tolist()
        for j, byte in enumerate(codes):
            low, high = (
                float(VALUES[code]) * 2.0 ** (scale - 127) for code in (byte & 15, byte >> 4)
            )
            assert low == want[expert, row, group, j]
            assert high == want[expert, row, group, j + 16]


@pytest.mark.parametrize("dense", ["bf16", "q8_0"])
def test_every_tensor_of_the_gguf_file_is_the_checkpoints(
    folder: Path, tmp_path: Path, dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "model.gguf"
    assert make_gguf.main([str(folder), str(out), "--dense", dense]) == 0
    assert "dense matrices" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(out)
    held = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert len(held) == 3 + ODD.n_layers * 19  # gate and up apart; blocks and scales together
    layers = make_gguf.LAYER_VECTORS | make_gguf.LAYER_MATRICES
    pairs = {f"blk.1.{ours}": f"model.layers.1.{theirs}" for ours, theirs in layers.items()}
    pairs |= {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    pairs |= {"output_norm.weight": "model.norm.weight"}
    for name, theirs in pairs.items():
        want = tensor(folder, theirs)
        if types[name] == "Q8_0":  # half a step of a 127th of the largest, its scale in float16
            assert np.abs(held[name] - want).max() <= np.abs(want).max() / 127 * 0.51
        else:
            assert (held[name] == want).all(), name
    assert types["output.weight"] == types["blk.0.attn_k.weight"] == dense.upper()
    experts = "model.layers.1.mlp.experts"
    for part, start in (("gate", 0), ("up", 1)):
        packed = (tensor(folder, f"{experts}.gate_up_proj_{leaf}") for leaf in ("blocks", "scales"))
        want = dequantize(*map(torch.from_numpy, packed), torch.float32)[:, start::2].numpy()
        assert types[f"blk.1.ffn_{part}_exps.weight"] == "MXFP4"
        assert (held[f"blk.1.ffn_{part}_exps.weight"] == want).all()
        bias = tensor(folder, f"{experts}.gate_up_proj_bias")[:, start::2]
        assert (held[f"blk.1.ffn_{part}_exps.bias"] == bias).all()
    numbers = {
        name: reader.get_field(f"gpt-oss.{name}").contents()
        for name in ("expert_count", "vocab_size")
    }
    assert numbers == {"expert_count": 5, "vocab_size": 300}


def test_gguf_needs_its_package(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert make_gguf.main([str(folder), str(tmp_path / "model.gguf")]) == 2
    assert "pip install gguf" in capsys.readouterr().err
    assert make_gguf.main([str(tmp_path), str(tmp_path / "model.gguf")]) == 2


# --- peers ---------------------------------------------------------------------------------------


def says(report: dict[str, Any], name: str = "says", **fields: Any) -> Peer:
    return Peer(name, [sys.executable, "-c", f"print({json.dumps(json.dumps(report))})"], **fields)


def test_a_peer_is_run_with_its_threads_and_its_memory_is_its_own() -> None:
    big = "import json, os; x = bytearray(300_000_000); print(json.dumps(dict(os.environ)))"
    # Started from a process without torch, as the scripts do: Linux counts the starter's memory.
    starter = (
        "import json, sys; from benchmarks import peers; big = [sys.executable, '-c', sys.argv[1]];"
        "print(json.dumps(peers.run(peers.Peer('big', big), threads=3)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", starter, big],
        cwd=peers.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(ran.stdout)
    assert report["OMP_NUM_THREADS"] == "3"
    assert 300e6 < report["peak_rss_bytes"] < 400e6
    small = peers.run(says({"load_s": 1.5}), threads=1)
    assert small["load_s"] == 1.5
    assert small["wall_s"] > 0


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ([sys.executable, "-c", "raise ValueError('no such backend')"], "no such backend"),
        ([sys.executable, "-c", "print('hello')"], "printed something else than a report"),
        ([sys.executable, "-c", "import os; os._exit(7)"], "ended with status 7"),
        (["./no-such-program"], "cannot be started"),
    ],
)
def test_a_peer_that_fails_is_reported(command: list[str], problem: str) -> None:
    reports = peers.compare([Peer("it", command)], rounds=1, threads=1)
    assert problem in reports["it"]["error"]
    assert problem in peers.table(reports, "it", {})


def test_rounds_go_back_and_forth_and_medians_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def run(peer: Peer, threads: int) -> dict[str, Any]:
        order.append(peer.name)
        if peer.name == "b" and len(order) > 6:
            return {"error": "once only"}
        return {"decode_tokens_per_s": float(len(order)), "peak_rss_bytes": len(order)}

    monkeypatch.setattr(peers, "run", run)
    chosen = [Peer("a", []), Peer("slow", [], once=True), Peer("b", [])]
    reports = peers.compare(chosen, rounds=3, threads=1)
    assert order == ["a", "b", "b", "slow", "a", "a", "b"]
    assert reports["a"]["decode_tokens_per_s"] == 5  # of 1, 5, 6
    assert reports["a"]["peak_rss_bytes"] == 6
    assert reports["b"]["decode_tokens_per_s"] == 2.5  # the failed round is left out
    assert len(reports["b"]["rounds"]) == 2
    shown = peers.table(reports, "a", {"a": 10.0})
    assert "50%" in shown
    assert "2.00" in shown  # a is twice as fast as b
    assert "round 2 of 3: slow" in capsys.readouterr().err


def test_the_limit_follows_the_formats() -> None:
    folder = peers.ROOT / "gptoss_lite" / "data" / "gpt-oss-nano"
    read = account.step_bytes(ModelConfig.from_hf(folder), 50, dense="bfloat16", experts="mxfp4")
    whole = sum(read.values())
    assert peers.limit(folder, 50, 1e9, Peer("x", [])) == pytest.approx(1e9 / whole)
    eighth = (read["attention"] + read["unembedding"]) * (1 - 34 / 64)
    q8 = peers.limit(folder, 50, 1e9, Peer("x", [], dense="q8_0"))
    assert q8 == pytest.approx(1e9 / (whole - eighth))
    assert peers.limit(folder, 50, 1e9, Peer("x", [], experts="bfloat16")) < 1e9 / whole


# A shell finds Python even under a path with a space in it, which `#!` does not.
LLAMA_BENCH = """#!/bin/sh
exec "{python}" - "$@" <<'END'
import json, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert words["-m"].endswith(".gguf") and words["-t"] == "1" and words["-o"] == "json"
shared = {{"build_commit": "abc", "model_size": 1, "n_threads": 1}}
rows = [{{**shared, "n_prompt": int(words["-p"]), "n_gen": 0, "samples_ts": [1.0, 90.0, 91.0]}}]
rows += [{{**shared, "n_prompt": 0, "n_gen": int(words["-n"]), "samples_ts": [30.0]}}]
print(json.dumps(rows[words["-p"] == "0":]))
END
"""


@pytest.fixture
def llama_bench(tmp_path: Path) -> Path:
    program = tmp_path / "llama-bench"
    program.write_text(LLAMA_BENCH.format(python=sys.executable))
    program.chmod(0o755)
    return program


def test_cpu_peers_in_one_run(
    folder: Path, llama_bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cpu.json"
    files = [tmp_path / "a-bf16.gguf", tmp_path / "a-q8_0.gguf"]
    words = [str(folder), "--rounds", "1", "--threads", "1", "--prompt-tokens", "5"]
    words += ["--new-tokens", "3", "--repeats", "1", "--backends", "--no-transformers"]
    words += ["--llama-bench", str(llama_bench), "--gguf", *map(str, files), "--json", str(out)]
    assert cpu_peers.main(words) == 0
    assert "llama.cpp, q8_0 dense" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert set(result["peers"]) == {
        "gptoss_lite",
        "llama.cpp, bfloat16 dense",
        "llama.cpp, q8_0 dense",
    }
    ours, llama = (result["peers"][n] for n in ("gptoss_lite", "llama.cpp, q8_0 dense"))
    assert (ours["prompt_tokens"], ours["new_tokens"], ours["threads"]) == (5, 3, 1)
    assert (llama["prefill_tokens_per_s"], llama["decode_tokens_per_s"]) == (90, 30)
    assert 0 < llama["first_token_s"] < 60
    limits = result["limits_tokens_per_s"]
    released, rounded = (limits[f"llama.cpp, {dense} dense"] for dense in ("bfloat16", "q8_0"))
    assert released < rounded
    assert f"{100 * (1 - released / rounded):.0f} % fewer bytes" in llama["note"]
    assert result["bandwidth_bytes_per_s"] > 0
    assert result["cpu"]
    assert result["settings"]["gguf"] == "a-bf16.gguf, a-q8_0.gguf"
    assert str(tmp_path) not in out.read_text()


def test_two_programs_decode_in_turns(
    folder: Path, llama_bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "turns.json"
    words = [
        str(folder),
        str(llama_bench),
        str(tmp_path / "a.gguf"),
        "--turns",
        "3",
        "--threads",
        "1",
    ]
    threads = torch.get_num_threads()
    try:
        assert decode_turns.main([*words, "--new-tokens", "4", "--json", str(out)]) == 0
        result = json.loads(out.read_text())
        assert [turn["llama.cpp"] for turn in result["turns"]] == [30, 30, 30]
        ours = sorted(turn["gptoss_lite"] for turn in result["turns"])
        assert ours[0] > 0
        said = capsys.readouterr().out
        assert f"medians {ours[1]:.1f} and 30.0 tokens/s" in said
        assert f"median {ours[1] / 30:.2f}" in said
        assert f"ahead in {sum(rate > 30 for rate in ours)} of 3" in said
        assert str(tmp_path) not in out.read_text()
        llama_bench.write_text("#!/bin/sh\nexit 3\n")
        assert decode_turns.main(words) == 1
        assert "ended with status 3" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            decode_turns.main([*words, "--turns", "1"])
        assert "at least 2" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)


def test_transformers_is_timed_as_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    words = ["transformers", str(folder), "--prompt-tokens", "3", "50", "--new-tokens", "2"]
    assert time_peer.main([*words, "--repeats", "1", "--threads", str(threads)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [run["prompt_tokens"] for run in report["runs"]] == [3, 50]
    assert 0 < report["load_s"] < report["first_token_s"]
    assert report["decode_tokens_per_s"] == report["runs"][0]["decode_tokens_per_s"] > 0
    assert "transformers" in report["versions"]


def test_openais_model_is_timed_as_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gpt_oss")
    folder = write_synthetic(ODD, tmp_path / "original", original=True, progress=False)
    words = ["reference", str(folder), "--prompt-tokens", "4", "--new-tokens", "2"]
    assert time_peer.main([*words, "--repeats", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["decode_tokens_per_s"] > 0


def test_gpu_peers_refuse_where_there_is_no_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_peers, "has_gpu", lambda: False)
    assert gpu_peers.main([str(folder)]) == 2
    assert capsys.readouterr().err == f"{gpu_peers.NO_GPU}\n"
    assert gpu_peers.main([]) == 2


def test_gpu_peers_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that a GPU machine would run, but for transformers, whose timing is tested above."""
    asked = []

    def run(peer: Peer, threads: int) -> dict[str, Any]:
        asked.append(peer.command)
        lengths = [int(word) for word in peer.command[peer.command.index("--prompt-tokens") + 1 :]]
        runs = [{"prompt_tokens": length, "decode_tokens_per_s": 7.0} for length in lengths]
        return {"load_s": 1.0, "runs": runs}

    real_run = peers.run
    monkeypatch.setattr(
        peers,
        "run",
        lambda peer, threads: (run if peer.name == "transformers" else real_run)(peer, threads),
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    out = tmp_path / "gpu.json"
    assert gpu_peers.main(["--dry-run", "--backends", "--json", str(out)]) == 0
    result = json.loads(out.read_text())["prompts"]["50"]
    assert set(result) == {"ours", "ours, large model", "transformers"}
    assert result["transformers"]["decode_tokens_per_s"] == 7
    assert result["ours"]["context_tokens"] == 50
    assert "prompt of 50 tokens" in capsys.readouterr().out
    assert len(asked) == 1
