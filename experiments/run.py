"""Run one of the small experiments and record it.

    python -m experiments.run E1                       # three seeds; skips runs already recorded
    python -m experiments.run E1 E2 E9 --seeds 0       # one seed of several
    python -m experiments.run --all --smoke --out _build/smoke

A run that was stopped goes on with the same command: the record is written after every run, and
what it already holds is not run again unless the arm's definition has changed.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments import (
    e1_dropout,
    e2_ffn,
    e3_sinks,
    e4_granularity,
    e5_norm,
    e7_shape,
    e8_window,
    e9_positions,
    e10_formats,
    gqa,
    yarn,
)
from experiments.small import SEEDS, Arm, Experiment, describe, judge, run_arm, save

OUT = Path(__file__).resolve().parents[1] / "gptoss_lite" / "data" / "experiments"
MODULES = (
    e1_dropout,
    e2_ffn,
    e9_positions,
    e4_granularity,
    gqa,
    yarn,
    e8_window,
    e5_norm,
    e10_formats,
    e3_sinks,
    e7_shape,
)
ALL = (*(module.EXPERIMENT for module in MODULES), e2_ffn.RATES, e2_ffn.INIT)
EXPERIMENTS = {experiment.id: experiment for experiment in ALL}


def run(
    experiment: Experiment, out: Path, seeds: Sequence[int] = SEEDS, smoke: bool = False
) -> dict[str, Any]:
    """Do every run that the record at `out` lacks; write it after each.

    Seeds are the outer loop, so that what a stopped experiment has is already paired.
    """
    path = out / f"{experiment.id}.json"
    record = with_old_runs(describe(experiment, seeds), path)
    todo = [
        (seed, arm, row)
        for seed in seeds
        for arm, row in zip(experiment.arms, record["arms"], strict=True)
        if seed in arm.seeds and seed not in {done["seed"] for done in row["runs"]}
    ]
    bar = tqdm(todo, disable=not sys.stderr.isatty(), unit="run", desc=experiment.id)
    for seed, arm, row in bar:
        started = time.perf_counter()
        row["runs"].append(run_arm(experiment, arm, seed, smoke))
        save(judge(record), path)
        report(arm, row, seed, time.perf_counter() - started)
    save(judge(record), path)
    return record


def with_old_runs(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take over the runs of an earlier sitting whose arms were defined in the same way."""
    if not path.exists():
        return record
    old = json.loads(path.read_text(encoding="utf-8"))
    same = ("base", "recipe", "corpus_sha256", "schema")
    if any(old[key] != json.loads(json.dumps(record[key])) for key in same):
        return record
    found = {arm["name"]: arm for arm in old["arms"]}
    record["seeds"] = sorted({*record["seeds"], *old["seeds"]})
    for row in record["arms"]:
        before = found.get(row["name"])
        keys = ("changes", "settings", "note")
        if before and all(before[key] == json.loads(json.dumps(row[key])) for key in keys):
            row["runs"] = before["runs"]
    return record


def report(arm: Arm, row: dict[str, Any], seed: int, seconds: float) -> None:
    """Print one line about a finished run."""
    loss = next(done["loss"] for done in row["runs"] if done["seed"] == seed)
    tqdm.write(f"{arm.name:<28} seed {seed}  loss {loss:.4f}  {seconds:.0f} s")
    sys.stdout.flush()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--all", action="store_true", help="all of them, one after the other")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the records")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in EXPERIMENTS]:
        parser.error(f"unknown experiment {unknown}: choose from {list(EXPERIMENTS)}")
    if args.smoke and args.out == OUT:
        parser.error("--smoke would overwrite the recorded results: give another --out")
    names = list(EXPERIMENTS) if args.all else args.names
    findings = {}
    for seed in args.seeds:  # one seed of each first: the signs are known early
        for name in names:
            findings[name] = run(EXPERIMENTS[name], args.out, [seed], args.smoke)["finding"]
    for name, finding in findings.items():
        print(f"\n{name}: {finding}")


if __name__ == "__main__":
    main()
