"""One model on several processes gives what it gives on one; `rank_cases.py` is what they do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import gptoss_lite as gl
from gptoss_lite import PRESETS, cli, parallel, ranks
from gptoss_lite.account import kv_bytes, parameter_table, weight_bytes
from gptoss_lite.config import MoEConfig
from gptoss_lite.errors import BackendError, ConfigError
from tests.hostile import GPT2, GPT_OSS, QWEN3, TOLERANCE, hostile, packed, tokens
from tests.rank_cases import GENERATE, MODELS, N_RANKS, STUCK_S, TIMEOUT_S

ROOT = Path(__file__).parents[1]
ALL = [(name, n_ranks) for name, (_, _, sizes) in MODELS.items() for n_ranks in sizes]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
HANGS_S = 240  # none of the processes may take so long, whatever else the machine does

needs_gloo = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="forks gloo processes"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of the four processes found, in all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(Path(__file__).with_name("rank_cases.py")), str(folder)]
    run = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANGS_S
    )
    assert run.returncode == 0, run.stderr[-4_000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(N_RANKS)]


# --- the same logits -----------------------------------------------------------------------------


@needs_gloo
@pytest.mark.parametrize("case", ALL, ids=str)
def test_logits_are_those_of_one_process(case: tuple[str, int], found: list[Any]) -> None:
    """Unequal sizes, random biases and sinks, past the window and past YaRN's context."""
    first = found[0][case]
    assert first["margin"] > TOLERANCE  # no tie between experts that rounding could decide
    assert first["spread"] > 0.5  # logits of order 1: the tolerance means something
    for rank in range(case[1]):
        assert found[rank][case]["worst"] <= TOLERANCE
        assert found[rank][case]["worst in pieces"] <= TOLERANCE
        # to the bit, or ranks would choose different tokens and no longer read the same text
        assert torch.equal(found[rank][case]["logits"], first["logits"])


@needs_gloo
@pytest.mark.parametrize("case", ALL, ids=str)
def test_bytes_held_are_those_of_the_account(case: tuple[str, int], found: list[Any]) -> None:
    n_ranks = case[1]
    *others, last = [found[rank][case] for rank in range(n_ranks)]
    for rank in others:
        assert rank["bytes"] == rank["expected bytes"]
    assert last["bytes"] <= last["expected bytes"]  # its piece of the vocabulary may be shorter
    total = sum(rank["bytes"] for rank in (*others, last))
    assert last["whole bytes"] < total < n_ranks * last["whole bytes"]
    for rank in (*others, last):
        assert rank["cache bytes"] == rank["expected cache bytes"]


@needs_gloo
def test_in_bfloat16_it_is_no_worse_than_one_process(found: list[Any]) -> None:
    """Both round; a rank rounds its term once more, before the sum, so twice is allowed."""
    errors = found[0]["bfloat16"]
    assert 0 < errors["shared"] < 2 * errors["single"]


@needs_gloo
@pytest.mark.parametrize("name", ["packed, 4", "dense", "original", "gpt-2", "qwen3"])
def test_a_loaded_share_is_the_same_model(name: str, found: list[Any]) -> None:
    """Also from bfloat16 files, from layouts that are turned, stacked or decoded on the way."""
    for rank in range(4 if name.endswith("4") else 2):
        loaded = found[rank]["loaded"][name]
        assert loaded["worst"] <= TOLERANCE
        assert loaded["bytes"] == loaded["predicted"]
        assert loaded["source"]


@needs_gloo
def test_nano_says_the_same(found: list[Any]) -> None:
    tok = gl.load_tokenizer("gpt-oss-nano")
    model = gl.load("gpt-oss-nano", device="cpu", dtype=torch.float32, progress=False)
    prompt = tok.render([{"role": "user", "content": "What is 2 + 3?"}], effort="low")
    greedy = list(gl.generate(model, prompt, max_new_tokens=8))
    drawn = {"temperature": 1.0, "generator": torch.Generator().manual_seed(3)}
    expected = {
        "greedy": greedy,
        "drawn": list(gl.generate(model, prompt, max_new_tokens=4, **drawn)),
    }
    assert found[0]["nano"] == found[1]["nano"] == expected


# --- what else a share does ----------------------------------------------------------------------


@needs_gloo
def test_a_trace_sees_this_ranks_heads_and_all_of_the_rest(found: list[Any]) -> None:
    for rank in (0, 1):
        far = found[rank]["traced"]
        assert {key.rpartition(".")[2] for key in far} == set(gl.trace(torch.nn.Module()).names)
        assert max(far.values()) <= TOLERANCE


@needs_gloo
def test_a_share_is_neither_saved_nor_recorded(found: list[Any]) -> None:
    saved = (
        "CheckpointError: This process holds one of 2 shares of the model. Load it whole, with "
        "gptoss_lite.load, to save it."
    )
    recorded = (
        "ShapeError: This process holds one of 2 shares of the model, and so only some of its "
        "heads. Load it whole, with gptoss_lite.load, to record it."
    )
    assert found[0]["refused"] == found[1]["refused"] == (saved, recorded)


@needs_gloo
def test_all_ranks_draw_the_same_random_numbers(found: list[Any]) -> None:
    assert len({rank["seeds"] for rank in found}) == 1


# --- failures ------------------------------------------------------------------------------------


@needs_gloo
def test_one_ranks_failure_is_everyones(found: list[Any]) -> None:
    expected = "BackendError: 1 of 4 ranks failed; rank 2: the disk is gone."
    assert [rank["failed_alone"] for rank in found] == [expected] * N_RANKS


@needs_gloo
def test_a_failure_of_all_is_told_as_it_is(found: list[Any]) -> None:
    for rank in found:
        assert "ranks failed" not in rank["failed_together"]
        assert rank["failed_together"] == found[0]["failed_together"] != "no error"


@needs_gloo
def test_nobody_waits_forever_for_a_rank_that_is_stuck(found: list[Any]) -> None:
    problem, seconds = found[0]["stuck_rank"]
    assert problem.startswith("RuntimeError: ")
    assert seconds < TIMEOUT_S
    assert seconds >= STUCK_S


@needs_gloo
def test_nobody_waits_for_a_rank_that_died(found: list[Any]) -> None:
    for rank in found[:-1]:
        problem, seconds = rank["dead_rank"]
        assert problem.startswith("RuntimeError: ")
        assert seconds < TIMEOUT_S


@pytest.mark.parametrize(
    ("config", "n_ranks", "text"),
    [
        (GPT_OSS, 2, "n_kv_heads=2 and n_experts=5 cannot be dealt out evenly to 2 ranks. Use 1."),
        (PRESETS["gpt-oss-120b"], 16, "n_kv_heads=8 and n_experts=128 .* 16 ranks. Use 1 or 2 or"),
        (QWEN3.but(moe=MoEConfig(12, 3)), 4, "n_kv_heads=2 and n_experts=12 .* Use 1 or 2."),
        (GPT2.but(d_ff=45), 2, "n_kv_heads=5 and d_ff=45 .* Use 1 or 5."),
        (GPT2, 0, "0 ranks"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(config: Any, n_ranks: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parallel.share(config, 0, n_ranks)
    with pytest.raises(ConfigError, match=text):
        ranks.rank_weight_bytes(config, n_ranks)


def test_one_process_alone_is_refused() -> None:
    with pytest.raises(BackendError, match="torchrun --nproc-per-node 2"):
        parallel.load("gpt-oss-nano")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BackendError, match="4 processes need a GPU each, and this machine has 2"):
        parallel.start("cuda")


# --- one process, in this one: with the types of every call checked -------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    parallel.stop()


@needs_gloo
@pytest.mark.parametrize("name", MODELS)
def test_one_rank_is_the_whole_model(name: str, alone: None) -> None:
    config, is_packed, _ = MODELS[name]
    build = (lambda: packed(hostile(config))) if is_packed else (lambda: hostile(config))
    ids = tokens(config, 2, 20)
    shared = parallel.parallelize(build())
    torch.testing.assert_close(shared(ids), build()(ids), atol=TOLERANCE, rtol=0)
    assert parallel.held_bytes(shared) == parallel.held_bytes(build())


@needs_gloo
def test_a_group_made_by_hand_loads(alone: None) -> None:
    """Without torchrun, but with a process group."""
    whole = gl.load("gpt-oss-nano", device="cpu", progress=False)
    shared = parallel.load("gpt-oss-nano", device="cpu", progress=False)
    assert parallel.held_bytes(shared) == parallel.held_bytes(whole)
    assert (shared.device, shared.source) == (whole.device, whole.source)


# --- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_one_rank_holds_the_whole_and_sends_nothing(name: str) -> None:
    config = PRESETS[name]
    assert ranks.rank_parameter_table(config, 1) == parameter_table(config)
    assert ranks.rank_weight_bytes(config, 1) == weight_bytes(config)
    assert ranks.rank_kv_bytes(config, 1, 999) == kv_bytes(config, 999)
    assert ranks.sent_bytes(config, 1) == 0


@pytest.mark.parametrize(("n_ranks", "gigabytes"), [(1, 65.2), (2, 32.6), (4, 16.3), (8, 8.2)])
def test_gpt_oss_120b_is_nearly_halved_each_time(n_ranks: int, gigabytes: float) -> None:
    got = ranks.rank_weight_bytes(PRESETS["gpt-oss-120b"], n_ranks) / 1e9
    assert got == pytest.approx(gigabytes, abs=0.05)


def test_traffic_of_a_token_by_hand() -> None:
    """Two ranks send half of 2 * 73 sums of 2,880 numbers, and half of the logits, in bfloat16."""
    by_hand = 73 * 2_880 * 2 + 201_088 // 2 * 2
    assert ranks.sent_bytes(PRESETS["gpt-oss-120b"], 2) == by_hand


# --- the command line ----------------------------------------------------------------------------


@needs_gloo
def test_the_first_rank_prints_what_one_process_prints(
    found: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(GENERATE) == 0
    assert found[0]["generate"] == (0, capsys.readouterr().out, "")
    assert found[1]["generate"] == (0, "", "")


@needs_gloo
def test_other_commands_are_refused_once(found: list[Any]) -> None:
    expected = (
        "gptoss-lite: Under torchrun there are `generate`, and `chat` with a question. Run other "
        "commands in one process.\n"
    )
    printed = [rank["refused by command"] for rank in found[:-1]]
    assert printed == [(2, "", expected), (2, "", ""), (2, "", "")]


@pytest.mark.slow
@needs_gloo
def test_torchrun_prints_the_text_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the README, with processes that torchrun starts."""
    assert cli.main(GENERATE) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, *launch, "-m", "gptoss_lite", *GENERATE],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert run.returncode == 0, run.stderr[-4_000:]
    assert run.stdout == capsys.readouterr().out
