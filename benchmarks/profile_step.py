"""Measure where the time of one decoded token goes, and where it would go at the memory's speed.

Example:
    python tools/write_random_checkpoint.py /tmp/random-4 --layers 4
    python benchmarks/profile_step.py /tmp/random-4 --backends plain auto --json profile.json
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gptoss_lite as gl
from benchmarks import peers
from gptoss_lite import account, bench
from gptoss_lite.dispatch import Op
from gptoss_lite.kernels import step

CONTEXT_TOKENS = 128


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    model = gl.load(args.folder, device=args.device, progress=False)
    result = peers.machine() | {
        "settings": {key: str(value) for key, value in vars(args).items()},
        "bandwidth_bytes_per_s": bench.measured_bandwidth(model.device),
        "bytes": parts_read(model),
        "seconds": {name: profile(model, name, args.steps) for name in args.backends},
    }
    speed = result["bandwidth_bytes_per_s"]
    columns = {"at the limit": {k: v / speed for k, v in result["bytes"].items()}}
    columns |= result["seconds"]
    print(f"{'ms a token':<14}" + "".join(f"{name:>14}" for name in columns))
    for part in {part: None for column in columns.values() for part in column}:
        cells = "".join(f"{1e3 * column.get(part, 0):>14.2f}" for column in columns.values())
        print(f"{part:<14}{cells}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a checkpoint in the Hugging Face layout")
    parser.add_argument("--backends", nargs="+", default=["plain", "auto"])
    parser.add_argument("--steps", type=int, default=8, help="tokens that are timed (8)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    return parser.parse_args(argv)


def parts_read(model: gl.Transformer) -> dict[str, int]:
    """Return the bytes that each part of a step reads."""
    dense = str(model.embed.weight.dtype).removeprefix("torch.")
    read = account.step_bytes(model.config, CONTEXT_TOKENS, dense=dense)
    return {
        "experts": read["experts"],
        "projections": read["attention"],
        "unembedding": read["unembedding"],
        "attention": read["cache"],
        "rest": read["other"],
    }


def profile(model: gl.Transformer, backend: str, steps: int) -> dict[str, float]:
    """Return the seconds of each part, as the median over some decoded tokens."""
    cache, rows = gl.KVCache(model.config), []
    generator = torch.Generator().manual_seed(0)
    size = (1, CONTEXT_TOKENS + steps + 1)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)
    with torch.no_grad():
        model.hidden(tokens[:, :CONTEXT_TOKENS], cache)
        gl.use_backend(backend)
        model(tokens[:, CONTEXT_TOKENS : CONTEXT_TOKENS + 1], cache)  # warm up
        for i in range(CONTEXT_TOKENS + 1, tokens.shape[1]):
            rows.append(part_seconds(model, tokens[:, i : i + 1], cache))
    gl.use_backend("auto")
    return {part: median(row[part] for row in rows) for part in rows[0]}


def part_seconds(model: gl.Transformer, token: torch.Tensor, cache: gl.KVCache) -> dict[str, float]:
    """Read one token; return the seconds of each part."""
    asked = step.too_small(model, token, cache) or step.why_not(model, token, cache)
    if ("logits", "step", "tried first") in gl.backends() and not asked:
        return step.profiled(model, int(token), cache)  # C, which Python cannot look into
    start = time.perf_counter()
    with timed_parts(model) as seconds:
        model(token, cache)
        _wait(model.device)
    return {**seconds, "rest": time.perf_counter() - start - sum(seconds.values())}


@contextmanager
def timed_parts(model: gl.Transformer) -> Iterator[dict[str, float]]:
    """Time every dispatched operation while the block runs, by the part that it belongs to."""
    seconds: dict[str, float] = defaultdict(float)
    head, call, depth = model.unembed.weight, Op.__call__, 0

    def timed(op: Op, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        if op.plain.__name__ == "logits":  # the whole pass, of which the others are parts
            return call(op, *args, **kwargs)
        depth += 1
        start = time.perf_counter()
        try:
            answer = call(op, *args, **kwargs)
            _wait(model.device)
            return answer
        finally:
            depth -= 1
            if depth == 0:  # an operation may use another one: count the outer one only
                seconds[_part(op, args, head)] += time.perf_counter() - start

    Op.__call__ = timed
    try:
        yield seconds
    finally:
        Op.__call__ = call


def _part(op: Op, args: tuple[Any, ...], head: torch.Tensor) -> str:
    if op.plain.__name__ == "linear":
        return "unembedding" if args[1] is head else "projections"
    return {"apply_experts": "experts", "attend": "attention"}[op.plain.__name__]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
