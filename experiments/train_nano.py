"""Train `gpt-oss-nano`, the bundled model, on the made-up world of `nano_world.py`.

    python experiments/train_nano.py --steps 3500 --out runs/nano           # the real thing
    python experiments/train_nano.py --steps 3500 --out runs/nano --resume  # go on after a stop
    python experiments/train_nano.py --smoke --out runs/smoke               # under a minute

Everything is counted in steps, never in seconds, and the data of a step depends on the seed and
the step alone, so a stopped run goes on exactly where it was. On one thread and one torch
version two runs agree; other CPUs round bfloat16 products differently.
"""

import argparse
import csv
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nano_world
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import gptoss_lite as gl
from gptoss_lite import attention, moe
from gptoss_lite.config import ModelConfig, MoEConfig

DATA = Path(__file__).resolve().parents[1] / "gptoss_lite" / "data" / "gpt-oss-nano"
HELD_OUT_SEED = 1_000_003
CHECKPOINT = "state.safetensors"
LOG = "training_log.csv"


@dataclass(frozen=True)
class Recipe:
    """Every number of a run that is not the model's size."""

    steps: int
    seed: int = 0
    easy_steps: int = 600  # short lists and short system messages first
    copy_from: int = 1_700  # from here on more copying and fewer sums
    documents_per_step: int = 40
    micro_batches: int = 4  # different lengths, so different tasks, in every step
    peak_lr: float = 2e-3
    warmup: int = 50
    decay_share: float = 0.3  # the rate falls to zero over the last part of the run
    weight_decay: float = 0.1
    balance: float = 0.01  # how much uneven expert load costs
    clip: float = 1.0
    prose: bool = True
    log_every: int = 10
    held_out_every: int = 100
    held_out_documents: int = 6  # for each domain and effort
    save_every: int = 100

    def rate(self, step: int) -> float:
        """Give the learning rate: warm-up, constant, then down to zero."""
        decay = max(1, int(self.decay_share * self.steps))
        return self.peak_lr * min(1.0, (step + 1) / self.warmup, (self.steps - step) / decay)

    def stage(self, step: int) -> nano_world.Stage:
        """Give the curriculum's stage."""
        if step < self.easy_steps:
            return nano_world.EASY
        return nano_world.FULL if step < self.copy_from else nano_world.COPY


SMOKE = Recipe(
    steps=24,
    easy_steps=24,
    documents_per_step=12,
    warmup=5,
    peak_lr=4e-3,
    prose=False,
    log_every=4,
    held_out_every=24,
    held_out_documents=1,
    save_every=12,
)


def smoke_config() -> ModelConfig:
    """Return the same architecture at a size that learns something in seconds."""
    return gl.PRESETS["gpt-oss-nano"].but(
        d_model=64, n_layers=2, n_heads=4, d_ff=64, moe=MoEConfig(8, 4, router_bias=True)
    )


# --- data ----------------------------------------------------------------------------------------

POOL_STEPS = 8  # documents of this many steps are sorted by length together


@dataclass(frozen=True)
class Example:
    """One tokenized document; `weights[i]` is what predicting `ids[i]` counts."""

    ids: list[int]
    weights: list[float]
    domain: str


def tokenize(tokenizer: Tokenizer, document: nano_world.Document) -> Example:
    """Encode a document piece by piece, so that each token gets its piece's weight."""
    ids: list[int] = []
    weights: list[float] = []
    for piece in document.pieces:
        encoded = tokenizer.encode(piece.text).ids
        ids += encoded
        weights += [piece.weight] * len(encoded)
    return Example(ids, weights, document.domain)


def step_batches(tokenizer: Tokenizer, recipe: Recipe, step: int) -> list[list[Example]]:
    """Return the micro-batches of one step: a function of the seed and the step alone."""
    pool = _pool(tokenizer, recipe, step // POOL_STEPS)
    return [pool[i] for i in range(step % POOL_STEPS, len(pool), POOL_STEPS)]


@lru_cache(maxsize=2)
def _pool(tokenizer: Tokenizer, recipe: Recipe, pool: int) -> list[list[Example]]:
    """Draw the documents of a few steps and cut them, sorted by length, into equal parts.

    Part i goes to step i % POOL_STEPS, so every step gets short and long documents, each
    padded only to its own part's longest. Parts of one length band change places at random.
    """
    count = recipe.documents_per_step * POOL_STEPS
    stage = recipe.stage(pool * POOL_STEPS)
    examples = [
        tokenize(tokenizer, nano_world.document(recipe.seed, index, stage, prose=recipe.prose))
        for index in range(pool * count, (pool + 1) * count)
    ]
    examples.sort(key=lambda example: len(example.ids))
    parts = _equal_parts(examples, recipe.micro_batches * POOL_STEPS)
    rng = random.Random(f"order {recipe.seed} {pool}")
    shuffled = []
    for start in range(0, len(parts), POOL_STEPS):
        band = parts[start : start + POOL_STEPS]
        rng.shuffle(band)
        shuffled += band
    return shuffled


def _equal_parts(examples: list[Example], count: int) -> list[list[Example]]:
    """Cut a list into parts of about equally many tokens, at least one example each."""
    parts: list[list[Example]] = [[] for _ in range(count)]
    total, seen, part = sum(len(e.ids) for e in examples), 0, 0
    for left, example in zip(range(len(examples), 0, -1), examples, strict=True):
        full = parts[part] and seen >= (part + 1) * total / count
        if part < count - 1 and (full or left <= count - 1 - part):
            part += 1
        parts[part].append(example)
        seen += len(example.ids)
    return parts


def collate(examples: Iterable[Example]) -> tuple[Tensor, Tensor]:
    """Pad to a rectangle; padding counts nothing and stands after the text, so nobody sees it."""
    examples = list(examples)
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    weights = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    weights[:, 0] = 0.0
    return ids, weights


# --- faster parts, for training only -------------------------------------------------------------


def grouped_experts(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: nn.Module,
    down: nn.Module,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute `gptoss_lite.moe.apply_experts` with two batched products instead of a loop.

    Every expert's tokens are padded to the busiest expert's count. For 32 experts of width 128
    the padding costs less than 32 small calls do.
    """
    n_tokens, n_active = ids.shape
    n_experts = up.weight.shape[0]
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=n_experts)
    busiest = int(counts.max())
    first = counts.cumsum(0) - counts
    slots = flat[order] * busiest + torch.arange(len(flat)) - first[flat[order]]
    source = torch.zeros(n_experts * busiest, dtype=torch.int64)  # unused rows compute token 0
    source[slots] = order // n_active
    back = torch.empty_like(flat)
    back[order] = slots
    rows = x.index_select(0, source).view(n_experts, busiest, -1)
    hidden = act(torch.baddbmm(up.bias[:, None], rows, up.weight.transpose(1, 2)))
    answers = torch.baddbmm(down.bias[:, None], hidden, down.weight.transpose(1, 2))
    answers = answers.flatten(0, 1).index_select(0, back).view(n_tokens, n_active, -1)
    return (weights[..., None] * answers.float()).sum(1).to(x.dtype)


def merged_attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None, dropout: float = 0.0
) -> Tensor:
    """Compute `gptoss_lite.attention.attend` with fewer, larger products and no copy of scores.

    Query heads that share a key head become more rows of one product. The sink is a key of
    zeros whose score is its bias, and a value of zeros.
    """
    batch, n_heads, n_tokens, width = q.shape
    n_kv_heads = k.shape[1]
    empty = k.new_zeros(batch, n_kv_heads, 1, width)
    k, v = torch.cat((k, empty), 2), torch.cat((v, empty.to(v.dtype)), 2)
    seen = attention.visible(n_tokens, n_tokens, window)
    mask = torch.zeros(n_tokens, n_tokens).masked_fill_(~seen, -torch.inf)
    column = sinks.float().view(n_heads, 1, 1).expand(-1, n_tokens, 1)
    bias = torch.cat((mask.expand(n_heads, -1, -1), column), -1)  # [H T S+1]
    scores = (q / math.sqrt(width)).reshape(batch, n_kv_heads, -1, width) @ k.transpose(-1, -2)
    probs = (scores.view(batch, n_heads, n_tokens, -1) + bias).softmax(-1).to(v.dtype)
    return (probs.view(batch, n_kv_heads, -1, n_tokens + 1) @ v).view_as(q)


@contextmanager
def fast_parts() -> Iterator[None]:
    """Use the two functions above in place of the package's, which are written to be read."""
    plain = moe.apply_experts, attention.attend
    moe.apply_experts, attention.attend = grouped_experts, merged_attend
    try:
        yield
    finally:
        moe.apply_experts, attention.attend = plain


# --- one step ------------------------------------------------------------------------------------


class RouterWatch:
    """Collect the router logits of every layer during a forward pass."""

    def __init__(self, model: nn.Module, n_active: int) -> None:
        self.n_active = n_active
        self.logits: list[Tensor] = []
        for block in model.blocks:
            block.ffn.router.register_forward_hook(lambda _m, _i, out: self.logits.append(out))

    def balance(self, real: Tensor) -> tuple[Tensor, float]:
        """Return the load-balancing loss and the busiest expert's load over the mean load.

        The loss is E * sum(share of assignments * mean probability), 1 when both are even.
        Rows of padding are left out.
        """
        losses, busiest = [], 0.0
        for logits in self.logits:
            logits = logits.flatten(0, -2)[real.flatten()].float()
            n_experts = logits.shape[-1]
            chosen = logits.detach().topk(self.n_active, -1).indices
            share = chosen.flatten().bincount(minlength=n_experts) / chosen.numel()
            losses.append(n_experts * (share * logits.softmax(-1).mean(0)).sum())
            busiest = max(busiest, float(share.max()) * n_experts)
        self.logits.clear()
        return torch.stack(losses).mean(), busiest


def token_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the cross-entropy of every token after the first, [B, T-1], in bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1])
    flat = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return flat.view(ids.shape[0], -1)


def train_step(
    model: nn.Module,
    watch: RouterWatch,
    optimizer: torch.optim.Optimizer,
    batches: list[list[Example]],
    recipe: Recipe,
    step: int,
) -> dict[str, float]:
    """Accumulate the gradients of all micro-batches and take one optimizer step."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    pairs = [collate(batch) for batch in batches]
    total = sum(float(weights.sum()) for _, weights in pairs)
    row = {"loss": 0.0, "aux": 0.0, "max_load": 0.0, "tokens": 0.0}
    for (ids, weights), batch in zip(pairs, batches, strict=True):
        loss = (token_losses(model, ids) * weights[:, 1:]).sum() / total
        lengths = torch.tensor([len(example.ids) - 1 for example in batch])
        real = torch.arange(ids.shape[1] - 1) < lengths[:, None]
        aux, busiest = watch.balance(real)
        (loss + recipe.balance * aux / len(batches)).backward()
        row["loss"] += float(loss.detach())
        row["aux"] += float(aux.detach()) / len(batches)
        row["max_load"] = max(row["max_load"], busiest)
        row["tokens"] += float(lengths.sum())
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return row


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW; vectors (biases, norms, sinks) are not decayed."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for name, p in named if p.ndim < 2 or name.endswith("bias")]
    matrices = [p for name, p in named if not (p.ndim < 2 or name.endswith("bias"))]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95), fused=True)


# --- held-out loss -------------------------------------------------------------------------------


def held_out_examples(
    tokenizer: Tokenizer, per_cell: int, *, prose: bool, seed: int = HELD_OUT_SEED
) -> dict[str, list[Example]]:
    """Return fixed documents by domain: reserved questions, full system messages."""
    found: dict[str, list[Example]] = {}
    for domain in nano_world.DOMAINS:
        if domain == "prose" and not prose:
            continue
        efforts = ("none",) * 3 if domain == "prose" else nano_world.EFFORTS
        documents = [
            nano_world.held_out_document(seed + copy, index, domain, effort)
            for copy, effort in enumerate(efforts)
            for index in range(per_cell)
        ]
        found[domain] = [tokenize(tokenizer, document) for document in documents]
    return found


@torch.no_grad()
def held_out_loss(
    model: nn.Module, examples: dict[str, list[Example]], rows: int = 6
) -> dict[str, float]:
    """Return nats per answer token for each domain; prompts and planted slips do not count."""
    model.eval()
    losses = {}
    for domain, found in examples.items():
        found = sorted(found, key=lambda example: len(example.ids))
        summed = counted = 0.0
        for start in range(0, len(found), rows):
            ids, weights = collate(found[start : start + rows])
            counts = weights[:, 1:] > nano_world.PROMPT_WEIGHT + 1e-3
            summed += float(token_losses(model, ids)[counts].sum())
            counted += float(counts.sum())
        losses[domain] = summed / counted
    model.train()
    return losses


# --- files ---------------------------------------------------------------------------------------


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, tokens: int
) -> None:
    """Write weights, optimizer moments and the step to one file, in one atomic move."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach().contiguous()
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = optimizer.state[parameter][key].contiguous()
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "tokens": str(tokens)})
    temporary.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Read what `save_state` wrote; returns (steps done, tokens seen)."""
    load_weights(path, model)
    with safe_open(path, framework="pt") as file:
        step, tokens = int(file.metadata()["step"]), int(file.metadata()["tokens"])
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": file.get_tensor(f"exp_avg.{name}"),
                "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}"),
            }
    return step, tokens


def load_weights(path: Path, model: nn.Module) -> None:
    """Read only the model's float32 weights from what `save_state` wrote."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))


class Log:
    """A CSV file with one row every few steps; a resumed run drops the rows it will redo."""

    def __init__(self, path: Path, domains: Iterable[str], done: int) -> None:
        self.path = path
        self.columns = ["step", "tokens", "loss", "aux", "max_load", "lr", "seconds"]
        self.columns += [f"held_out_{domain}" for domain in domains]
        kept = []
        if done and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        self.started = time.perf_counter()

    def write(self, row: dict[str, float]) -> None:
        """Append a row; `seconds` counts all sittings together."""
        row = {**row, "seconds": self.seconds + time.perf_counter() - self.started}
        text = {key: f"{value:.6g}" for key, value in row.items() if key not in ("step", "tokens")}
        text |= {key: str(int(row[key])) for key in ("step", "tokens")}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(text)


def export(model: nn.Module, folder: Path, tokenizer_path: Path) -> None:
    """Write a folder that `gl.load` and transformers can read."""
    gl.save_checkpoint(model, folder, overwrite=True)
    (folder / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    ends = ("<|return|>", "<|endoftext|>", "<|call|>")  # as in gpt-oss's own file
    generation = {
        "bos_token_id": tokenizer.token_to_id("<|startoftext|>"),
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id(name) for name in ends],
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


# --- the run -------------------------------------------------------------------------------------


def train(
    config: ModelConfig, recipe: Recipe, out: Path, tokenizer_path: Path, *, resume: bool = False
) -> list[float]:
    """Train, log, save and export.

    Returns:
        The training loss of every step of this sitting.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    torch.manual_seed(recipe.seed)
    model = gl.Transformer(config).train()
    watch = RouterWatch(model, config.moe.n_active)
    optimizer = make_optimizer(model, recipe)
    done = tokens = 0
    if resume and (out / CHECKPOINT).exists():
        done, tokens = load_state(out / CHECKPOINT, model, optimizer)
    held_out = held_out_examples(tokenizer, recipe.held_out_documents, prose=recipe.prose)
    log = Log(out / LOG, held_out, done)
    losses: list[float] = []
    bar = tqdm(range(done, recipe.steps), disable=not sys.stderr.isatty(), unit="step")
    with fast_parts():
        for step in bar:
            batches = step_batches(tokenizer, recipe, step)
            row = train_step(model, watch, optimizer, batches, recipe, step)
            losses.append(row["loss"])
            tokens += int(row["tokens"])
            if not math.isfinite(row["loss"]):
                raise RuntimeError(f"the loss is {row['loss']} at step {step}: lower --lr")
            finished = step + 1
            row |= {"step": finished, "tokens": tokens, "lr": recipe.rate(step)}
            bar.set_postfix(loss=f"{row['loss']:.3f}")
            last = finished == recipe.steps
            if last or finished % recipe.held_out_every == 0:
                answers = held_out_loss(model, held_out)
                watch.logits.clear()
                row |= {f"held_out_{domain}": loss for domain, loss in answers.items()}
            if last or finished % recipe.log_every == 0:
                recent = losses[-recipe.log_every :]
                log.write(row | {"loss": sum(recent) / len(recent)})
            if last or finished % recipe.save_every == 0:
                save_state(out / CHECKPOINT, model, optimizer, finished, tokens)
                export(model, out / "export", tokenizer_path)
    return losses


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3_500)
    parser.add_argument("--out", type=Path, required=True, help="folder for log, state and export")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, 24 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=Recipe.peak_lr, help="peak learning rate")
    parser.add_argument("--no-prose", action="store_true", help="leave out the Shakespeare domain")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "tokenizer.json")
    parser.add_argument(
        "--threads", type=int, default=1, help="more than 1 helps only on cores that are idle"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = gl.PRESETS["gpt-oss-nano"]
    recipe = Recipe(args.steps, args.seed, peak_lr=args.lr, prose=not args.no_prose)
    if args.smoke:
        config, recipe = smoke_config(), SMOKE
    losses = train(config, recipe, args.out, args.tokenizer, resume=args.resume)
    if losses:
        print(f"{args.out}: {len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
