"""What `test_parallel.py` has four processes do; run as `python tests/rank_cases.py FOLDER`.

Each process does every case in the same order and saves what it found to FOLDER/rank{n}.pt. The
processes are forked from one that has imported everything: four imports of torch would take most
of the time. Two groups share models: ranks 0 and 1, and all four.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

import gptoss_lite as gl
from gptoss_lite import cli, parallel, ranks
from gptoss_lite.checkpoint import memory_needs
from gptoss_lite.config import ModelConfig, MoEConfig
from gptoss_lite.errors import CheckpointError, GptOssLiteError
from gptoss_lite.headers import read_folder
from gptoss_lite.names import choose_layout
from tests.hostile import (
    GPT2,
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    hostile,
    packed,
    router_margin,
    tokens,
)

N_RANKS = 4
TIMEOUT_S = 100.0  # of the group: a test that hangs ends
STUCK_S = 1.5  # of the group in which one rank does not answer
LENGTH = 40  # several windows, and past YaRN's original context
GENERATE = ("generate", "The", "--max-new-tokens", "4", "--device", "cpu", "--dtype", "float32")
PIECES = (9, 30, 1)

WIDE = {"n_heads": 12, "n_kv_heads": 4}
# (config, experts packed?); vocabularies of 97, 89 and 83 tokens cannot be cut evenly
MODELS: dict[str, tuple[ModelConfig, bool, tuple[int, ...]]] = {
    "gpt-oss": (GPT_OSS.but(moe=MoEConfig(12, 5, router_bias=True), **WIDE), False, (2, 4)),
    "gpt-oss, one kv head a rank": (
        GPT_OSS.but(moe=MoEConfig(6, 3, router_bias=True)),
        False,
        (2,),
    ),
    "gpt-oss, packed": (
        GPT_OSS_MXFP4.but(moe=MoEConfig(8, 3, router_bias=True), **WIDE),
        True,
        (2, 4),
    ),
    "qwen3": (QWEN3.but(moe=MoEConfig(12, 5), n_heads=8, n_kv_heads=4), False, (2, 4)),
    "gpt-2": (GPT2.but(d_model=24, n_heads=4, n_kv_heads=4), False, (2, 4)),
    "gated dense mlp": (GPT_OSS.but(moe=None, **WIDE), False, (2, 4)),
}


def whole(name: str) -> gl.Transformer:
    """Build the model of a name, the same on every rank."""
    config, is_packed, _ = MODELS[name]
    model = hostile(config, seed=len(name))
    return packed(model) if is_packed else model


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def compared(reference: gl.Transformer, shared: gl.Transformer) -> dict[str, Any]:
    """Compare a shared model with the whole one, at once and in pieces with a cache."""
    config, ids = reference.config, tokens(reference.config, 2, LENGTH)
    expected, got = reference(ids), shared(ids)
    cache = gl.KVCache(config)
    pieces = torch.cat([shared(piece, cache) for piece in ids.split(PIECES, dim=1)], dim=1)
    experts = "mxfp4" if any(b.dtype == torch.uint8 for b in reference.buffers()) else "float32"
    n_ranks = shared.n_ranks
    return {
        "worst": worst(got, expected),
        "worst in pieces": worst(pieces, expected),
        "logits": got,
        "spread": expected.std().item(),
        "margin": router_margin(reference, ids) if config.moe else torch.inf,
        "bytes": parallel.held_bytes(shared),
        "expected bytes": ranks.rank_weight_bytes(
            config, n_ranks, dense="float32", experts=experts
        ),
        "whole bytes": parallel.held_bytes(reference),
        "cache bytes": cache.n_bytes,
        "expected cache bytes": 2 * ranks.rank_kv_bytes(config, n_ranks, LENGTH, dtype="float32"),
    }


class Cases:
    """The cases, in order; each returns what one rank found, or None where it takes no part."""

    def __init__(self, folder: Path) -> None:
        self.rank = dist.get_rank()
        self.groups = {2: dist.new_group([0, 1]), N_RANKS: dist.group.WORLD}
        self.stuck = dist.new_group([0, 1], timeout=timedelta(seconds=STUCK_S))
        self.folder = folder
        self.found: dict[Any, Any] = {}

    def shared(self, name: str, n_ranks: int = 2) -> gl.Transformer:
        return parallel.parallelize(whole(name), self.groups[n_ranks])

    def run(self) -> None:
        for name, (_, _, sizes) in MODELS.items():
            for n_ranks in sizes:
                if self.rank < n_ranks:
                    found = compared(whole(name), self.shared(name, n_ranks))
                    self.found[name, n_ranks] = found
        if self.rank < 2:
            for case in (
                self.bfloat16,
                self.traced,
                self.refused,
                self.nano,
                self.stuck_rank,
            ):
                self.found[case.__name__] = case()
        for case in (
            self.loaded,
            self.failed_together,
            self.failed_alone,
            self.seeds,
            self.dead_rank,
        ):
            self.found[case.__name__] = case()

    def bfloat16(self) -> dict[str, float]:
        """All experts are chosen, or another rounding could choose others."""
        config = GPT_OSS.but(moe=MoEConfig(4, 4, router_bias=True))
        ids = tokens(config, 2, LENGTH)
        with torch.no_grad():
            exact, single = hostile(config)(ids), hostile(config).bfloat16()(ids)
            shared = parallel.parallelize(hostile(config).bfloat16(), self.groups[2])(ids)
        return {"single": worst(single, exact), "shared": worst(shared, exact)}

    def traced(self) -> dict[str, float]:
        """Return how far the taps are from the whole model's; of probs, from this rank's heads."""
        name = "gpt-oss"
        ids = tokens(MODELS[name][0], 2, LENGTH)
        with torch.no_grad(), gl.trace(model := whole(name)) as expected:
            model(ids)
        with torch.no_grad(), gl.trace(model := self.shared(name)) as got:
            model(ids)
        far = {}
        for key in expected.keys():  # noqa: SIM118
            reference = expected[key]
            if key.endswith(("probs", "sink_mass")):
                half = reference.shape[1] // 2
                reference = reference[:, self.rank * half : (self.rank + 1) * half]
            far[key] = worst(got[key].double(), reference.double())
        return far

    def refused(self) -> tuple[str, str]:
        """A share is neither saved nor recorded."""
        model, tok = self.shared("gpt-oss"), gl.load_tokenizer("gpt-oss-nano")
        return (
            refusal(lambda: gl.save_checkpoint(model, self.folder / "no")),
            refusal(lambda: gl.record(model, tok, [1, 2, 3])),
        )

    def nano(self) -> dict[str, list[int]]:
        tok = gl.load_tokenizer("gpt-oss-nano")
        model = parallel.load(
            "gpt-oss-nano", device="cpu", dtype=torch.float32, progress=False, group=self.groups[2]
        )
        prompt = tok.render([{"role": "user", "content": "What is 2 + 3?"}], effort="low")
        drawn = {"temperature": 1.0, "generator": torch.Generator().manual_seed(3)}
        return {
            "greedy": list(gl.generate(model, prompt, max_new_tokens=8)),
            "drawn": list(gl.generate(model, prompt, max_new_tokens=4, **drawn)),
        }

    def loaded(self) -> dict[str, Any]:
        """Load folders that rank 0 wrote, in several ways; return how far the logits are."""
        far: dict[str, Any] = {}
        oss = MODELS["gpt-oss, packed"][0]
        if self.rank == 0:
            gl.save_checkpoint(hostile(oss), self.folder / "packed")
            in_bfloat16 = hostile(oss.but(dtype="bfloat16"))
            gl.save_checkpoint(in_bfloat16, self.folder / "original", original=True)
            for name in ("gpt-2", "qwen3"):
                gl.save_checkpoint(hostile(MODELS[name][0]), self.folder / name)
        dist.barrier()
        far["packed, 4"] = self.load_compared("packed", N_RANKS)
        if self.rank < 2:
            far["dense"] = self.load_compared("packed", experts="dense")
            for name in ("original", "gpt-2", "qwen3"):
                far[name] = self.load_compared(name)
        return far

    @torch.no_grad()
    def load_compared(self, name: str, n_ranks: int = 2, **options: Any) -> dict[str, Any]:
        folder = self.folder / name
        options |= {"device": "cpu", "progress": False, "dtype": torch.float32}
        reference = gl.load(folder, **options)
        shared = parallel.load(folder, group=self.groups[n_ranks], **options)
        ids = tokens(reference.config, 1, LENGTH)
        return {
            "worst": worst(shared(ids), reference(ids)),
            "bytes": parallel.held_bytes(shared),
            "predicted": self.predicted_bytes(shared, n_ranks, options.get("experts", "packed")),
            "source": shared.source == reference.source,
        }

    def predicted_bytes(self, model: gl.Transformer, n_ranks: int, experts: str) -> int:
        """Return what `load` refused to start without."""
        assert model.source
        held = read_folder(model.source)
        config = ModelConfig.from_hf(model.source)
        layout, cpu = choose_layout(config, held), torch.device("cpu")
        cut = parallel.share(config, self.rank, n_ranks)
        return sum(memory_needs(layout, held, cpu, torch.float32, experts, cut))

    def failed_together(self) -> str:
        return refusal(lambda: parallel.load(self.folder / "nowhere", progress=False))

    def failed_alone(self) -> str:
        def work() -> None:
            if self.rank == 2:
                raise CheckpointError("the disk is gone.")

        return refusal(lambda: parallel.together(work))

    def seeds(self) -> int:
        return torch.initial_seed()

    def stuck_rank(self) -> tuple[str, float]:
        """Rank 1 never computes; rank 0 gives up."""
        model = parallel.parallelize(whole("gpt-oss"), self.stuck)
        start = time.monotonic()
        if self.rank == 1:
            time.sleep(2 * STUCK_S)
            return "", 0.0
        return refusal(lambda: model(tokens(model.config, 1, 3))), time.monotonic() - start

    def dead_rank(self) -> tuple[str, float]:
        """The last rank dies; the others notice."""
        model, start = self.shared("gpt-oss", N_RANKS), time.monotonic()
        if self.rank == N_RANKS - 1:
            torch.save(self.found, self.folder / f"rank{self.rank}.pt")
            os._exit(0)
        return refusal(lambda: model(tokens(model.config, 1, 3))), time.monotonic() - start


def command(*arguments: str) -> tuple[int, str, str]:
    """Run the command line as this rank; return its status and what it printed."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = cli.main(arguments)
    return status, out.getvalue(), err.getvalue()


def refusal(work: Callable[[], Any]) -> str:
    try:
        work()
    except (GptOssLiteError, RuntimeError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return "no error"


def join(rank: int, n_ranks: int, port: int) -> None:
    """Say what torchrun says to a process."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def act(rank: int, ports: list[int], folder: Path) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    torch.seed()  # forked processes have the same random numbers; those of torchrun do not
    join(rank, N_RANKS, ports[0])
    parallel.start("cpu", timeout_s=TIMEOUT_S)
    cases = Cases(folder)
    cases.run()
    cases.found["refused by command"] = command("bench", "--json")
    parallel.stop()
    if rank < 2:
        join(rank, 2, ports[1])
        cases.found["generate"] = command(*GENERATE)
    torch.save(cases.found, folder / f"rank{rank}.pt")


def free_ports(n: int) -> list[int]:
    """Let the system choose ports."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


if __name__ == "__main__":
    processes.start_processes(act, (free_ports(2), Path(sys.argv[1])), N_RANKS, start_method="fork")
