"""Look inside `gpt-oss-nano`: sinks, experts, how far it recalls, what MXFP4 costs.

    python experiments/analyse_nano.py --state runs/nano/state.safetensors \
        --out gptoss_lite/data/gpt-oss-nano/analysis.json

Everything is measured on reserved documents. Each number that could come about by chance stands
beside what chance gives: labels shuffled, an even share, a guess.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nano_world
import torch
from score_nano import SCORE_SEED, final_answer, losses_by_domain, replies, settings
from tokenizers import Tokenizer
from torch import Tensor
from train_nano import Example, held_out_examples, load_weights

import gptoss_lite as gl

CLASSES = ("special", "digit", "mark", "name", "thing", "letter", "word")
SHUFFLES = 5


# --- what each head and each expert sees ---------------------------------------------------------


def collect(model: gl.Transformer, chats: Sequence[Example]) -> dict[str, list[Tensor]]:
    """Run every chat once; return one tensor a layer for each thing, all tokens one after another.

    Returns:
        "sink_mass" and "first_token" [H N], "router_logits" [N E], "expert_ids" [N A].
    """
    names = ("sink_mass", "probs", "router_logits", "expert_ids")
    found: dict[str, list[list[Tensor]]] = {}
    for example in chats:
        with gl.trace(model, *names) as seen, torch.no_grad():
            model(torch.tensor([example.ids]))
        step = {name: seen.per_layer(name) for name in names}
        step["first_token"] = [probs[0, :, :, 0] for probs in step.pop("probs")]
        step["sink_mass"] = [mass[0] for mass in step["sink_mass"]]
        for name, layers in step.items():
            for layer, tensor in enumerate(layers):
                found.setdefault(name, [[] for _ in layers])[layer].append(tensor.float())
    return {
        name: [
            torch.cat(parts, dim=1 if name in ("sink_mass", "first_token") else 0)
            for parts in layers
        ]
        for name, layers in found.items()
    }


def sinks(
    model: gl.Transformer, seen: dict[str, list[Tensor]], chats: Sequence[Example]
) -> dict[str, Any]:
    """Return each head's mean attention to its sink, and to the first token for comparison."""
    mass = torch.stack([layer.mean(1) for layer in seen["sink_mass"]])  # [L H]
    first = torch.stack([layer.mean(1) for layer in seen["first_token"]])
    spread = torch.stack([layer.std(1) for layer in seen["sink_mass"]])
    return {
        "mean_mass": _rounded(mass),
        "spread_over_tokens": _rounded(spread),
        "logits": _rounded(torch.stack([block.attn.sinks.float() for block in model.blocks])),
        "overall_mean": round(float(mass.mean()), 4),
        "share_of_heads_above_half": round(float((mass > 0.5).float().mean()), 4),
        "even_share": [round(_even_share(chats, block.attn.window), 4) for block in model.blocks],
        "first_token_mass": _rounded(first),
    }


def _even_share(examples: Sequence[Example], window: int | None) -> float:
    """Return the sink's mean share if it and every visible key got the same."""
    shares = []
    for example in examples:
        places = range(1, len(example.ids) + 1)
        shares.append(sum(1 / (min(n, window or n) + 1) for n in places) / len(places))
    return sum(shares) / len(shares)


def token_class(text: str) -> str:
    """Sort one decoded token into `CLASSES`."""
    word = text.strip()
    if text.startswith("<|"):
        return "special"
    if word.isdigit():
        return "digit"
    if word in nano_world.NAMES:
        return "name"
    if word in (*nano_world.OBJECTS, *nano_world.ANIMALS, *nano_world.COLORS):
        return "thing"
    if not any(c.isalpha() for c in word):
        return "mark"
    return "letter" if len(word) == 1 else "word"


def routing(
    model: gl.Transformer, seen: dict[str, list[Tensor]], labels: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Return for each layer how even the load is and what the experts are specialized in.

    Mutual information is between a token's first expert and its label, in bits; the baseline is
    the mean over shuffled labels, which is above zero because samples are finite.
    """
    n_experts = model.config.moe.n_experts
    rng = random.Random(0)
    rows = []
    for logits, ids in zip(seen["router_logits"], seen["expert_ids"], strict=True):
        load = ids.long().flatten().bincount(minlength=n_experts).float()
        share = load / load.sum()
        probs = logits.softmax(-1)
        first = ids[:, 0].long().tolist()
        row: dict[str, Any] = {
            "busiest_over_mean": round(float(load.max() / load.mean()), 3),
            "idle": int((load == 0).sum()),
            "load_entropy_bits": round(float(-(share * share.clamp_min(1e-12).log2()).sum()), 3),
            "token_entropy_bits": round(
                float(-(probs * probs.clamp_min(1e-12).log2()).sum(-1).mean()), 3
            ),
        }
        for name, of_token in labels.items():
            shuffled = []
            for _ in range(SHUFFLES):
                mixed = list(of_token)
                rng.shuffle(mixed)
                shuffled.append(mutual_information(first, mixed))
            row[f"bits_about_{name}"] = round(mutual_information(first, of_token), 3)
            row[f"bits_about_{name}_shuffled"] = round(sum(shuffled) / SHUFFLES, 3)
        rows.append(row)
    return rows


def mutual_information(ones: Sequence[Any], others: Sequence[Any]) -> float:
    """Return the mutual information of two sequences of labels, in bits."""
    table = torch.zeros(len(set(ones)), len(set(others)), dtype=torch.float64)
    rows = {label: i for i, label in enumerate(sorted(set(ones)))}
    columns = {label: i for i, label in enumerate(sorted(set(others)))}
    for one, other in zip(ones, others, strict=True):
        table[rows[one], columns[other]] += 1
    joint = table / table.sum()
    even = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    there = joint > 0
    return float((joint[there] * (joint[there] / even[there]).log2()).sum())


# --- what a part is worth ------------------------------------------------------------------------


@contextmanager
def changed(model: gl.Transformer, change: Callable[[Any, int], None]) -> Iterator[None]:
    """Change each block with `change(block, layer)` and put it back."""
    before = [
        (block.attn.sinks.data.clone(), block.attn.window, block.ffn.n_active)
        for block in model.blocks
    ]
    for layer, block in enumerate(model.blocks):
        change(block, layer)
    try:
        yield
    finally:
        for block, (logits, window, n_active) in zip(model.blocks, before, strict=True):
            block.attn.sinks.data.copy_(logits)
            block.attn.window, block.ffn.n_active = window, n_active


def _without_sinks(layers: Sequence[int]) -> Callable[[Any, int], None]:
    def change(block: Any, layer: int) -> None:
        if layer in layers:
            block.attn.sinks.data.fill_(-1e4)

    return change


def _all_sliding(window: int) -> Callable[[Any, int], None]:
    return lambda block, layer: setattr(block.attn, "window", window)


def _window(wanted: int, window: int) -> Callable[[Any, int], None]:
    def change(block: Any, layer: int) -> None:
        if layer == wanted:
            block.attn.window = window

    return change


def _top(active: int) -> Callable[[Any, int], None]:
    return lambda block, layer: setattr(block.ffn, "n_active", active)


def ablations(model: gl.Transformer, examples: dict[str, list[Example]]) -> dict[str, float]:
    """Return the loss on all answer tokens with one part changed."""
    n_layers, window = model.config.n_layers, model.config.sliding_window
    changes = {
        "unchanged": _without_sinks(()),
        "sinks_removed": _without_sinks(range(n_layers)),
        **{f"sinks_removed_in_layer_{n}": _without_sinks((n,)) for n in range(n_layers)},
        "all_layers_sliding": _all_sliding(window),
        "top_1_experts": _top(1),
        "top_2_experts": _top(2),
    }
    losses = {}
    for name, change in changes.items():
        with changed(model, change):
            losses[name] = losses_by_domain(model, examples)["all chats"]["loss"]
    return losses


def precision(state: Path, examples: dict[str, list[Example]], rounded: float) -> dict[str, float]:
    """Compare the trainer's float32 weights, the same in bfloat16, and the shipped MXFP4."""
    model = gl.Transformer(gl.PRESETS["gpt-oss-nano"])
    load_weights(state, model)
    found = {"float32": losses_by_domain(model.eval(), examples)["all chats"]["loss"]}
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    found["bfloat16"] = losses_by_domain(model, examples)["all chats"]["loss"]
    return found | {"mxfp4": rounded}


# --- recall against distance ---------------------------------------------------------------------


def recall_by_distance(
    model: gl.Transformer, tokenizer: Any, bpe: Tokenizer, count: int
) -> list[dict[str, Any]]:
    """Ask for a fact at every place of a list of ten; the distance is from the fact to the reply.

    Asked twice: as the model is, and with a window in every layer. A fact farther away than the
    window can then only be reached in several hops, and so can the system message, which says how
    to answer: sixty tokens are allowed, so that the answer may come after some working.
    """
    window = model.config.sliding_window
    rows = []
    for place in range(10):
        asked = Asked.draw(tokenizer, bpe, place, count)
        rows.append(
            {
                "place": place,
                "distance_tokens": asked.distance,
                "n": count,
                "full_accuracy": asked.accuracy(model, tokenizer),
                "sliding_accuracy": asked.accuracy(model, tokenizer, _all_sliding(window)),
            }
        )
    return rows


def first_fact_by_window(
    model: gl.Transformer, tokenizer: Any, bpe: Tokenizer, count: int
) -> dict[str, float]:
    """Ask for the first of ten facts with one layer's window wider by two tokens."""
    asked = Asked.draw(tokenizer, bpe, 0, count)
    found = {"as it is": asked.accuracy(model, tokenizer)}
    for wide, block in enumerate(model.blocks):
        if block.attn.window is not None:
            wider = _window(wide, block.attn.window + 2)
            found[f"layer {wide}, 2 tokens wider"] = asked.accuracy(model, tokenizer, wider)
    return found


@dataclass(frozen=True)
class Asked:
    """Rendered questions for the fact at one place of a list of ten, and their answers."""

    prompts: list[list[int]]
    answers: list[str]
    distance: float  # mean tokens from the fact's last word to the first word of the reply

    @classmethod
    def draw(cls, tokenizer: Any, bpe: Tokenizer, place: int, count: int) -> "Asked":
        """Draw reserved questions."""
        prompts, answers, distances = [], [], []
        for n in range(count):
            question, fact, answer = _recall_question(SCORE_SEED + n, place)
            prompts.append(tokenizer.render([{"role": "user", "content": question}], effort="low"))
            answers.append(answer)
            before = question[: question.index(fact) + len(fact)]
            behind = len(bpe.encode(question).ids) - len(bpe.encode(before).ids)
            distances.append(behind + 5)  # <|end|><|start|>assistant<|channel|>final<|message|>
        return cls(prompts, answers, round(sum(distances) / count, 1))

    def accuracy(
        self,
        model: gl.Transformer,
        tokenizer: Any,
        change: Callable[[Any, int], None] | None = None,
    ) -> float:
        """Return the share of right answers, with the model changed or as it is."""
        with changed(model, change or _without_sinks(())):
            found = replies(model, self.prompts, tokenizer.stop_ids, 60)
        said = [final_answer(tokenizer, reply) for reply in found]
        right = sum(a == b for a, b in zip(said, self.answers, strict=True))
        return round(right / len(self.answers), 4)


def _recall_question(seed: int, place: int) -> tuple[str, str, str]:
    """Write ten facts and ask for the one at `place`: (question, fact, answer)."""
    rng = random.Random(f"recall {seed} {place}")
    while True:
        things, owners = rng.sample(nano_world.OBJECTS, 10), rng.sample(nano_world.NAMES, 10)
        task = nano_world.recall_task(things, owners, place)
        if nano_world.reserved(task.key):
            return task.question, f"{things[place]} {owners[place]}", owners[place]


# --- the report ----------------------------------------------------------------------------------


def _rounded(table: Tensor) -> list[list[float]]:
    return [[round(float(x), 4) for x in row] for row in table]


def main() -> None:
    """Analyse from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="gpt-oss-nano", help="preset name or folder")
    parser.add_argument("--state", type=Path, help="the trainer's state, for the float32 weights")
    parser.add_argument("--out", type=Path, help="JSON file; print only when left out")
    parser.add_argument("--documents", type=int, default=20, help="documents a domain and effort")
    parser.add_argument("--prompts", type=int, default=100, help="recall questions a place")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = gl.load(args.source, dtype=torch.float32, experts="dense", progress=False)
    tokenizer = gl.load_tokenizer(args.source)
    bpe = Tokenizer.from_file(str(Path(model.source) / "tokenizer.json"))
    examples = held_out_examples(bpe, args.documents, prose=False, seed=SCORE_SEED)
    chats = [(domain, example) for domain, found in examples.items() for example in found]
    seen = collect(model, [example for _, example in chats])
    texts = [bpe.decode([i], skip_special_tokens=False) for _, e in chats for i in e.ids]
    labels = {
        "class": [token_class(text) for text in texts],
        "domain": [domain for domain, example in chats for _ in example.ids],
    }
    losses = ablations(model, examples)
    report = {
        "settings": settings(args.source, 1) | {"documents": len(chats), "tokens": len(texts)},
        "sinks": sinks(model, seen, [example for _, example in chats]),
        "routing": routing(model, seen, labels),
        "ablations": losses,
        "recall": recall_by_distance(model, tokenizer, bpe, args.prompts),
        "first_fact": first_fact_by_window(model, tokenizer, bpe, args.prompts),
    }
    if args.state:
        report["precision"] = precision(args.state, examples, losses["unchanged"])
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
