"""Load published weights tensor by tensor, and save folders that other libraries load."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from gptoss_lite import hub
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import CheckpointError
from gptoss_lite.headers import INDEX_NAME, TensorInfo, read_folder
from gptoss_lite.model import Transformer
from gptoss_lite.moe import ExpertLinear
from gptoss_lite.mxfp4 import PackedExpertLinear, dequantize, quantize
from gptoss_lite.names import BYTES, Layout, Part, choose_layout, published_layout

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
}
LISTED = 5  # how many wrong tensors of a kind one error names
LOAD_SPARE_BYTES = 2**30  # beside the weights: buffers of the load itself and of a first answer


# --- load ----------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    experts: str = "packed",
    progress: bool = True,
) -> Transformer:
    """Load a published model: headers are checked first, then tensors stream in one by one.

    On the CPU, tensors kept in the file's dtype are mapped, not copied: they cost memory only
    when used, and the file must stay where it is. The model is in eval mode and its parameters
    need no gradient; call `requires_grad_()` to train.

    Args:
        source: a preset name ("gpt-oss-nano", "gpt-oss-20b" ...), a hub id, or a folder in the
            Hugging Face layout (gpt-oss, GPT-2, Qwen3-MoE) or OpenAI's original/ layout.
        device: where to put it; a GPU if there is one.
        dtype: dtype to compute in; the files' own (bfloat16, for GPT-2 float32). GPUs without
            bfloat16 units get float16.
        experts: "packed" keeps MXFP4 bytes as they are, "dense" decodes them to `dtype`.
        progress: print the memory needed and draw a bar, on stderr.

    Returns:
        The model; `model.source` is the folder it came from.

    Raises:
        CheckpointError: weights that are missing, damaged, named or shaped otherwise, or too
            large for the memory there is. Nothing is half-loaded.
        ConfigError: no config.json, or an unknown architecture.
    """
    if experts not in ("packed", "dense"):
        raise CheckpointError(f"experts={experts!r} is unknown. Use 'packed' or 'dense'.")
    folder = hub.find(source, want="weights", progress=progress)
    config = ModelConfig.from_hf(folder)
    held = read_folder(folder)
    layout = choose_layout(config, held)
    check_tensors(folder, layout, held)
    target = torch.device(device) if device is not None else _default_device()
    wanted = dtype or _default_dtype(config, target)
    needs = memory_needs(config, layout, held, target, wanted, experts)
    _refuse_if_too_large(folder, target, needs)
    if progress:
        tqdm.write(f"{folder.name}: {sum(needs) / 1e9:.2f} GB on {target}, {layout.name}.")
    return _assemble(folder, config, layout, held, target, wanted, experts, progress)


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _default_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    stored = getattr(torch, config.dtype)
    if device.type == "cuda" and stored == torch.bfloat16:
        # Turing (T4) emulates bfloat16 slowly; compute capability 8.0 is the first with units
        return stored if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return stored


def check_tensors(folder: Path, layout: Layout, held: dict[str, TensorInfo]) -> None:
    """Compare what the files hold with what the config asks for.

    Raises:
        CheckpointError: one sentence that counts and names every missing, unexpected, wrongly
            shaped and wrongly typed tensor.
    """
    expected = layout.expected()
    known = {name for name in held if not name.endswith(layout.ignored or ("\0",))}
    both = [name for name in expected if name in held]
    shapes = [
        f"{name} is {list(held[name].shape)}, not {list(expected[name][0])}"
        for name in both
        if held[name].shape != expected[name][0]
    ]
    dtypes = [
        f"{name} is {held[name].dtype}, not {' or '.join(expected[name][1])}"
        for name in both
        if held[name].dtype not in expected[name][1]
    ]
    problems = {
        "missing": sorted(set(expected) - set(held)),
        "unexpected": sorted(known - set(expected)),
        "of the wrong shape": shapes,
        "of the wrong dtype": dtypes,
    }
    found = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"The tensors in {folder} do not fit its config.json, read as {layout.name}: "
            f"{'; '.join(found)}. Download weights and config.json of the same model."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (" ..." if len(names) > LISTED else "")


def memory_needs(
    config: ModelConfig,
    layout: Layout,
    held: dict[str, TensorInfo],
    device: torch.device,
    dtype: torch.dtype,
    experts: str,
) -> tuple[int, int]:
    """Predict the bytes of a loaded model: (allocated, mapped from the files)."""
    allocated = mapped = 0
    for part in layout.parts:
        stored = held[part.files[0]]
        is_bytes = stored.dtype == "U8"
        count = sum(held[name].n_bytes for name in part.files)
        if part.span:
            count = count * part.span[2] // stored.shape[part.span[0]]
        if is_bytes and experts == "dense":
            decoded = 2 * count * dtype.itemsize  # two weights a byte of codes, none of scales
            allocated += decoded if part.ours.endswith("blocks") else 0
        elif (
            device.type == "cpu"
            and not part.copies
            and (is_bytes or TORCH_DTYPES[stored.dtype] == dtype)
        ):
            mapped += count
        elif is_bytes:
            allocated += count
        else:
            allocated += count * dtype.itemsize // TORCH_DTYPES[stored.dtype].itemsize
    return allocated, mapped


def _refuse_if_too_large(folder: Path, device: torch.device, needs: tuple[int, int]) -> None:
    allocated, mapped = needs
    free, total = available_memory(device)
    needed = allocated + LOAD_SPARE_BYTES
    if needed > free or mapped + needed > total:
        raise CheckpointError(
            f"{folder.name} needs {(allocated + mapped) / 1e9:.1f} GB on {device} and 1 GiB to work "
            f"in, but {free / 1e9:.1f} GB of {total / 1e9:.1f} GB are free. Close other programs, "
            "keep experts='packed', choose a 16-bit dtype, or use a smaller model such as "
            "'gpt-oss-nano'."
        )


def available_memory(device: torch.device) -> tuple[int, int]:
    """Return (free, total) bytes of a device; for the CPU, within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    total = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if hasattr(os, "sysconf")
        else 2**62
    )
    free = total
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return min(free, total), total


def _assemble(
    folder: Path,
    config: ModelConfig,
    layout: Layout,
    held: dict[str, TensorInfo],
    device: torch.device,
    dtype: torch.dtype,
    experts: str,
    progress: bool,
) -> Transformer:
    """Make the model without memory, then put each tensor in its place."""
    with torch.device("meta"):
        model = Transformer(config)
    decode = experts == "dense"
    if not decode and any(part.dtypes == BYTES for part in layout.parts):
        _make_room_for_bytes(model)
    with ExitStack() as stack:
        reader = _Reader(stack, held)
        for part in tqdm(layout.parts, desc="loading", unit="tensor", disable=not progress):
            if part.dtypes != BYTES:
                place(model, part.ours, reader.read(part).to(device, dtype))
            elif not decode:
                place(model, part.ours, reader.read(part).to(device))
            elif part.ours.endswith(".blocks"):  # their scales are read along with them
                ours = part.ours.removesuffix(".blocks")
                scales = next(p for p in layout.parts if p.ours == f"{ours}.scales")
                shape = model.get_submodule(ours).weight.shape
                dense = torch.empty(shape, device=device, dtype=dtype)
                _decode_into(dense, reader.read(part), reader.read(scales))
                place(model, f"{ours}.weight", dense)
    if config.tied:
        model.unembed.weight = model.embed.weight
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, f"the table of {layout.name} has no part for {left}"
    model.source = folder
    return model.eval()


class _Reader:
    """Opens each file once and hands out its tensors, mapped."""

    def __init__(self, stack: ExitStack, held: dict[str, TensorInfo]) -> None:
        self.stack = stack
        self.held = held
        self.open: dict[Path, Any] = {}

    def read(self, part: Part) -> Tensor:
        """Return the model's tensor of a part."""
        tensors = [self._get(name) for name in part.files]
        if part.span:
            tensors = [tensor.narrow(*part.span) for tensor in tensors]
        return part.read(tensors)

    def _get(self, name: str) -> Tensor:
        path = self.held[name].file
        try:
            if path not in self.open:
                self.open[path] = self.stack.enter_context(safe_open(path, framework="pt"))
            return self.open[path].get_tensor(name)
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(f"Cannot read {name} from {path}: {problem}.") from None


def _make_room_for_bytes(model: Transformer) -> None:
    """Put packed layers where the experts are, still empty."""
    nothing = torch.empty(0, dtype=torch.uint8, device="meta")
    for block in model.blocks:
        block.ffn.up = PackedExpertLinear(nothing, nothing, block.ffn.up.bias)
        block.ffn.down = PackedExpertLinear(nothing, nothing, block.ffn.down.bias)


def _decode_into(dense: Tensor, blocks: Tensor, scales: Tensor) -> None:
    """Decode one layer's packed matrices an expert at a time."""
    for expert, matrix in enumerate(dense):
        there = blocks[expert].to(dense.device), scales[expert].to(dense.device)
        matrix.copy_(dequantize(*there, dense.dtype).flatten(0, -2))


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor into the model under its dotted name, as parameter or as buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


# --- save ----------------------------------------------------------------------------------------


def save_checkpoint(
    model: Transformer,
    folder: str | Path,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model in the Hugging Face layout: shards, index and config.json.

    Everything is written to a folder beside the target and moved into place at the end, so a
    crash leaves no half checkpoint. Floats are written in `config.dtype`; with
    `expert_dtype="mxfp4"` dense experts are quantized by the OCP rule, packed ones kept byte for
    byte.

    Args:
        model: GPT-2, gpt-oss or Qwen3-MoE shaped.
        folder: where to; must not exist, be empty, or be an earlier checkpoint to overwrite.
        overwrite: replace the weights, index and config.json of an earlier checkpoint; other
            files of that folder, such as its tokenizer, are kept.
        max_shard_bytes: start a new file before one grows past this.

    Returns:
        The folder.

    Raises:
        ConfigError: a mix of parts that no published layout can hold.
        CheckpointError: a folder with files in it, weights that are not finite, or a full disk.
    """
    folder = Path(folder)
    config_json = model.config.to_hf()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise CheckpointError(
            f"{folder} is not empty. Choose a new folder, or pass overwrite=True."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    layout = published_layout(model.config)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        try:
            _write_shards(model, layout, Path(temporary), max_shard_bytes)
            _write_json(Path(temporary) / "config.json", config_json)
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(
                f"Could not write {folder}: {problem}. Nothing was changed; free some disk space."
            ) from None
        _move_into(Path(temporary), folder)
    return folder


def _write_shards(model: Transformer, layout: Layout, folder: Path, max_shard_bytes: int) -> None:
    """Write numbered files as they fill up; name them and the index once their number is known."""
    shards: list[list[str]] = []
    total_bytes = 0
    for number, shard in enumerate(_shards(_file_tensors(model, layout), max_shard_bytes)):
        # A contiguous copy of its own for each: views of one tensor cannot share a file.
        save_file(shard, folder / f"{number}.part", metadata={"format": "pt"})
        shards.append(list(shard))
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    weight_map = {}
    for number, names in enumerate(shards):
        # Numbered as the published files are: from 0, and the last index after "of".
        single = len(shards) == 1
        name = (
            "model.safetensors"
            if single
            else f"model-{number:05d}-of-{len(shards) - 1:05d}.safetensors"
        )
        (folder / f"{number}.part").rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    _write_json(
        folder / INDEX_NAME, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )


def _shards(tensors: Iterator[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _file_tensors(model: Transformer, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield the file's tensors in the layout's order, made from the model's one by one."""
    shared: dict[str, list[Tensor]] = {}  # pieces of file tensors that several parts share
    for part in layout.parts:
        tensors = part.write(_part_tensor(model, part))
        if part.span is None:
            yield from (
                (name, _own(tensor)) for name, tensor in zip(part.files, tensors, strict=True)
            )
            continue
        axis, start, length = part.span
        pieces = shared.setdefault(part.files[0], [])
        pieces.append(tensors[0])
        if start + length == part.shape[axis]:
            yield part.files[0], torch.cat(shared.pop(part.files[0]), dim=axis)


def _own(tensor: Tensor) -> Tensor:
    return (
        tensor.contiguous()
        if tensor.untyped_storage().nbytes() == tensor.nbytes
        else tensor.clone()
    )


def _part_tensor(model: Transformer, part: Part) -> Tensor:
    """Return the model's tensor of a part on the CPU, quantized first where the layout wants it."""
    path, _, leaf = part.ours.rpartition(".")
    module = model.get_submodule(path)
    if leaf in ("blocks", "scales") and isinstance(module, ExpertLinear):
        halves = module.weight.detach().cpu()
        if path.endswith(".up"):
            halves = halves.unflatten(1, (2, -1))  # [gate | up], as the packed layer views them
        return quantize(halves)[0 if leaf == "blocks" else 1]
    tensor = getattr(module, leaf).detach().cpu()
    if tensor.dtype == torch.uint8:
        return tensor
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{part.ours} holds values that are not finite: nothing was saved.")
    return tensor.to(getattr(torch, model.config.dtype))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _move_into(source: Path, folder: Path) -> None:
    """Swap the finished files in, keeping what else an earlier folder holds."""
    if folder.is_dir():
        for kept in folder.iterdir():
            is_old = kept.suffix == ".safetensors" or kept.name in (INDEX_NAME, "config.json")
            if not is_old:
                copy = shutil.copytree if kept.is_dir() else shutil.copy2
                copy(kept, source / kept.name)
        retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
        folder.rename(retired / folder.name)
        source.rename(folder)
        shutil.rmtree(retired)
    else:
        source.rename(folder)
    folder.chmod(0o755)  # a temporary folder is private to its owner
    source.mkdir()  # for its context manager to remove
