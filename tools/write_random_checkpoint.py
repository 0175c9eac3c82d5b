"""Write a checkpoint of random weights with the true names, shapes and bytes of a gpt-oss model.

It generates noise. It is for measuring: loading, memory, speed, at the widths of the published
files and with as many layers as fit, without downloading anything.

Example:
    python tools/write_random_checkpoint.py /tmp/random-20b --model gpt-oss-20b --layers 2
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from gptoss_lite.config import ModelConfig
from gptoss_lite.headers import INDEX_NAME, ITEM_BYTES, Shape, write_file
from gptoss_lite.names import BYTES, Layout, gpt_oss, gpt_oss_original
from gptoss_lite.presets import PRESETS

MODELS = ("gpt-oss-20b", "gpt-oss-120b", "gpt-oss-nano")
# Random numbers are drawn once and written again and again. Their count is a prime, so no two
# rows of a matrix are alike.
CHUNK = 8_388_593
LAYOUT_NAMES = {"hf": "Hugging Face's layout", "original": "OpenAI's original/ layout"}
# Scale bytes: 2 ** -9 to 2 ** -6, so that decoded experts have a standard deviation near 0.02.
SCALE_BYTES = (118, 122)
README = """# Random weights: {label}

**random weights, shapes of {model}; generates noise**

{n_layers} layers of {all_layers}, {vocab_size} tokens of {all_tokens}, {layout}, seed {seed}.
Written by `tools/write_random_checkpoint.py` of gptoss_lite for measuring memory and speed.
Nothing in it was trained, and nothing that it generates means anything.
"""

Spec = tuple[str, Shape]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    preset = PRESETS[args.model]
    n_layers = args.layers or preset.n_layers
    config = preset.but(
        n_layers=n_layers,
        vocab_size=args.vocab or preset.vocab_size,
        layer_pattern=preset.layer_pattern[:n_layers],  # a single layer slides
    )
    layout = gpt_oss(config) if args.layout == "hf" else gpt_oss_original(config)
    total = sum(n_bytes(spec) for spec in specs(layout).values())
    folder = args.folder.expanduser().absolute()
    if problem := refusal(folder, total):
        print(problem, file=sys.stderr)
        return 2
    label = f"random weights, shapes of {args.model}; generates noise"
    print(f"{folder}: {label} ({config.n_layers} layers, {total / 1e9:.2f} GB)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / "checkpoint"
        made.mkdir()
        with tqdm(total=total, unit="B", unit_scale=True, desc="writing") as bar:
            write_weights(made, layout, args.layout, total, args.seed, bar)
        content = config.to_hf() if args.layout == "hf" else original_config(config)
        write_json(made / "config.json", content)
        text = README.format(
            label=args.model,
            model=args.model,
            n_layers=config.n_layers,
            all_layers=preset.n_layers,
            vocab_size=config.vocab_size,
            all_tokens=preset.vocab_size,
            layout=LAYOUT_NAMES[args.layout],
            seed=args.seed,
        )
        (made / "README.md").write_text(text, encoding="utf-8")
        made.rename(folder)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, example = (__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog="Example:" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to; must not exist or be empty")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="default: %(default)s")
    parser.add_argument("--layers", type=int, help="how many layers; default: all of the model")
    parser.add_argument("--vocab", type=int, help="rows of the embeddings; default: all")
    parser.add_argument("--layout", choices=tuple(LAYOUT_NAMES), default="hf")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for option in ("layers", "vocab"):
        if (value := getattr(args, option)) is not None and value < 1:
            parser.error(f"--{option} {value}: there must be at least 1")
    return args


def refusal(folder: Path, total: int) -> str | None:
    """Say why nothing can be written there, or return None."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return f"{folder} is not empty. Choose a new folder."
    if not folder.parent.is_dir():
        return f"There is no folder {folder.parent} to write {folder.name} into. Make it first."
    free = shutil.disk_usage(folder.parent).free
    if total + 10**7 > free:
        return (
            f"{folder} would take {total / 1e9:.1f} GB and {free / 1e9:.1f} GB are free there. "
            "Use fewer --layers, or a folder on a larger disk."
        )
    return None


# --- files ---------------------------------------------------------------------------------------


def specs(layout: Layout) -> dict[str, Spec]:
    """Return the dtype and shape of each tensor in the published order: layers sorted as text."""
    expected = layout.expected()
    layered = sorted((name for name in expected if layer_of(name)), key=layer_of)
    ordered = [*layered, *(name for name in expected if not layer_of(name))]
    return {
        name: ("U8" if expected[name][1] == BYTES else "BF16", expected[name][0])
        for name in ordered
    }


def layer_of(name: str) -> str:
    """Return the number of a tensor's layer as text; nothing for embedding, norm and head."""
    return next((piece for piece in name.split(".") if piece.isdigit()), "")


def n_bytes(spec: Spec) -> int:
    return ITEM_BYTES[spec[0]] * math.prod(spec[1])


def write_weights(
    folder: Path, layout: Layout, kind: str, total: int, seed: int, bar: tqdm
) -> None:
    tensors = specs(layout)
    # A quarter of the whole lets layers straddle files; the published shards are near 4.8 GB.
    limit = min(total // 4, 4_800_000_000) if kind == "hf" else 20_000_000_000
    shards = dealt(tensors, limit)
    noise = Noise(seed)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = file_name(kind, number, len(shards))
        pieces = (piece for tensor, spec in shard.items() for piece in noise.of(tensor, spec))
        write_file(folder / name, shard, counted(pieces, bar))
        weight_map |= dict.fromkeys(shard, name)
    if kind == "hf":
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX_NAME, index)
    else:
        packed = {"blocks": "FP4", "scales": "UE8"}
        dtypes = {name: packed.get(name.rpartition(".")[2], "BF16") for name in tensors}
        write_json(folder / "dtypes.json", dtypes)


def dealt(tensors: dict[str, Spec], limit: int) -> list[dict[str, Spec]]:
    """Deal tensors out to files that stay below the limit."""
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in tensors.items():
        size += n_bytes(spec)
        if shards[-1] and size > limit:
            shards.append({})
            size = n_bytes(spec)
        shards[-1][name] = spec
    return shards


def file_name(kind: str, number: int, count: int) -> str:
    """Return the published form: from 0 to the last index, or from 1 after a double hyphen."""
    if kind == "hf":
        return f"model-{number:05d}-of-{count - 1:05d}.safetensors"
    if count > 1:
        return f"model--{number + 1:05d}-of-{count:05d}.safetensors"
    return "model.safetensors"


def counted(pieces: Iterator[memoryview], bar: tqdm) -> Iterator[memoryview]:
    for piece in pieces:
        yield piece
        bar.update(len(piece))


# --- numbers -------------------------------------------------------------------------------------


class Noise:
    """Endless random bytes of each kind, cut from a few chunks."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.normal = torch.randn(CHUNK, generator=self.generator)
        self.codes = self._bytes(0, 256)
        self.scales = self._bytes(*SCALE_BYTES)

    def _bytes(self, low: int, high: int) -> memoryview:
        drawn = torch.randint(low, high, (CHUNK,), generator=self.generator, dtype=torch.uint8)
        return memoryview(drawn.numpy())

    def of(self, name: str, spec: Spec) -> Iterator[memoryview]:
        """Yield the bytes of one tensor, in pieces."""
        dtype, shape = spec
        if dtype == "U8":
            chunk, item = (self.scales if name.endswith("scales") else self.codes), 1
        else:
            mean, std = spread(name, shape)
            count = min(CHUNK, math.prod(shape) * 2)
            numbers = (mean + std * self.normal[:count]).bfloat16()
            chunk, item = memoryview(numbers.view(torch.uint8).numpy()), 2
        left = n_bytes(spec)
        start = item * int(torch.randint(len(chunk) // item, (), generator=self.generator))
        while left:
            piece = chunk[start : start + left]
            yield piece
            left -= len(piece)
            start = 0


def spread(name: str, shape: Shape) -> tuple[float, float]:
    """Return mean and standard deviation that keep activations of order 1."""
    if "norm" in name:
        return 1.0, 0.1
    if name.endswith("sinks"):
        return 0.0, 1.0
    if name.endswith("bias"):
        return 0.0, 0.1
    if "embed" in name and "unembed" not in name:
        return 0.0, 1.0
    return 0.0, 1 / math.sqrt(shape[-1])


# --- config.json ---------------------------------------------------------------------------------


def original_config(config: ModelConfig) -> dict[str, object]:
    """Return the 16 keys of OpenAI's own config.json."""
    assert config.moe is not None
    assert config.yarn is not None
    return {
        "num_hidden_layers": config.n_layers,
        "num_experts": config.moe.n_experts,
        "experts_per_token": config.moe.n_active,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.yarn.original_context,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": config.yarn.factor,
        "rope_ntk_alpha": config.yarn.beta_slow,
        "rope_ntk_beta": config.yarn.beta_fast,
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
