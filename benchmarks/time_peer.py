"""Load a checkpoint with another library, time it as `gptoss-lite bench` does, print JSON.

Example:
    python benchmarks/time_peer.py transformers random-20b --prompt-tokens 128 --new-tokens 32
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

# Read the prompt; then give a function that reads one more token after it.
Reader = Callable[[Tensor], tuple[Any, Callable[[Tensor], Any]]]


def main(argv: Sequence[str] | None = None) -> int:
    summary, _, example = (__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog="Example:" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", choices=tuple(OPENERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128], help="one or more")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    start = time.perf_counter()
    read, version, n_tokens = OPENERS[args.peer](args.folder, args.device)
    load_s = time.perf_counter() - start
    with torch.no_grad():
        read(torch.zeros(1, 1, dtype=torch.long, device=args.device))
        wait(args.device)
        report: dict[str, Any] = {"load_s": load_s, "first_token_s": time.perf_counter() - start}
        runs = [
            timed(read, n_tokens, length, args.new_tokens, args.repeats, args.device)
            for length in args.prompt_tokens
        ]
    report |= runs[0] | {"runs": runs, "device": args.device, "threads": torch.get_num_threads()}
    python, ours = platform.python_version(), torch.__version__
    report["versions"] = f"Python {python}, torch {ours}, {version}"
    if args.device.startswith("cuda"):
        report["device"] = torch.cuda.get_device_name(args.device)
        report["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(args.device)
    print(json.dumps(report))
    return 0


def timed(
    read: Reader, n_tokens: int, prompt_tokens: int, new_tokens: int, repeats: int, device: str
) -> dict[str, Any]:
    """Time one prompt length; the first pass warms up and is reported by itself."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(n_tokens, (1, prompt_tokens + new_tokens), generator=generator)
    prompt, new = tokens.to(device).split((prompt_tokens, new_tokens), dim=1)
    passes = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        _, step = read(prompt)
        wait(device)
        read_at = time.perf_counter()
        for token in new.split(1, dim=1):
            step(token)
        wait(device)
        passes.append((read_at - start, time.perf_counter() - read_at))
    first, *counted = passes
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "first_prefill_s": first[0],
        "prefill_tokens_per_s": prompt_tokens / median(pair[0] for pair in counted),
        "decode_tokens_per_s": new_tokens / median(pair[1] for pair in counted),
    }


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


# --- the peers -----------------------------------------------------------------------------------


def open_transformers(folder: Path, device: str) -> tuple[Reader, str, int]:
    """Open with transformers, experts decoded to bfloat16: what it does without extra kernels."""
    import transformers
    from transformers import Mxfp4Config

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map=None if device == "cpu" else device,  # needs the package accelerate
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()

    def read(prompt: Tensor) -> tuple[Any, Callable[[Tensor], Any]]:
        out = model(prompt, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values

        def step(token: Tensor) -> Tensor:
            return model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

        return out.logits, step

    return read, f"transformers {transformers.__version__}", model.config.vocab_size


def open_reference(folder: Path, device: str) -> tuple[Reader, str, int]:
    """Open with OpenAI's own torch model; it has no cache, so a new token reads all again."""
    from importlib.metadata import PackageNotFoundError, version

    from gpt_oss.torch.model import Transformer  # pyright: ignore[reportMissingImports]

    model = Transformer.from_checkpoint(str(folder), device=device)

    def read(prompt: Tensor) -> tuple[Any, Callable[[Tensor], Any]]:
        tokens = [prompt[0]]

        def step(token: Tensor) -> Tensor:
            tokens.append(token[0])
            return model(torch.cat(tokens))

        return model(prompt[0]), step

    try:
        found = version("gpt-oss")
    except PackageNotFoundError:
        found = "of unknown version"
    return read, f"gpt-oss {found}", model.embedding.num_embeddings


OPENERS = {"transformers": open_transformers, "reference": open_reference}

if __name__ == "__main__":
    sys.exit(main())
