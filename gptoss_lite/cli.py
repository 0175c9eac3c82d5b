"""The command line: `gptoss-lite` and `python -m gptoss_lite`."""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import torch

from gptoss_lite import account, bench, hub, parallel, parity, recording
from gptoss_lite.cache import KVCache
from gptoss_lite.checkpoint import WORK_PREFIX, check_tensors, load, save_checkpoint
from gptoss_lite.config import ModelConfig
from gptoss_lite.dispatch import use_backend
from gptoss_lite.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    GptOssLiteError,
    TokenizerError,
)
from gptoss_lite.generate import generate
from gptoss_lite.headers import TensorInfo, read_folder
from gptoss_lite.model import Transformer
from gptoss_lite.names import choose_layout
from gptoss_lite.presets import PRESETS
from gptoss_lite.synthetic import ensure_synthetic, is_synthetic, write_synthetic
from gptoss_lite.tokenizer import Tokenizer, load_tokenizer

DEFAULT_MODEL = "gpt-oss-nano"
TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "chat_template*")
CHECKED = 2**24  # numbers looked at together by `verify`
PAST = 8  # tokens that `verify` reads beyond a window
MAX_SLACK = 4_096  # tokens of a reply that `chat` can take back from its cache; 0.1 GB for the 20b
MAX_THREADS = 1_024  # more are a slip
SMALL = 100_000_000  # parameters; below this, threads wait for each other longer than they work
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 with one sentence on bad input.

    `parity` returns 1 if a row fails.
    """
    args = _parser().parse_args(argv)
    try:
        status = _run_as_rank(args) if parallel.is_launched() else args.run(args)
    except GptOssLiteError as problem:
        if parallel.is_first():
            print(f"gptoss-lite: {problem}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as problem:
        reason = str(problem).partition(". GPU ")[0]
        print(
            f"gptoss-lite: {reason}. Give a shorter text, ask for fewer tokens, pass "
            "--offload-embedding, or close other programs.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\ngptoss-lite: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, such as `| head`
        sys.stderr.close()
        return 0
    return status or 0


def _run_as_rank(args: argparse.Namespace) -> int | None:
    """Run a command as one of the processes that torchrun started; only the first one prints."""
    if args.run is not _generate and not (args.run is _chat and args.question):
        raise BackendError(
            "Under torchrun there are `generate`, and `chat` with a question. Run other commands "
            "in one process."
        )
    with Path(os.devnull).open("w") as nowhere:
        try:
            parallel.start(args.device)
            with redirect_stdout(sys.stdout if parallel.is_first() else nowhere):
                return args.run(args)
        finally:
            parallel.stop()


# --- commands ------------------------------------------------------------------------------------


def _generate(args: argparse.Namespace) -> None:
    model, tokenizer = _load_both(args)
    _stream(model, tokenizer, tokenizer.encode(args.prompt), args)


def _chat(args: argparse.Namespace) -> None:
    model, tokenizer = _load_both(args)
    messages = [{"role": "developer", "content": args.instructions}] if args.instructions else []
    # Its chain of thought is left out of the next prompt, so a reply must come out of the cache.
    slack = max(args.lookup, min(args.max_new_tokens, MAX_SLACK))
    cache = KVCache(model.config, slack)
    for question in [args.question] if args.question else _questions():
        messages.append({"role": "user", "content": question})
        prompt = tokenizer.render(messages, effort=args.effort)
        reply = _stream(model, tokenizer, prompt, args, show=_as_channels, cache=cache)
        messages += tokenizer.parse(reply)


def _questions() -> Iterator[str]:
    """Read questions until an empty line or the end of the input."""
    with suppress(EOFError):
        while question := input("> ").strip():
            yield question


def _inspect(args: argparse.Namespace) -> None:
    folder = hub.find(args.source, want="weights")
    held = read_folder(folder)
    rows = held if args.all else _grouped(held)
    for name, info in rows.items():
        print(f"{name:<58} {info.dtype:<5} {list(info.shape)!s:<22} {info.n_bytes:>15,}")
    total = sum(info.n_bytes for info in held.values())
    by_dtype: Counter[str] = Counter()
    for info in held.values():
        by_dtype[info.dtype] += info.n_bytes
    shares = ", ".join(f"{dtype} {size / total:.1%}" for dtype, size in by_dtype.most_common())
    print(f"\n{len(held)} tensors, {total:,} bytes ({account.readable_bytes(total)}): {shares}")
    config = ModelConfig.from_hf(folder)
    noise = ", random weights: it generates noise" if is_synthetic(folder) else ""
    print(f"layout: {choose_layout(config, held).name}{noise}")
    print(f"parameters: {account.parameters(config):,}", end="; ")
    print(f"active per token: {account.parameters(config, active=True):,}")


def _grouped(held: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Fold what repeats over layers or experts into one row, with `*` for the number."""
    counts: Counter[str] = Counter()
    first: dict[str, TensorInfo] = {}
    for name, info in held.items():
        pattern = re.sub(r"\.\d+\.", ".*.", name)
        counts[pattern] += 1
        first.setdefault(pattern, info)
    return {f"{pattern}  x{counts[pattern]}": info for pattern, info in first.items()}


def _verify(args: argparse.Namespace) -> None:
    folder = hub.find(args.source, want="weights")
    config = ModelConfig.from_hf(folder)
    held = read_folder(folder)
    layout = choose_layout(config, held)
    check_tensors(folder, layout, held)
    print(f"names, shapes, dtypes: {len(held)} tensors as {layout.name} wants them")
    model = load(folder, device=args.device, dtype=_dtype(args.dtype), progress=False)
    for name, tensor in model.state_dict().items():
        if name.endswith(".scales"):
            sound = not bool((tensor == 255).any())
        else:
            sound = tensor.dtype == torch.uint8 or _is_finite(tensor)
        if not sound:
            raise CheckpointError(f"{name} holds values that are not finite. Download it again.")
    print("values: all finite, no scale byte is 255")
    length = min((config.sliding_window or 0) + PAST, config.context)
    tokens = torch.arange(length, device=model.device)[None] % config.vocab_size
    with torch.no_grad():
        logits = model(tokens).float()
    if not torch.isfinite(logits).all():
        raise CheckpointError("One forward pass gave logits that are not finite.")
    print(f"forward pass: {list(logits.shape)} logits, standard deviation {logits.std():.2f}")
    print(f"{folder.name} is sound.")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Look at a tensor in pieces: an embedding of 1 GB would need as much again at once."""
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.flatten().split(CHECKED))


def _fit(args: argparse.Namespace) -> None:
    config = PRESETS.get(args.model) or ModelConfig.from_hf(hub.find(args.model, want="config"))
    fit = account.fit(
        config,
        parse_bytes(args.memory),
        context_tokens=args.context,
        batch=args.batch,
        dense=args.dense,
        experts=args.experts,
        offload_embedding=args.offload_embedding,
    )
    print(json.dumps(fit.to_dict(), indent=2) if args.json else f"{args.model}: {fit}")


def parse_bytes(text: str) -> int:
    """Read a size such as 16GB (10 ** 9), 15.5GiB (2 ** 30) or a plain number of bytes.

    Raises:
        ConfigError: anything else.

    Example:
        >>> parse_bytes("16GB"), parse_bytes("1 GiB")
        (16000000000, 1073741824)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS:
        raise ConfigError(f"{text[:60]!r} is not a size. Write it like 16GB, 24GiB or 80GB.")
    size = float(match[1]) * UNITS[match[2].upper()]
    if size >= account.NO_MEMORY:
        raise ConfigError(
            f"{text[:60]!r} is more than any memory has. Write it like 16GB, 24GiB or 80GB."
        )
    return int(size)


def _download(args: argparse.Namespace) -> None:
    print(hub.find(args.source, want="weights"))


def _convert(args: argparse.Namespace) -> None:
    _require_new(args.folder)
    model = load(args.source, device="cpu", progress=sys.stderr.isatty())
    folder = save_checkpoint(model, args.folder, original=args.layout == "original")
    with suppress(CheckpointError, TokenizerError):
        beside = hub.find(args.source, want="tokenizer")
        for path in (path for name in TOKENIZER_FILES for path in beside.glob(name)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _require_new(folder: Path) -> None:
    """Refuse a folder that `save_checkpoint` would refuse, before a large model is loaded."""
    try:
        held = [path for path in folder.iterdir() if not path.name.startswith(WORK_PREFIX)]
    except FileNotFoundError:
        return
    except OSError as problem:
        raise CheckpointError(
            f"{folder} cannot be written to: {problem.strerror}. Name a new folder."
        ) from None
    if held:
        raise CheckpointError(
            f"{folder} is not empty: it holds {held[0].name}. Name a new folder, or empty it."
        )


def _trace(args: argparse.Namespace) -> None:
    recording.check_path(args.out)
    model, tokenizer = _load_both(args)
    prompt = tokenizer.render([{"role": "user", "content": args.prompt}], effort=args.effort)
    reply = list(_tokens(model, tokenizer, prompt, args))
    ids = prompt + reply
    run = recording.record(model, tokenizer, ids, n_prompt=len(prompt), lens=args.lens)
    path = run.save(args.out)
    print(
        f"{path}: {len(prompt)} prompt and {len(reply)} new tokens, {path.stat().st_size:,} bytes"
    )


def _bench(args: argparse.Namespace) -> None:
    out = None if args.json in (None, "-") else Path(args.json)
    if out:
        recording.check_path(out, devices=True)
    if config := _bench_config(args):
        sizes = (args.prompt_tokens, args.new_tokens, args.context, args.repeats)
        bench.check_sizes(config, *sizes)
    if args.threads:
        torch.set_num_threads(args.threads)
    use_backend(args.backend)
    try:
        with _bench_source(args) as args.model:
            result = bench.measure_source(
                lambda: _load(args),
                prompt_tokens=args.prompt_tokens,
                new_tokens=args.new_tokens,
                context_tokens=args.context,
                repeats=args.repeats,
            )
    finally:
        use_backend("auto")
    text = json.dumps(result.to_dict(), indent=2)
    if args.json == "-":
        print(text)
        return
    print(result)
    if out:
        try:
            out.write_text(text + "\n", encoding="utf-8")
        except OSError as problem:
            raise GptOssLiteError(f"{out} cannot be written: {problem.strerror}.") from None


def _bench_config(args: argparse.Namespace) -> ModelConfig | None:
    """Return the config of what is to be measured, and refuse options that would do nothing.

    None is a shape that nobody knows: it is refused where its weights are written.
    """
    if not args.synthetic:
        for option, value in (("--layers", args.layers), ("--folder", args.folder)):
            if value is not None:
                raise GptOssLiteError(
                    f"{option} is of random weights: give their shape, such as --synthetic "
                    "gpt-oss-20b, or leave it out."
                )
    named = [f"--synthetic {args.synthetic}"] if args.synthetic else []
    named += [str(args.source)] if args.source is not None else []
    named += [f"--model {args.model}"] if args.model is not None else []
    if len(named) > 1:
        raise GptOssLiteError(f"bench measures one model: give {' or '.join(named)}.")
    if args.source is None:
        args.source = DEFAULT_MODEL if args.model is None else args.model
    if args.synthetic:
        return PRESETS.get(args.synthetic)
    return ModelConfig.from_hf(hub.find(args.source, want="config"))


@contextmanager
def _bench_source(args: argparse.Namespace) -> Iterator[str | Path]:
    """Give the model to measure: the named one, or random weights that are written first."""
    if not args.synthetic:
        yield args.source
    elif args.folder:
        yield ensure_synthetic(args.synthetic, args.folder, layers=args.layers)
    else:
        with tempfile.TemporaryDirectory(prefix="gptoss-lite-") as place:
            yield write_synthetic(args.synthetic, Path(place, args.synthetic), layers=args.layers)


def _parity(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    rows = parity.check(args.rung)
    print(parity.report(rows))
    return 0 if all(row.ok for row in rows) else 1


# --- shared --------------------------------------------------------------------------------------


def _load_both(args: argparse.Namespace) -> tuple[Transformer, Tokenizer]:
    tokenizer = load_tokenizer(args.model)  # first: it is small, and its absence soon told
    return _load(args), tokenizer


def _load(args: argparse.Namespace) -> Transformer:
    config = ModelConfig.from_hf(hub.find(args.model, want="config"))
    if account.parameters(config) < SMALL and not getattr(args, "threads", None):
        torch.set_num_threads(1)
    options = {
        "device": args.device,
        "dtype": _dtype(args.dtype),
        "experts": args.experts,
        "progress": sys.stderr.isatty(),
    }
    if not parallel.is_launched():
        return load(args.model, offload_embedding=args.offload_embedding, **options)
    if args.offload_embedding:
        raise BackendError(
            "--offload-embedding is for one process. Those of torchrun hold a share each: drop it."
        )
    return parallel.load(args.model, **options)


def _dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name) if name else None


def _tokens(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: list[int],
    args: argparse.Namespace,
    cache: KVCache | None = None,
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(args.seed) if args.seed is not None else None
    return generate(
        model,
        prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=tokenizer.stop_ids,
        generator=generator,
        cache=cache,
        lookup=args.lookup,
    )


def _stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: list[int],
    args: argparse.Namespace,
    show: Callable[[str], str] = str,
    cache: KVCache | None = None,
) -> list[int]:
    """Print the text as it comes; a character cut across tokens waits until it is whole."""
    ids: list[int] = []
    shown = ""
    for token in _tokens(model, tokenizer, prompt, args, cache):
        ids.append(token)
        text = show(tokenizer.decode(ids))
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(show(tokenizer.decode(ids))[len(shown) :])
    return ids


def _as_channels(text: str) -> str:
    """Show a harmony reply as `channel: text` lines; a header that is not whole yet waits.

    Example:
        >>> print(_as_channels("<|channel|>analysis<|message|>2+3=5<|end|><|start|>assistant"))
        analysis: 2+3=5
        <BLANKLINE>
    """
    text = re.sub(r"<\|(?:start|channel)\|>(?:(?!<\|message\|>).)*$", "", text, flags=re.DOTALL)
    text = re.sub(r"(?:<\|start\|>assistant)?<\|channel\|>(.*?)<\|message\|>", r"\1: ", text)
    return text.replace("<|end|>", "\n").replace("<|return|>", "").replace("<|call|>", "")


# --- arguments -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptoss-lite",
        description="Load, look into and run gpt-oss, GPT-2 and Qwen3-MoE checkpoints.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, about: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"example:\n  gptoss-lite {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    add = command("generate", _generate, "continue a text", 'generate "Once upon a time"')
    add.add_argument("prompt")
    _model_options(add)
    _sampling_options(add, effort=False)

    add = command("chat", _chat, "ask questions", 'chat "What is 27 + 46?" --effort medium')
    add.add_argument("question", nargs="?", help="one question; without it, a conversation")
    add.add_argument("--instructions", help="a developer message before the question")
    _model_options(add)
    _sampling_options(add)

    add = command("inspect", _inspect, "list the tensors of a checkpoint", "inspect gpt-oss-nano")
    add.add_argument("source", nargs="?", default=DEFAULT_MODEL, help="preset, hub id or folder")
    add.add_argument("--all", action="store_true", help="one line for every layer and expert")

    add = command(
        "verify", _verify, "check names, shapes, values and one forward pass", "verify ./my-model"
    )
    add.add_argument("source", nargs="?", default=DEFAULT_MODEL, help="preset, hub id or folder")
    add.add_argument("--device", help="cpu, cuda, cuda:1 ...")
    add.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))

    add = command(
        "fit", _fit, "say whether a model fits a memory", "fit --model gpt-oss-20b --memory 16GB"
    )
    add.add_argument("--model", default="gpt-oss-20b", help="preset, hub id or folder")
    add.add_argument("--memory", required=True, help="such as 16GB (10^9) or 24GiB (2^30)")
    add.add_argument("--context", type=int, help="tokens to hold (4096)")
    add.add_argument("--batch", type=int, default=1, help="sequences (1)")
    add.add_argument("--dense", choices=("bfloat16", "float16", "float32"))
    add.add_argument("--experts", choices=("mxfp4", "bfloat16", "float16", "float32"))
    add.add_argument("--offload-embedding", action="store_true", help="it is in another memory")
    add.add_argument("--json", action="store_true")

    add = command("download", _download, "fetch only the files needed", "download gpt-oss-20b")
    add.add_argument("source", help="preset or hub id")

    add = command(
        "convert",
        _convert,
        "write a checkpoint in another layout",
        "convert gpt-oss-nano nano/original --layout original",
    )
    add.add_argument("source", help="preset, hub id or folder")
    add.add_argument("folder", type=Path, help="a new folder")
    add.add_argument("--layout", choices=("huggingface", "original"), default="huggingface")

    add = command(
        "trace", _trace, "record sinks and routing of one answer", 'trace "What is 2 + 3?"'
    )
    add.add_argument("prompt")
    add.add_argument("--out", type=Path, default=Path("trace.safetensors"))
    add.add_argument("--lens", action="store_true", help="also what each layer would say next")
    _model_options(add)
    _sampling_options(add)

    add = command(
        "bench",
        _bench,
        "measure tokens per second, load time and memory",
        "bench --synthetic gpt-oss-20b --layers 2 --json speed.json",
    )
    add.add_argument("source", nargs="?", help="preset, hub id or folder; the same as --model")
    add.add_argument("--prompt-tokens", type=int, default=128, help="read at once (128)")
    add.add_argument("--new-tokens", type=int, default=32, help="read one by one (32)")
    add.add_argument(
        "--context", type=int, help="tokens in the cache before the new ones (the prompt's)"
    )
    add.add_argument("--repeats", type=int, default=3, help="the median counts (3)")
    add.add_argument("--backend", default="auto", help="auto, plain or a name (auto)")
    add.add_argument(
        "--threads", type=_within(1, MAX_THREADS), help="of the CPU (all; 1 for small models)"
    )
    add.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    group = add.add_argument_group("random weights, to measure a size without downloading it")
    group.add_argument("--synthetic", metavar="PRESET", help="gpt-oss-20b, gpt-oss-120b ...")
    group.add_argument("--layers", type=int, help="fewer than the preset's")
    group.add_argument("--folder", type=Path, help="keep them here, or find them here")
    _model_options(add, default=None)

    add = command(
        "parity",
        _parity,
        "compare every rung of the ladder with a published class",
        'parity "sliding window"',
    )
    add.add_argument("rung", nargs="?", help="one rung; without it, all")
    return parser


def _within(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range, for argparse."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text[:60]!r} is no whole number from {low:,} to {high:,}."
            )
        return value

    return read


def _model_options(add: argparse.ArgumentParser, default: str | None = DEFAULT_MODEL) -> None:
    group = add.add_argument_group("model")
    group.add_argument(
        "--model", default=default, help=f"preset, hub id or folder ({DEFAULT_MODEL})"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (a GPU if there is one)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(the file's)")
    group.add_argument("--experts", choices=("packed", "dense"), default="packed")
    group.add_argument(
        "--offload-embedding", action="store_true", help="leave it on the CPU: the GPU saves 1.2 GB"
    )


def _sampling_options(add: argparse.ArgumentParser, effort: bool = True) -> None:
    group = add.add_argument_group("sampling")
    if effort:  # of a conversation; a plain text has none
        group.add_argument("--effort", choices=("low", "medium", "high"), default="medium")
    group.add_argument("--max-new-tokens", type=int, default=256)
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    group.add_argument("--top-k", type=int)
    group.add_argument("--top-p", type=float)
    group.add_argument("--seed", type=_within(0, 2**64 - 1), help="repeat a sampled text")
    group.add_argument(
        "--lookup", type=int, default=0, help="greedy only: guess this many repeated tokens (0)"
    )
