"""Measure what `gpt-oss-nano` can do: held-out loss, and accuracy by task and effort.

    python experiments/score_nano.py --out gptoss_lite/data/gpt-oss-nano/scores.json

Questions are the reserved ones of `nano_world.py`, asked the way a user asks them: with the full
system message, greedy and at temperature 0.7. Beside each accuracy stands the most frequent
answer's share, which is what a model reaches that has learned the answers but not the task.
"""

import argparse
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
from train_nano import Example, Recipe, collate, held_out_examples, tokenize

import gptoss_lite as gl

SCORE_SEED = 2_000_003  # not the seed of the losses in the training log
MAX_NEW_TOKENS = 220
TEMPERATURE = 0.7


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
        if domain not in nano_world.PROSE:
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
def replies(
    model: gl.Transformer,
    prompts: Sequence[list[int]],
    stop: Sequence[int],
    limit: int,
    *,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Continue each prompt; prompts of one length are decoded together. Sampling is seeded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_length[len(prompt)].append(place)
    found: list[list[int]] = [[] for _ in prompts]
    ends = torch.tensor(list(stop))
    generator = torch.Generator().manual_seed(SCORE_SEED)
    for places in by_length.values():
        cache = gl.KVCache(model.config)
        tokens = torch.tensor([prompts[place] for place in places])
        running = torch.ones(len(places), dtype=torch.bool)
        for _ in range(limit):
            chosen = _draw(model(tokens, cache)[:, -1], temperature, generator)
            for row in running.nonzero().flatten().tolist():
                found[places[row]].append(int(chosen[row]))
            running &= ~torch.isin(chosen, ends)
            if not running.any():
                break
            tokens = chosen[:, None]
    return found


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.double() / temperature).softmax(-1)
    return probs.multinomial(1, generator=generator)[:, 0]


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


def share_right(documents: Sequence[nano_world.Document], answers: Sequence[str]) -> float:
    """Return the share of right answers."""
    right = sum(map(is_right, documents, answers))
    return round(right / len(documents), 4)


def score_cell(
    model: gl.Transformer, tokenizer: Any, domain: str, effort: str, count: int
) -> dict[str, Any]:
    """Ask `count` reserved questions of one domain at one effort."""
    documents = questions(domain, effort, count)
    prompts = [tokenizer.render(list(d.messages), effort=effort) for d in documents]
    stop, limit = tokenizer.stop_ids, MAX_NEW_TOKENS
    found = replies(model, prompts, stop, limit)
    answers = [final_answer(tokenizer, reply) for reply in found]
    sampled = replies(model, prompts, stop, limit, temperature=TEMPERATURE)
    drawn = [final_answer(tokenizer, reply) for reply in sampled]
    majority = Counter(d.answer for d in documents).most_common(1)[0][1]
    wrong = [
        {"question": d.messages[-1]["content"], "said": said, "right": d.answer}
        for d, said in zip(documents, answers, strict=True)
        if not is_right(d, said)
    ]
    cell = {
        "n": len(documents),
        "accuracy": share_right(documents, answers),
        "sampled_accuracy": share_right(documents, drawn),
        "majority_answer": round(majority / len(documents), 4),
        "mean_tokens": round(sum(map(len, found)) / len(found), 1),
        "unfinished": sum(reply[-1] not in stop for reply in found),
        "question": documents[0].messages[-1]["content"],
        "example": tokenizer.decode(found[0]),
        "mistakes": wrong[:3],
    }
    if domain == "recall":
        facts = [d.messages[-1]["content"].count(",") + 1 for d in documents]
        cell["guess_a_fact"] = round(sum(1 / n for n in facts) / len(facts), 4)
    return cell


def run_on(threads: int) -> dict[str, Any]:
    """Say when and with what something was measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"CPU, {threads} thread(s), {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def settings(source: str, threads: int) -> dict[str, Any]:
    """Say when, on what and with what a folder was measured."""
    weights = Path(gl.load(source, progress=False).source) / "model.safetensors"
    return run_on(threads) | {
        "dtype": "float32 activations, MXFP4 experts decoded",
        "seeds": {"training": Recipe(0).seed, "questions": SCORE_SEED},
        "decoding": f"greedy and at {TEMPERATURE}, at most {MAX_NEW_TOKENS} new tokens",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
    }


def main() -> None:
    """Score from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="gpt-oss-nano", help="preset name or folder")
    parser.add_argument("--out", type=Path, help="JSON file; print only when left out")
    parser.add_argument("--prompts", type=int, default=200, help="questions a cell")
    parser.add_argument("--documents", type=int, default=40, help="loss documents a cell")
    parser.add_argument("--tasks", nargs="*", default=list(nano_world.TASKS))
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
    report["tasks"] = {}
    for domain in args.tasks:
        report["tasks"][domain] = {}
        for effort in nano_world.EFFORTS:
            cell = score_cell(model, tokenizer, domain, effort, args.prompts)
            report["tasks"][domain][effort] = cell
            print(
                f"{domain:8} {effort:6} {cell['accuracy']:.3f}, sampled "
                f"{cell['sampled_accuracy']:.3f} of {cell['n']} (majority "
                f"{cell['majority_answer']:.2f}), {cell['mean_tokens']} tokens",
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
