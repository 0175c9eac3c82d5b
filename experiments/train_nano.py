"""Train `gpt-oss-nano`, the bundled model, on the made-up world of `nano_world.py`.

    python experiments/train_nano.py --out runs/nano                    # as it was shipped
    python experiments/train_nano.py --out runs/nano --resume           # go on after a stop
    python experiments/train_nano.py --preset gpu-20min --device cuda --out runs/longer
    python experiments/train_nano.py --smoke --out runs/smoke           # under a minute

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
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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
    easy_steps: int = 360  # short tasks first
    copy_from: int = 700  # from here on fewer sums and more copying
    cycle: int = 2_500  # steps of the first cycle of the rate; the second takes the rest
    chat_share: float = 0.3  # of the first cycle, at its end: mostly the full system message
    documents_per_step: int = 64
    micro_batches: int = 4  # different lengths, so different tasks, in every step
    peak_lr: float = 2e-3
    warmup: int = 50
    decay_share: float = 0.3  # the rate falls to zero over the last part of each cycle
    weight_decay: float = 0.1
    sink_rate: float = 10.0  # times the rate of the rest, once copying is learned
    sinks_from: int = 1_200
    balance: float = 0.01  # how much uneven expert load costs
    clip: float = 1.0
    quantized: bool = False  # round expert weights to MXFP4 in every forward pass
    prose: bool = True
    log_every: int = 10
    held_out_every: int = 100
    held_out_documents: int = 6  # for each domain and effort
    save_every: int = 100

    def rate(self, step: int) -> float:
        """Give the learning rate: warm-up, constant, then down to zero; twice in a long run."""
        first = min(self.cycle, self.steps)
        start, end = (0, first) if step < first else (first, self.steps)
        decay = max(1, int(self.decay_share * (end - start)))
        return self.peak_lr * min(1.0, (step - start + 1) / self.warmup, (end - step) / decay)

    def rate_of_sinks(self, step: int) -> float:
        """Give the sinks' own rate: 32 numbers that move too little at everyone's rate.

        Not from the start: a head that can look away before it has learned to look may never do.
        """
        late = step >= self.sinks_from
        return self.rate(step) * (self.sink_rate if late else 1.0)

    def stage(self, step: int) -> nano_world.Stage:
        """Give the curriculum's stage."""
        if step < self.easy_steps:
            return nano_world.EASY
        if step >= self.cycle:
            return nano_world.LATE
        if step >= (1 - self.chat_share) * min(self.cycle, self.steps):
            return nano_world.CHAT
        return nano_world.FULL if step < self.copy_from else nano_world.COPY


PRESETS = {
    "cpu-3h": Recipe(4_000),  # the shipped one: two hours of one quiet core, three of a busy one
    "gpu-20min": Recipe(6_000, documents_per_step=1_024, micro_batches=2),  # not yet tried
}
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


def start_model(config: ModelConfig, seed: int) -> gl.Transformer:
    """Make a model whose heads begin with strong and different preferences for distances.

    With small random queries and keys, and no bias, every head starts by averaging over all it
    sees, and looking one token back, which copying is built on, takes over a thousand steps to
    appear. Random biases that the rotation turns make each head favor some distances from the
    start.
    """
    torch.manual_seed(seed)
    model = gl.Transformer(config)
    for block in model.blocks:
        for linear in (block.attn.q, block.attn.k):
            nn.init.normal_(linear.weight, std=0.1)
            nn.init.normal_(linear.bias, std=1.0)
    return model


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


GROUP = 8  # experts computed together


def grouped_experts(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    up: nn.Module,
    down: nn.Module,
    act: Callable[[Tensor], Tensor],
    *,
    quantized: bool = False,
) -> Tensor:
    """Compute `gptoss_lite.moe.apply_experts` with a few batched products instead of a loop.

    Experts are put in order of their load, and each group of `GROUP` is padded to its busiest
    expert's count. For experts of width 128 that costs less than 32 small calls do.
    """
    n_tokens, n_active = ids.shape
    n_experts = up.weight.shape[0]
    flat = ids.flatten()
    counts = flat.bincount(minlength=n_experts)
    by_load = counts.argsort(descending=True)
    rank = torch.empty_like(by_load)
    rank[by_load] = torch.arange(n_experts)
    counts = counts[by_load]
    order = rank[flat].argsort(stable=True)  # assignments, those of the busiest expert first
    first = counts.cumsum(0) - counts
    answers, slots, used = [], torch.empty_like(flat), 0
    for start in range(0, n_experts, GROUP):
        experts, mine = by_load[start : start + GROUP], counts[start : start + GROUP]
        busiest = max(1, int(mine[0]))
        here = order[first[start] : first[start] + mine.sum()]
        expert = torch.repeat_interleave(torch.arange(len(experts)), mine)
        place = expert * busiest + torch.arange(len(here)) - (first[start + expert] - first[start])
        source = torch.zeros(len(experts) * busiest, dtype=torch.int64)  # unused: token 0
        source[place] = here // n_active
        slots[here] = used + place
        used += len(source)
        rows = x.index_select(0, source).view(len(experts), busiest, -1)
        hidden = act(_product(rows, up, experts, quantized))
        answers.append(_product(hidden, down, experts, quantized).flatten(0, 1))
    found = torch.cat(answers).index_select(0, slots).view(n_tokens, n_active, -1)
    return (weights[..., None] * found.float()).sum(1).to(x.dtype)


def _product(rows: Tensor, linear: nn.Module, experts: Tensor, quantized: bool) -> Tensor:
    weight, bias = linear.weight.index_select(0, experts), linear.bias.index_select(0, experts)
    if quantized:
        weight = rounded(weight)
    return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))


def rounded(weight: Tensor) -> Tensor:
    """Round to what MXFP4 can hold; the gradient passes straight through.

    The same values as `gl.mxfp4.quantize` gives, by arithmetic instead of a search.
    """
    blocks = weight.detach().unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True).clamp_min(2.0**-125)
    scale = torch.exp2(largest.log2().floor() - 2)  # the largest value of a block is 4 to 8
    units = blocks / scale
    step = torch.exp2(units.abs().clamp(1, 4).log2().floor() - 1)  # 0.5, 1 or 2
    held = ((units / step).round() * step).clamp(-6, 6) * scale
    return weight + (held.flatten(-2) - weight.detach())


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
def fast_parts(*, quantized: bool = False) -> Iterator[None]:
    """Use the functions above in place of the package's, which are written to be read."""
    plain = moe.apply_experts, attention.attend
    experts = partial(grouped_experts, quantized=quantized)
    moe.apply_experts, attention.attend = experts, merged_attend
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
    with torch.autocast(ids.device.type, torch.bfloat16):
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
    matrices, vectors, sinks = optimizer.param_groups
    matrices["lr"] = vectors["lr"] = recipe.rate(step)
    sinks["lr"] = recipe.rate_of_sinks(step)
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
    """Make AdamW with three groups; only matrices are decayed, and sinks have their own rate."""
    matrices, vectors, sinks = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            sinks.append(parameter)
        elif parameter.ndim < 2 or name.endswith("bias"):
            vectors.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": sinks, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95), fused=True)


# --- held-out loss -------------------------------------------------------------------------------


def held_out_examples(
    tokenizer: Tokenizer, per_cell: int, *, prose: bool, seed: int = HELD_OUT_SEED
) -> dict[str, list[Example]]:
    """Return fixed documents by domain: reserved questions, full system messages."""
    found: dict[str, list[Example]] = {}
    for domain in nano_world.DOMAINS:
        if domain in nano_world.PROSE and not prose:
            continue
        efforts = ("none",) * 3 if domain in nano_world.PROSE else nano_world.EFFORTS
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
                "exp_avg": file.get_tensor(f"exp_avg.{name}").to(parameter.device),
                "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(parameter.device),
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
    model = start_model(config, recipe.seed).train()
    watch = RouterWatch(model, config.moe.n_active)
    optimizer = make_optimizer(model, recipe)
    done = tokens = 0
    if resume and (out / CHECKPOINT).exists():
        done, tokens = load_state(out / CHECKPOINT, model, optimizer)
    held_out = held_out_examples(tokenizer, recipe.held_out_documents, prose=recipe.prose)
    log = Log(out / LOG, held_out, done)
    losses: list[float] = []
    bar = tqdm(range(done, recipe.steps), disable=not sys.stderr.isatty(), unit="step")
    with fast_parts(quantized=recipe.quantized):
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
    parser.add_argument("--preset", choices=PRESETS, default="cpu-3h")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--out", type=Path, required=True, help="folder for log, state and export")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, 24 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantized", action="store_true", help="round to MXFP4 while training")
    parser.add_argument("--no-prose", action="store_true", help="leave out plays and definitions")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "tokenizer.json")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ...")
    parser.add_argument(
        "--threads", type=int, default=1, help="more than 1 helps only on cores that are idle"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    config, recipe = gl.PRESETS["gpt-oss-nano"], PRESETS[args.preset]
    if args.smoke:
        config, recipe = smoke_config(), SMOKE
    recipe = replace(
        recipe,
        steps=args.steps or recipe.steps,
        seed=args.seed,
        quantized=args.quantized,
        prose=recipe.prose and not args.no_prose,
    )
    losses = train(config, recipe, args.out, args.tokenizer, resume=args.resume)
    if losses:
        print(f"{args.out}: {len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
