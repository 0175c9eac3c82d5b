"""Checkpoints of random weights with the true names, shapes and bytes of a gpt-oss model.

They generate noise. They are for measuring: speed and memory depend on sizes and not on values,
so what loading and answering cost at full size can be found out without downloading anything.
"""

import errno
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import CheckpointError, ConfigError
from gptoss_lite.headers import INDEX_NAME, ITEM_BYTES, Shape, write_file
from gptoss_lite.names import BYTES, Layout, gpt_oss, gpt_oss_original
from gptoss_lite.presets import PRESETS

# Says so for programs. Not a key of config.json: OpenAI's reference accepts none but its own.
MARK_NAME = "synthetic.json"
# Random numbers are drawn once and written again and again, which is as fast as the disk. Their
# count is a prime, so no two rows of a matrix are alike.
POOL = 8_388_593
# Scale bytes: 2 ** -9 to 2 ** -6, so that decoded experts have a standard deviation near 0.02.
SCALE_BYTES = (118, 122)
SHARD_BYTES = 4_800_000_000  # near the published ones
ORIGINAL_SHARD_BYTES = 20_000_000_000
SPARE_BYTES = 10_000_000  # for headers, index and README
README = """# Random weights: {name}

**random weights, shapes of {name}; generates noise**

{layers} layers, {vocab} tokens, {layout}, seed {seed}. Written by gptoss_lite for measuring memory
and speed. Nothing in it was trained, and nothing that it generates means anything.
"""

Spec = tuple[str, Shape]  # a safetensors dtype, and a shape


def write_synthetic(
    model: str | ModelConfig,
    folder: str | Path,
    *,
    layers: int | None = None,
    vocab: int | None = None,
    original: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a checkpoint of random weights, piece by piece.

    It takes about 100 MB of memory at any size. Everything is written to a hidden folder beside
    the target, which gets its name at the very end, so a folder of that name is complete. What a
    killed process left behind is removed by the next call. Values keep activations of order 1, so
    logits are finite.

    Args:
        model: "gpt-oss-20b", "gpt-oss-120b", or any config of gpt-oss's shape.
        folder: where to; must not exist or be empty.
        layers: fewer layers than the model's own.
        vocab: fewer rows of the embedding and the output head.
        original: OpenAI's own layout instead of Hugging Face's.
        seed: the same seed gives the same bytes.
        progress: draw a bar on stderr.

    Returns:
        The folder. Its synthetic.json says `"synthetic": true`, its README.md the same in words.

    Raises:
        ConfigError: a model that is not gpt-oss with MXFP4 experts.
        CheckpointError: a folder with files in it, or a disk that is too small, which is found
            out before anything is written, or that others fill meanwhile. Nothing is left then.

    Example:
        >>> place = Path(tempfile.mkdtemp()) / "noise"
        >>> made = write_synthetic("gpt-oss-nano", place, layers=1, progress=False)
        >>> is_synthetic(made)
        True
        >>> shutil.rmtree(place.parent)
    """
    name, config = _shortened(model, layers, vocab)
    layout = gpt_oss_original(config) if original else gpt_oss(config)
    folder = Path(folder).expanduser().absolute()
    tensors = _in_published_order(layout)
    needed = sum(map(_n_bytes, tensors.values()))
    _make_way(folder, needed)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_prefix(folder)) as work:
            made = Path(work, "checkpoint")
            made.mkdir()
            with tqdm(
                total=needed, unit="B", unit_scale=True, desc="writing", disable=not progress
            ) as bar:
                _write_weights(made, tensors, original, needed, _Noise(seed), bar)
            content = config.to_original() if original else config.to_hf()
            _write_json(made / "config.json", content)
            about: dict[str, object] = {
                "name": name,
                "layers": config.n_layers,
                "vocab": config.vocab_size,
            }
            about |= {"layout": layout.name, "seed": seed}
            _write_json(made / MARK_NAME, {"synthetic": True} | about)
            (made / "README.md").write_text(README.format(**about), encoding="utf-8")
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    except OSError as problem:
        raise CheckpointError(_explain(folder, needed, problem)) from None
    return folder


def ensure_synthetic(
    model: str | ModelConfig, folder: str | Path, *, layers: int | None = None
) -> Path:
    """Return a folder of random weights of this shape: as found there, or newly written."""
    folder = Path(folder).expanduser().absolute()
    _, config = _shortened(model, layers, None)
    if is_synthetic(folder) and ModelConfig.from_hf(folder) == config:
        return folder
    return write_synthetic(model, folder, layers=layers)


def is_synthetic(folder: Path) -> bool:
    """Say whether a checkpoint tells that its weights are random."""
    return (folder / MARK_NAME).is_file()


def _shortened(
    model: str | ModelConfig, layers: int | None, vocab: int | None
) -> tuple[str, ModelConfig]:
    """Return a name for the README, and the config with fewer layers and tokens."""
    if isinstance(model, str) and model not in PRESETS:
        raise ConfigError(f'"{model}" is no preset. Use gpt-oss-20b, gpt-oss-120b or a config.')
    name, config = (model, PRESETS[model]) if isinstance(model, str) else ("a config", model)
    if config.family != "gpt_oss" or config.expert_dtype != "mxfp4":
        raise ConfigError(
            f"{name} is not of gpt-oss's shape with MXFP4 experts, and only those are written "
            "here. Use gpt-oss-20b or gpt-oss-120b."
        )
    n_layers = config.n_layers if layers is None else layers
    pattern = config.layer_pattern[: max(n_layers, 1)]  # a single layer slides
    n_tokens = config.vocab_size if vocab is None else vocab
    return name, config.but(n_layers=n_layers, vocab_size=n_tokens, layer_pattern=pattern)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.writing-"


def _make_way(folder: Path, needed: int) -> None:
    """Remove what a killed process left; refuse a folder or a disk that cannot take the files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not empty. Choose a new folder.")
    if not folder.parent.is_dir():
        raise CheckpointError(
            f"There is no folder {folder.parent} to write {folder.name} into. Make it first."
        )
    for abandoned in folder.parent.glob(f"{_prefix(folder)}*"):
        shutil.rmtree(abandoned)
    free = shutil.disk_usage(folder.parent).free
    if needed + SPARE_BYTES > free:
        raise CheckpointError(
            f"{folder} would take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free there. "
            "Use fewer layers, or a folder on a larger disk."
        )


def _explain(folder: Path, needed: int, problem: OSError) -> str:
    if problem.errno == errno.ENOSPC:
        return (
            f"The disk of {folder.parent} became full while {needed / 1e9:.1f} GB were being "
            "written; what was written has been removed. Free some disk space, use fewer layers, "
            "or choose a folder on a larger disk."
        )
    return f"Could not write {folder}: {problem.strerror or problem}. Nothing was left behind."


# --- files ---------------------------------------------------------------------------------------


def _in_published_order(layout: Layout) -> dict[str, Spec]:
    """Return each tensor's dtype and shape: layers sorted as text, then what has no layer."""
    expected = layout.expected()
    layered = sorted((name for name in expected if _layer_of(name)), key=_layer_of)
    ordered = [*layered, *(name for name in expected if not _layer_of(name))]
    return {
        name: ("U8" if expected[name][1] == BYTES else "BF16", expected[name][0])
        for name in ordered
    }


def _layer_of(name: str) -> str:
    """Return the number of a tensor's layer as text; nothing for embedding, norm and head."""
    return next((piece for piece in name.split(".") if piece.isdigit()), "")


def _n_bytes(spec: Spec) -> int:
    return ITEM_BYTES[spec[0]] * math.prod(spec[1])


def _write_weights(
    folder: Path, tensors: dict[str, Spec], original: bool, total: int, noise: "_Noise", bar: tqdm
) -> None:
    """Write the shards, and the index (Hugging Face) or the list of kinds (OpenAI) beside them."""
    # A quarter of the whole lets layers straddle files, as the published ones do.
    quarter = max(total // 4, max(map(_n_bytes, tensors.values())))
    limit = ORIGINAL_SHARD_BYTES if original else min(quarter, SHARD_BYTES)
    shards = _dealt(tensors, limit)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = _file_name(original, number, len(shards))
        pieces = (piece for tensor, spec in shard.items() for piece in noise.of(tensor, spec))
        write_file(folder / name, shard, _counted(pieces, bar))
        weight_map |= dict.fromkeys(shard, name)
    if original:
        packed = {"blocks": "FP4", "scales": "UE8"}
        kinds = {name: packed.get(name.rpartition(".")[2], "BF16") for name in tensors}
        _write_json(folder / "dtypes.json", kinds)
    else:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / INDEX_NAME, index)


def _dealt(tensors: dict[str, Spec], limit: int) -> list[dict[str, Spec]]:
    """Deal tensors out to files that stay below the limit."""
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in tensors.items():
        size += _n_bytes(spec)
        if shards[-1] and size > limit:
            shards.append({})
            size = _n_bytes(spec)
        shards[-1][name] = spec
    return shards


def _file_name(original: bool, number: int, count: int) -> str:
    """Return the published form: from 0 to the last index, or from 1 after a double hyphen."""
    if not original:
        return f"model-{number:05d}-of-{count - 1:05d}.safetensors"
    if count > 1:
        return f"model--{number + 1:05d}-of-{count:05d}.safetensors"
    return "model.safetensors"


def _counted(pieces: Iterable[memoryview], bar: tqdm) -> Iterator[memoryview]:
    for piece in pieces:
        yield piece
        bar.update(len(piece))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- numbers -------------------------------------------------------------------------------------


class _Noise:
    """Endless random bytes of each kind, cut from a few pools."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.normal = torch.randn(POOL, generator=generator)
        self.codes, self.scales = (
            torch.randint(low, high, (POOL,), generator=generator, dtype=torch.uint8)
            for low, high in ((0, 256), SCALE_BYTES)
        )

    def of(self, name: str, spec: Spec) -> Iterator[memoryview]:
        """Yield the bytes of one tensor, in pieces; each tensor starts elsewhere in its pool."""
        dtype, shape = spec
        if dtype == "U8":
            numbers = self.scales if name.endswith("scales") else self.codes
        else:
            mean, std = _spread(name, shape)
            numbers = (mean + std * self.normal[: 2 * math.prod(shape)]).bfloat16()
        pool = memoryview(numbers.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        left = _n_bytes(spec)
        start = ITEM_BYTES[dtype] * (zlib.crc32(f"{self.seed} {name}".encode()) % len(numbers))
        while left:
            piece = pool[start : start + left]
            yield piece
            left -= len(piece)
            start = 0


def _spread(name: str, shape: Shape) -> tuple[float, float]:
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
