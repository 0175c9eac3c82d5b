r"""Measure what MXFP4-aware training would gain `gpt-oss-nano`.

    python experiments/quantized_nano.py --state runs/nano/state.safetensors \
        --out gptoss_lite/data/gpt-oss-nano/quantized_training.json

Both arms go on from the finished weights for the same steps on the same data; one of them rounds
the experts' weights to MXFP4 in every forward pass. Then both are rounded, as the export does.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from score_nano import SCORE_SEED, run_on
from tokenizers import Tokenizer
from torch import nn
from train_nano import (
    DATA,
    Example,
    Recipe,
    RouterWatch,
    fast_parts,
    held_out_examples,
    held_out_loss,
    load_weights,
    make_optimizer,
    step_batches,
    train_step,
)

import gptoss_lite as gl

FIRST_STEP = 1_000_000  # data that no run has seen


def go_on(state: Path, tokenizer: Tokenizer, recipe: Recipe) -> gl.Transformer:
    """Train on from a saved state at a small rate that falls to zero."""
    model = gl.Transformer(gl.PRESETS["gpt-oss-nano"]).train()
    load_weights(state, model)
    watch = RouterWatch(model, model.config.moe.n_active)
    optimizer = make_optimizer(model, recipe)
    with fast_parts(quantized=recipe.quantized):
        for step in range(recipe.steps):
            batches = step_batches(tokenizer, recipe, FIRST_STEP + step)
            train_step(model, watch, optimizer, batches, recipe, step)
    return model


@torch.no_grad()
def losses(model: nn.Module, examples: dict[str, list[Example]]) -> dict[str, float]:
    """Return the answer loss, all chats together, before and after rounding the experts."""
    with fast_parts():
        plain = _mean(held_out_loss(model, examples))
    with fast_parts(quantized=True):
        return {"float32": plain, "mxfp4": _mean(held_out_loss(model, examples))}


def _mean(found: dict[str, float]) -> float:
    return round(sum(found.values()) / len(found), 5)


def main() -> None:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="what train_nano.py saved")
    parser.add_argument("--out", type=Path, help="JSON file; print only when left out")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--documents", type=int, default=12, help="documents a domain and effort")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "tokenizer.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    examples = held_out_examples(tokenizer, args.documents, prose=False, seed=SCORE_SEED)
    recipe = Recipe(args.steps, peak_lr=3e-4, warmup=5, decay_share=1.0, sink_rate=1.0)
    start = gl.Transformer(gl.PRESETS["gpt-oss-nano"])
    load_weights(args.state, start)
    report: dict[str, Any] = {
        "settings": run_on(1) | asdict(recipe),
        "start": losses(start, examples),
        "arms": {},
    }
    for name, quantized in (("plain", False), ("quantized", True)):
        model = go_on(args.state, tokenizer, replace(recipe, quantized=quantized))
        report["arms"][name] = losses(model, examples)
        print(name, report["arms"][name], flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
