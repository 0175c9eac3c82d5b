"""Time gptoss_lite and transformers on one CUDA GPU, at several contexts, in one run.

Example:
    python tools/write_random_checkpoint.py /tmp/random-20b
    python tools/write_random_checkpoint.py /tmp/random-120b --model gpt-oss-120b
    python benchmarks/gpu_peers.py /tmp/random-20b --large /tmp/random-120b --json gpu.json
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks.peers import Peer, Report

TIME_PEER = str(Path(__file__).with_name("time_peer.py"))
PROMPTS = (128, 1_024, 2_048, 8_192)
LARGE_PROMPT = 1_024
DRY_PROMPTS = (50,)  # past the small model's window
NO_GPU = "There is no CUDA device here. Run this where there is one, or try it with --dry-run."


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.dry_run:
        with tempfile.TemporaryDirectory(prefix="gptoss-lite-") as place:
            args.folder = args.large = write_tiny(Path(place, "tiny"))
            return measure(args, "cpu")
    if args.folder is None:
        print("Name a checkpoint folder, or give --dry-run.", file=sys.stderr)
        return 2
    if not has_gpu():
        print(NO_GPU, file=sys.stderr)
        return 2
    return measure(args, "cuda")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = peers.parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="a gpt-oss-20b checkpoint")
    parser.add_argument("--large", type=Path, help="a gpt-oss-120b checkpoint, for ours alone")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=list(PROMPTS))
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--backends", nargs="*", default=["plain"], help="of ours, beside the usual"
    )
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, on the CPU")
    return parser.parse_args(argv)


def write_tiny(folder: Path) -> Path:
    from gptoss_lite.synthetic import write_synthetic  # here and not above: it brings torch

    return write_synthetic("gpt-oss-nano", folder, layers=2, progress=False)


def has_gpu() -> bool:
    """Ask in another process: torch would stay in this one's memory."""
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0


def measure(args: argparse.Namespace, device: str) -> int:
    """Run everything once for each prompt length, print a table for each, write the JSON."""
    if args.dry_run:
        args.prompt_tokens, args.new_tokens, args.repeats = DRY_PROMPTS, 2, 1
    reports: dict[int, dict[str, Report]] = {}
    theirs = transformers_by_length(args, device)
    for length in args.prompt_tokens:
        chosen = our_peers(args, device, length)
        reports[length] = peers.compare(chosen, 1, threads=1 if args.dry_run else 4)
        if theirs:
            reports[length]["transformers"] = theirs.get(length, theirs.get(0, {}))
        print(f"\nprompt of {length:,} tokens, then {args.new_tokens}, one by one")
        print(peers.table(reports[length], "ours", limits(reports[length])))
    if args.json:
        content = peers.machine() | {
            "settings": peers.settings(args),
            "prompts": reports,
        }
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    failed = [report for by_peer in reports.values() if "error" in (report := by_peer["ours"])]
    return 1 if failed else 0


def our_peers(args: argparse.Namespace, device: str, length: int) -> list[Peer]:
    """Return ours with each backend, and the large model at one prompt length."""

    def bench(folder: Path, *more: str) -> list[str]:
        command = [sys.executable, "-m", "gptoss_lite", "bench", str(folder), "--device", device]
        command += ["--prompt-tokens", str(length), "--new-tokens", str(args.new_tokens)]
        return [*command, "--repeats", str(args.repeats), "--json", "-", *more]

    chosen = [Peer("ours", bench(args.folder), peers.ours, [args.folder])]
    for name in args.backends:
        command = bench(args.folder, "--backend", name)
        chosen.append(Peer(f"ours, {name}", command, peers.ours))
    if args.large and length == large_length(args.prompt_tokens):
        chosen.append(Peer("ours, large model", bench(args.large), peers.ours, [args.large]))
    return chosen


def large_length(lengths: Sequence[int]) -> int:
    """Return the one prompt length at which the large model is timed: it takes long to load."""
    return LARGE_PROMPT if LARGE_PROMPT in lengths else lengths[0]


def transformers_by_length(args: argparse.Namespace, device: str) -> dict[int, Report]:
    """Time transformers at all lengths in one process: it takes long to load.

    Returns:
        Its report for each length; under 0 the reason why there is none.
    """
    if args.no_transformers or not importlib.util.find_spec("transformers"):
        return {}
    lengths = map(str, args.prompt_tokens)
    command = [sys.executable, TIME_PEER, "transformers", str(args.folder), "--device", device]
    command += ["--new-tokens", str(args.new_tokens), "--repeats", str(args.repeats)]
    peer = Peer("transformers", [*command, "--prompt-tokens", *lengths], files=[args.folder])
    report = peers.run(peer, threads=1 if args.dry_run else 4)
    if "error" in report:
        return {0: report}
    runs = report.pop("runs")
    return {run["prompt_tokens"]: report | run for run in runs}


def limits(reports: dict[str, Report]) -> dict[str, float]:
    """Return the tokens/s at which ours would read memory at the measured bandwidth."""
    return {
        name: report["bandwidth_bytes_per_s"] / report["bytes_per_token"]
        for name, report in reports.items()
        if "bytes_per_token" in report
    }


if __name__ == "__main__":
    sys.exit(main())
