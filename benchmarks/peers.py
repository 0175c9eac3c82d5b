"""Run each peer in a process of its own, in turn, and compare what they report.

Nothing here imports torch: a child's peak memory would otherwise start from this process's.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Report = dict[str, Any]
TIMEOUT_S = 600


@dataclass(frozen=True)
class Peer:
    """One thing to be timed.

    Args:
        name: in the table.
        command: prints a JSON report as the last thing on its stdout.
        read: turns what it printed into a report.
        files: read once before, so that every peer loads from memory and not from the disk.
        once: too slow to be run in every round.
        note: what to know when comparing.
        dense: how it keeps the dense matrices ("bfloat16", "q8_0"), for its own limit.
        experts: how it keeps the experts ("mxfp4", "bfloat16").
    """

    name: str
    command: Sequence[str]
    read: Callable[[str], Report] = json.loads
    files: Sequence[Path] = ()
    once: bool = False
    note: str = ""
    dense: str = "bfloat16"
    experts: str = "mxfp4"
    environment: dict[str, str] = field(default_factory=dict)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring, with the example as it is written."""
    summary, _, example = (doc or "").partition("Example:")
    return argparse.ArgumentParser(
        description=summary,
        epilog="Example:" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def compare(peers: Sequence[Peer], rounds: int, threads: int) -> dict[str, Report]:
    """Run all peers `rounds` times, in turn and then in reverse; return one report for each.

    Rates and times are medians over the rounds, memory the maximum. A peer that fails is
    reported with its last words.
    """
    runs: dict[str, list[Report]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        # The slow ones run in the middle, so that the others are timed before and after them.
        due = [peer for peer in peers if not peer.once or number == rounds // 2]
        for peer in due if number % 2 == 0 else due[::-1]:
            print(f"round {number + 1} of {rounds}: {peer.name} ...", file=sys.stderr, flush=True)
            runs[peer.name].append(run(peer, threads))
            print(f"  {_line(runs[peer.name][-1])}", file=sys.stderr, flush=True)
    return {peer.name: _merged(peer, runs[peer.name]) for peer in peers}


def run(peer: Peer, threads: int) -> Report:
    """Run one peer once."""
    for path in peer.files:
        _read_through(path)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    environment |= peer.environment
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                list(peer.command), stdout=out, stderr=errors, env=environment, text=True
            )
        except OSError as problem:
            return {"error": f"cannot be started: {problem.strerror}"}
        status, peak_rss_bytes = _wait(child)
        wall_s = time.perf_counter() - start
        out.seek(0)
        errors.seek(0)
        text, last_words = out.read(), errors.read().strip().splitlines()[-1:]
    if status != 0:
        return {"error": " ".join(last_words) or f"ended with status {status}", "wall_s": wall_s}
    try:
        report = peer.read(text)
    except (ValueError, KeyError, IndexError) as problem:
        return {"error": f"printed something else than a report: {problem!r}", "wall_s": wall_s}
    return {"peak_rss_bytes": peak_rss_bytes, "wall_s": wall_s} | report


def _wait(child: subprocess.Popen[str]) -> tuple[int, int]:
    """Wait for a process; return its exit status and the most memory it held."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            child.kill()
        time.sleep(0.05)
    child.returncode = os.waitstatus_to_exitcode(status)  # it is gone: Popen need not wait
    unit = 1 if sys.platform == "darwin" else 1024
    return child.returncode, usage.ru_maxrss * unit


def _read_through(path: Path) -> None:
    files = sorted(path.iterdir()) if path.is_dir() else [path] * path.exists()
    for file in files:
        with file.open("rb", buffering=0) as data:
            while data.read(2**24):
                pass


def _merged(peer: Peer, reports: list[Report]) -> Report:
    good = [report for report in reports if "error" not in report]
    if not good:
        return {"error": reports[-1]["error"], "note": peer.note}
    merged: Report = {}
    for key, first in good[0].items():
        values = [report[key] for report in good if report.get(key) is not None]
        if type(first) in (int, float):
            merged[key] = max(values) if key.startswith("peak_") else median(values)
        else:
            merged[key] = first
    merged["note"], merged["rounds"] = peer.note, good
    return merged


# --- what they report ----------------------------------------------------------------------------


def ours(text: str) -> Report:
    """Read what `gptoss-lite bench --json` printed."""
    report = json.loads(text)
    if report["one_thread_bandwidth_bytes_per_s"] is None:  # it ran on a GPU
        report["peak_gpu_bytes"] = report["peak_memory_bytes"]
    return report


def llama_bench(text: str) -> Report:
    """Read what `llama-bench -o json` printed; a row without new tokens is a prompt's."""
    rows = json.loads(text)
    report: Report = {}
    for row in rows:
        if row["n_gen"] == 0:
            report["prefill_tokens_per_s"] = median(row["samples_ts"])
            report["prompt_tokens"] = row["n_prompt"]
        else:
            report["decode_tokens_per_s"] = median(row["samples_ts"])
            report["new_tokens"] = row["n_gen"]
    keys = ("build_commit", "cpu_info", "gpu_info", "model_size", "n_threads", "use_mmap")
    return report | {key: rows[0][key] for key in keys if key in rows[0]}


def machine() -> Report:
    """Say where and when this ran."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "priority": priority(),
        "load_average": os.getloadavg(),
    }


def settings(args: argparse.Namespace) -> dict[str, str]:
    """Return the options as text; of folders and files the name alone."""
    return {
        key: ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else _plain(value)
        for key, value in vars(args).items()
    }


def _plain(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


def _cpu_name() -> str:
    listed = Path("/proc/cpuinfo")
    names = re.findall(
        r"^model name\s*: (.+)$", listed.read_text() if listed.is_file() else "", re.M
    )
    return names[0] if names else platform.processor()


def priority() -> str:
    """Say whether the system may take the processor away in the middle of a timing."""
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) == os.SCHED_FIFO:
        return "real-time"
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


# --- the table -----------------------------------------------------------------------------------


def table(reports: dict[str, Report], baseline: str, limits: dict[str, float]) -> str:
    """Lay the reports out; `x` columns say how many times as fast the baseline is."""
    base = reports.get(baseline, {})
    head = ["peer", "load s", "1st token s", "RSS GiB", "GPU GiB", "prefill", "x", "decode", "x"]
    rows = [[*head, "limit", "reached", "generate"]]
    for name, report in reports.items():
        if "error" in report:
            rows.append([name, report["error"]])
            continue
        row = [name, _number(report.get("load_s"), 2), _number(report.get("first_token_s"), 2)]
        row += [_gib(report.get("peak_rss_bytes")), _gib(report.get("peak_gpu_bytes"))]
        for rate in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            mine, theirs = base.get(rate), report.get(rate)
            row += [_number(theirs, 2), _number(mine / theirs, 2) if mine and theirs else "-"]
        limit, decode = limits.get(name), report.get("decode_tokens_per_s")
        row += [_number(limit, 1), f"{decode / limit:.0%}" if limit and decode else "-"]
        rows.append([*row, _number(report.get("answer_tokens_per_s"), 2)])
    widths = [max(len(row[i]) for row in rows if len(row) > max(i, 2)) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        if len(row) > 2
        else f"{row[0].ljust(widths[0])}  {row[1]}"
        for row in rows
    ]
    notes = [f"{name}: {report['note']}" for name, report in reports.items() if report.get("note")]
    legend = f"prefill, decode, limit, generate: tokens/s; x: how many times as fast {baseline} is"
    return "\n".join([*lines, legend, *notes])


def limit(folder: Path, context_tokens: int, bandwidth: float, peer: Peer) -> float:
    """Return the tokens/s at which a peer would read memory at `bandwidth`, from its formats."""
    from gptoss_lite import account  # here and not above: it brings torch
    from gptoss_lite.config import ModelConfig

    config = ModelConfig.from_hf(folder)
    read = account.step_bytes(config, context_tokens, dense="bfloat16", experts=peer.experts)
    if peer.dense == "q8_0":  # 34 bytes for 32 numbers, where bfloat16 takes 64
        for part in ("attention", "unembedding"):
            read[part] = read[part] * 34 // 64
    return bandwidth / sum(read.values())


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**30:.1f}"


def _line(report: Report) -> str:
    if "error" in report:
        return report["error"]
    prefill, decode = report.get("prefill_tokens_per_s"), report.get("decode_tokens_per_s")
    return f"prefill {_number(prefill, 2)}, decode {_number(decode, 2)} tokens/s"
