r"""Decode with gptoss_lite and with llama.cpp in turns of a second or two, on the same weights.

The memory of a shared machine changes its speed within seconds. Short turns let both programs meet
all of its speeds, and the ratio within a turn depends on them least.

Example:
    python tools/write_random_checkpoint.py /tmp/random-4 --layers 4
    python benchmarks/make_gguf.py /tmp/random-4 /tmp/bf16.gguf --dense bf16
    python benchmarks/decode_turns.py /tmp/random-4 llama-bench /tmp/bf16.gguf --json turns.json
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gptoss_lite as gl
from benchmarks import peers
from benchmarks.peers import Peer
from gptoss_lite import bench

PROMPT_TOKENS = 128


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    model = gl.load(args.folder, device="cpu", progress=False)
    theirs = llama(args)
    turns: list[peers.Report] = []
    ours_tokens_per_s(model, args.new_tokens)  # builds what is built on first use
    for number in range(args.turns):
        answer = peers.run(theirs, args.threads)
        if "error" in answer:
            print(f"llama.cpp: {answer['error']}", file=sys.stderr)
            return 1
        turn = {
            "bandwidth_bytes_per_s": bench.measured_bandwidth(model.device),
            "gptoss_lite": ours_tokens_per_s(model, args.new_tokens),
            theirs.name: answer["decode_tokens_per_s"],
        }
        turns.append(turn)
        print(f"turn {number + 1} of {args.turns}: {line(turn)}", file=sys.stderr, flush=True)
    result = peers.machine() | {"settings": peers.settings(args), "turns": turns}
    print(summary(turns, theirs.name))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = peers.parser(__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint in the Hugging Face layout")
    parser.add_argument("llama_bench", type=Path, help="llama.cpp's program of that name")
    parser.add_argument("gguf", type=Path, help="the same weights, of make_gguf.py")
    parser.add_argument("--turns", type=int, default=24, help="at least 2 (24)")
    parser.add_argument("--new-tokens", type=int, default=32, help="in each turn (32)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write everything there, too")
    args = parser.parse_args(argv)
    if args.turns < 2 or args.new_tokens < 1:
        parser.error(f"--turns {args.turns} --new-tokens {args.new_tokens}: at least 2 and 1.")
    return args


def llama(args: argparse.Namespace) -> Peer:
    command = [str(args.llama_bench), "-m", str(args.gguf), "-t", str(args.threads)]
    command += ["-p", "0", "-n", str(args.new_tokens), "-r", "1", "-o", "json"]
    return Peer("llama.cpp", command, peers.llama_bench, [args.gguf])


@torch.no_grad()
def ours_tokens_per_s(model: gl.Transformer, new_tokens: int) -> float:
    """Read a prompt; return the rate of the tokens after it, as `gptoss-lite bench` does."""
    cache = gl.KVCache(model.config)
    generator = torch.Generator().manual_seed(0)
    size = (1, PROMPT_TOKENS + new_tokens)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator)
    model.hidden(tokens[:, :PROMPT_TOKENS], cache)
    start = time.perf_counter()
    for token in tokens[:, PROMPT_TOKENS:].split(1, dim=1):
        model(token, cache)
    return new_tokens / (time.perf_counter() - start)


def line(turn: peers.Report) -> str:
    memory, *rates = turn.values()
    rates = ", ".join(f"{rate:.1f}" for rate in rates)
    return f"{rates} tokens/s; memory {memory / 1e9:.0f} GB/s"


def summary(turns: Sequence[peers.Report], peer: str) -> str:
    ratios = [turn["gptoss_lite"] / turn[peer] for turn in turns]
    low, middle, high = quantiles(ratios, n=4)
    medians = [median(turn[name] for turn in turns) for name in ("gptoss_lite", peer)]
    return (
        f"medians {medians[0]:.1f} and {medians[1]:.1f} tokens/s; gptoss_lite / {peer} within a "
        f"turn: median {middle:.2f}, half of them {low:.2f} to {high:.2f}; "
        f"ahead in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)}"
    )


if __name__ == "__main__":
    sys.exit(main())
