r"""Time gptoss_lite and other programs on the CPU, on the same weights, alternately in one run.

Example:
    python tools/write_random_checkpoint.py /tmp/random-4 --layers 4
    python benchmarks/make_gguf.py /tmp/random-4 /tmp/bf16.gguf --dense bf16
    python benchmarks/cpu_peers.py /tmp/random-4 --llama-bench llama-bench \
        --gguf /tmp/bf16.gguf --json cpu.json
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks.peers import Peer

TIME_PEER = str(Path(__file__).with_name("time_peer.py"))
OURS = "gptoss_lite"
LOAD = ", load"
# What takes seconds a token gets few of them.
SLOW = ("--prompt-tokens", "4", "--new-tokens", "2", "--repeats", "1")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    chosen = chosen_peers(args)
    reports = with_load_times(peers.compare(chosen, args.rounds, args.threads))
    chosen = [peer for peer in chosen if peer.name in reports]
    speeds = [r["bandwidth_bytes_per_s"] for r in reports.values() if "bandwidth_bytes_per_s" in r]
    bandwidth = median(speeds) if speeds else 0.0
    context = args.prompt_tokens + args.new_tokens
    limits = {p.name: peers.limit(args.folder, context, bandwidth, p) for p in chosen}
    result = peers.machine() | {
        "settings": peers.settings(args),
        "bandwidth_bytes_per_s": bandwidth,
        "peers": reports,
        "limits_tokens_per_s": limits,
    }
    print(peers.table(reports, OURS, limits))
    print(f"limit: {bandwidth / 1e9:.1f} GB/s, {args.threads} threads, priority {peers.priority()}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if "error" not in reports[OURS] else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = peers.parser(__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint in the Hugging Face layout")
    parser.add_argument("--threads", type=int, default=2, help="of every peer (2)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is run (2)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="within one run of a peer (3)")
    parser.add_argument(
        "--backends", nargs="*", default=["plain"], help="of ours, beside the usual choice (plain)"
    )
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument(
        "--reference", type=Path, help="the same in OpenAI's layout, for their torch model"
    )
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program of that name")
    parser.add_argument(
        "--gguf", type=Path, nargs="*", default=[], help="of make_gguf.py: *bf16*.gguf, *q8_0*.gguf"
    )
    parser.add_argument(
        "--no-repack",
        action="store_true",
        help="llama.cpp computes on the mapped file, without its second copy of the experts",
    )
    parser.add_argument("--json", type=Path, help="write everything there, too")
    return parser.parse_args(argv)


def chosen_peers(args: argparse.Namespace) -> list[Peer]:
    """Return what is to be timed and can be."""
    usual = ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
    usual += ["--repeats", str(args.repeats)]
    threads = ["--threads", str(args.threads)]
    bench = [sys.executable, "-m", "gptoss_lite", "bench", str(args.folder), "--device", "cpu"]
    bench += [*threads, "--json"]
    chosen = [Peer(OURS, [*bench, *usual], peers.ours, [args.folder])]
    for name in args.backends:
        slow = name in ("plain", "words")
        chosen.append(
            Peer(
                f"{OURS}, {name}",
                [*bench, *(SLOW if slow else usual), "--backend", name],
                peers.ours,
                [args.folder],
                once=slow,
                note=f"timed with {' '.join(SLOW)}" if slow else "",
            )
        )
    for gguf in args.gguf if args.llama_bench else []:
        chosen += llama_peers(args, gguf)
    if not args.no_transformers and importlib.util.find_spec("transformers"):
        chosen.append(
            Peer(
                "transformers",
                [sys.executable, TIME_PEER, "transformers", str(args.folder), *usual, *threads],
                files=[args.folder],
                once=True,
                note="experts decoded to bfloat16 while loading",
                experts="bfloat16",
            )
        )
    if args.reference:
        chosen.append(
            Peer(
                "OpenAI's torch model",
                [sys.executable, TIME_PEER, "reference", str(args.reference), *SLOW, *threads],
                files=[args.reference],
                once=True,
                note=f"no cache; timed with {' '.join(SLOW)}",
                experts="bfloat16",
            )
        )
    return chosen


def llama_peers(args: argparse.Namespace, gguf: Path) -> list[Peer]:
    """Return llama-bench for the rates, and once more for the time to the first token."""
    dense = "q8_0" if "q8_0" in gguf.name.lower() else "bfloat16"
    name = f"llama.cpp, {dense} dense"
    base = [str(args.llama_bench), "-m", str(gguf), "-t", str(args.threads), "-o", "json"]
    base += ["--repack", "0"] * args.no_repack
    rates = ["-p", str(args.prompt_tokens), "-n", str(args.new_tokens), "-r", str(args.repeats)]
    note = "decodes from an empty cache; " + (
        f"{saved_percent(args):.0f} % fewer bytes a token than the released weights, at this depth"
        if dense == "q8_0"
        else "same weights"
    )
    one_token = ["-p", "0", "-n", "1", "-r", "1", "--no-warmup"]
    return [
        Peer(name, base + rates, peers.llama_bench, [gguf], note=note, dense=dense),
        Peer(
            name + LOAD,
            base + one_token,
            lambda text: {"model_size": peers.llama_bench(text)["model_size"]},
            [gguf],
        ),
    ]


def saved_percent(args: argparse.Namespace) -> float:
    """Return by how many percent Q8_0 matrices shorten what a token of this model reads."""
    context = args.prompt_tokens + args.new_tokens
    released, rounded = (
        peers.limit(args.folder, context, 1.0, Peer("", [], dense=dense))
        for dense in ("bfloat16", "q8_0")
    )
    return 100 * (1 - released / rounded)


def with_load_times(reports: dict[str, peers.Report]) -> dict[str, peers.Report]:
    """Give the seconds of a whole one-token process to the peer whose loading it timed."""
    for name in [name for name in reports if name.endswith(LOAD)]:
        loaded = reports.pop(name)
        reports[name.removesuffix(LOAD)].setdefault("first_token_s", loaded.get("wall_s"))
    return reports


if __name__ == "__main__":
    sys.exit(main())
