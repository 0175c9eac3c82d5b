"""Load published weights tensor by tensor, and save folders that other libraries load."""

import errno
import json
import math
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from gptoss_lite import account, hub
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import BackendError, CheckpointError
from gptoss_lite.headers import INDEX_NAME, ITEM_BYTES, Shape, TensorInfo, read_folder, write_file
from gptoss_lite.model import Transformer
from gptoss_lite.moe import ExpertLinear
from gptoss_lite.mxfp4 import PackedExpertLinear, dequantize, quantize
from gptoss_lite.names import (
    BYTES,
    Layout,
    Part,
    choose_layout,
    gpt_oss_original,
    published_layout,
)

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
}
FILE_DTYPES = {"bfloat16": "BF16", "float32": "F32"}  # of ModelConfig.dtype
COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EMBEDDING = "embed.weight"  # of the model, of which a token reads one row
LISTED = 5  # how many wrong tensors of a kind one error names
CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"  # with what a text ends, for other libraries
DTYPES_NAME = "dtypes.json"  # OpenAI's own layout has it
ONE_FILE = "model.safetensors"
WORK_PREFIX = ".saving-"  # of the hidden folder that a checkpoint is written to
LOAD_SPARE_BYTES = 2**30  # beside the weights: buffers of the load itself and of a first answer


Cut = Callable[[str, Tensor], Tensor]  # what a process keeps of a whole tensor, given its name


def _whole(name: str, tensor: Tensor) -> Tensor:
    return tensor


# --- load ----------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    experts: str = "packed",
    offload_embedding: bool = False,
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
            bfloat16 units get float16, which here means matrices only: see `held_dtype`.
        experts: "packed" keeps MXFP4 bytes as they are, "dense" decodes them to `dtype`.
        offload_embedding: leave the embedding on the CPU and move only the rows of the tokens to
            the device, which saves 1.16 GB there for gpt-oss.
        progress: print the memory needed and draw a bar, on stderr.

    Returns:
        The model; `model.source` is the folder it came from.

    Raises:
        CheckpointError: weights that are missing, damaged, named or shaped otherwise, or too
            large for the memory there is. Nothing is half-loaded.
        ConfigError: no config.json, an unknown architecture, or a tied embedding to offload.
        BackendError: a device that this machine or this torch does not have.
    """
    options = {"device": device, "dtype": dtype, "experts": experts, "progress": progress}
    return load_share(source, _whole, offload_embedding=offload_embedding, **options)


def load_share(
    source: str | Path,
    cut: Cut,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    experts: str = "packed",
    offload_embedding: bool = False,
    progress: bool = True,
) -> Transformer:
    """Load a model of which this process keeps a part of each tensor; see `load` and `parallel`.

    The rest of a tensor is not read, as long as the tensor is a view of the file.
    """
    if experts not in ("packed", "dense"):
        raise CheckpointError(f"experts={experts!r} is unknown. Use 'packed' or 'dense'.")
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        name = str(dtype).removeprefix("torch.")
        given = f"the text {dtype!r}" if isinstance(dtype, str) else str(dtype)
        allowed = ", ".join(map(str, COMPUTE_DTYPES))
        meant = getattr(torch, name, None) in COMPUTE_DTYPES
        advice = f"Give torch.{name}" if meant else f"Use one of {allowed}"
        raise CheckpointError(f"A model cannot compute in {given}. {advice}.")
    target = _device(device)
    folder = hub.find(source, want="weights", progress=progress)
    config = ModelConfig.from_hf(folder)
    held = read_folder(folder)
    layout = choose_layout(config, held)
    check_tensors(folder, layout, held)
    # What the files hold counts, whatever config.json says of quantization.
    is_packed = any(part.dtypes == BYTES for part in layout.parts)
    config = config.but(expert_dtype="mxfp4" if is_packed else config.dtype)
    wanted = dtype or _default_dtype(config, target)
    places = _places(config, layout, target, offload_embedding)
    sizes = []
    for there in dict.fromkeys((target, *places.values())):
        parts = tuple(part for part in layout.parts if places[part.ours] == there)
        needs = memory_needs(replace(layout, parts=parts), held, there, wanted, experts, cut)
        can_offload = there.type != "cpu" and places[EMBEDDING] == there and not config.tied
        _refuse_if_too_large(folder, there, needs, can_offload)
        sizes.append(f"{sum(needs) / 1e9:.2f} GB on {there}")
    if progress:
        tqdm.write(f"{folder.name}: {', '.join(sizes)}, {layout.name}.", file=sys.stderr)
    return _assemble(folder, config, layout, held, places, wanted, experts, cut, progress)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0].rstrip(".")
        raise BackendError(f"device={str(device)!r} cannot be used here: {reason}.") from None
    if target.type == "meta":
        raise BackendError("device='meta' holds no weights. Use 'cpu' or 'cuda'.")
    return target


def _places(
    config: ModelConfig, layout: Layout, device: torch.device, offload_embedding: bool
) -> dict[str, torch.device]:
    """Return where each of the model's tensors shall be."""
    places = dict.fromkeys((part.ours for part in layout.parts), device)
    if offload_embedding:
        account.embedding_bytes(config)  # refuses a tied one
        places[EMBEDDING] = torch.device("cpu")
    return places


def _default_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    stored = getattr(torch, config.dtype)
    if device.type == "cuda" and stored == torch.bfloat16:
        # Turing (T4) emulates bfloat16 slowly; compute capability 8.0 is the first with units
        return stored if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return stored


def held_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model that computes in `dtype` holds one of its tensors.

    float16 ends at 65,504, which the residual stream of gpt-oss passes. So a float16 model holds
    only its matrices in float16. Norms, biases and sinks are float32, the stream takes its dtype
    from the norms, and every product and sum is float32.
    """
    is_vector = "norm" in name or name.endswith(("bias", "sinks"))
    return torch.float32 if dtype == torch.float16 and is_vector else dtype


def check_tensors(folder: Path, layout: Layout, held: dict[str, TensorInfo]) -> None:
    """Compare what the files hold with what the config asks for.

    Raises:
        CheckpointError: one sentence that counts and names every missing, unexpected, wrongly
            shaped and wrongly typed tensor.
    """
    expected = layout.expected()
    known = {name for name in held if not name.endswith(layout.ignored)}
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


def is_mapped(part: Part, stored: TensorInfo, device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether the model can use the file's bytes where they lie, without a copy."""
    as_stored = TORCH_DTYPES[stored.dtype] in (held_dtype(part.ours, dtype), torch.uint8)
    return device.type == "cpu" and as_stored and not part.copies


def memory_needs(
    layout: Layout,
    held: dict[str, TensorInfo],
    device: torch.device,
    dtype: torch.dtype,
    experts: str,
    cut: Cut = _whole,
) -> tuple[int, int]:
    """Predict the bytes of a loaded model: (allocated, mapped from the files)."""
    allocated = mapped = 0
    for part in layout.parts:
        files = [torch.empty(part.shape, dtype=torch.uint8, device="meta")] * len(part.files)
        count = cut(part.ours, _tensor_of(part, files)).numel()
        if part.dtypes != BYTES:
            count *= held_dtype(part.ours, dtype).itemsize
        elif experts == "dense":  # two weights a byte of codes, none of scales
            allocated += 2 * count * dtype.itemsize if part.ours.endswith(".blocks") else 0
            continue
        if is_mapped(part, held[part.files[0]], device, dtype):
            mapped += count
        else:
            allocated += count
    return allocated, mapped


def _refuse_if_too_large(
    folder: Path, device: torch.device, needs: tuple[int, int], can_offload: bool
) -> None:
    allocated, mapped = needs
    free, total = available_memory(device)
    needed = allocated + LOAD_SPARE_BYTES
    if needed > free or mapped + needed > total:
        offload = "pass offload_embedding=True, " if can_offload else ""
        raise CheckpointError(
            f"{folder.name} needs {(allocated + mapped) / 1e9:.1f} GB on {device} and 1 GiB to "
            f"work in, but {free / 1e9:.1f} GB of {total / 1e9:.1f} GB are free. Close other "
            f"programs, keep experts='packed', choose a 16-bit dtype, {offload}or use a smaller "
            "model such as 'gpt-oss-nano'."
        )


def available_memory(device: torch.device) -> tuple[int, int]:
    """Return (free, total) bytes of a device; for the CPU, within the container's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What an earlier model left with torch is free for the next one.
        left = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + left, total
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
    places: dict[str, torch.device],
    dtype: torch.dtype,
    experts: str,
    cut: Cut,
    progress: bool,
) -> Transformer:
    """Make the model without memory, then put each tensor, or what is kept of it, in its place."""
    with torch.device("meta"), _NoInit():
        model = Transformer(config)
    decode = experts == "dense"
    if config.expert_dtype == "mxfp4" and not decode:
        _make_room_for_bytes(model)
    reader = _Reader(held)
    parts = {part.ours: part for part in layout.parts}
    for part in tqdm(layout.parts, desc="loading", unit="tensor", disable=not progress):
        device = places[part.ours]
        if part.dtypes != BYTES:
            kept = cut(part.ours, reader.read(part))
            place(model, part.ours, kept.to(device, held_dtype(part.ours, dtype)))
        elif not decode:
            place(model, part.ours, cut(part.ours, reader.read(part)).to(device))
        elif part.ours.endswith(".blocks"):  # their scales are read along with them
            ours = part.ours.removesuffix(".blocks")
            scales = parts[f"{ours}.scales"]
            pair = [cut(p.ours, reader.read(p)) for p in (part, scales)]
            _, *matrix = model.get_parameter(f"{ours}.weight").shape
            dense = torch.empty(len(pair[0]), *matrix, device=device, dtype=dtype)
            _decode_into(dense, *pair)
            place(model, f"{ours}.weight", dense)
        if decode or not is_mapped(part, held[part.files[0]], device, dtype):
            reader.release(part)
    if config.tied:
        model.unembed.weight = model.embed.weight
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, f"the table of {layout.name} has no part for {left}"
    model.source = folder
    return model.eval()


class _NoInit(TorchFunctionMode):
    """Skips drawing initial weights: on "meta" that does nothing but import much of torch, 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def _tensor_of(part: Part, files: list[Tensor]) -> Tensor:
    """Return the model's tensor, given the tensors of the files that hold it."""
    if part.span:
        files = [tensor.narrow(*part.span) for tensor in files]
    return part.read(files)


class _Reader:
    """Maps each file once and hands out its tensors, views of the mapping."""

    def __init__(self, held: dict[str, TensorInfo]) -> None:
        self.held = held
        self.maps: dict[Path, mmap.mmap] = {}

    def read(self, part: Part) -> Tensor:
        """Return the model's tensor of a part."""
        return _tensor_of(part, [self._view(self.held[name]) for name in part.files])

    def _view(self, info: TensorInfo) -> Tensor:
        try:
            if info.file not in self.maps:
                with info.file.open("rb") as file:
                    # ACCESS_COPY: training writes to memory, never to the file
                    self.maps[info.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            flat = torch.frombuffer(
                self.maps[info.file],
                dtype=TORCH_DTYPES[info.dtype],
                count=math.prod(info.shape),
                offset=info.offset,
            )
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{info.file} cannot be read: {problem}.") from None
        return flat.view(info.shape)

    def release(self, part: Part) -> None:
        """Give back the pages of a part that was copied; the system would only do so later."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for info in map(self.held.__getitem__, part.files):
            start = info.offset - info.offset % mmap.PAGESIZE
            length = info.offset + info.n_bytes - start
            self.maps[info.file].madvise(mmap.MADV_DONTNEED, start, length)


def _make_room_for_bytes(model: Transformer) -> None:
    """Put packed layers where the experts are, still empty."""
    nothing = torch.empty(0, dtype=torch.uint8, device="meta")
    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertLinear):
            packed = PackedExpertLinear(nothing, nothing, module.bias)
            model.set_submodule(name, packed)


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
    original: bool = False,
) -> Path:
    """Write a model in the Hugging Face layout: shards, index and config.json.

    The generation_config.json of the folder that the model was loaded from goes along: it tells
    other libraries which tokens end a text.

    Everything is written to a hidden folder inside the target and moved into place at the end,
    config.json last, so whatever happens on the way leaves no half checkpoint. Tensors are
    written one by one, in `config.dtype`; with `expert_dtype="mxfp4"` dense experts are quantized
    by the OCP rule and packed ones kept byte for byte.

    Args:
        model: GPT-2, gpt-oss or Qwen3-MoE shaped.
        folder: where to; must not exist, be empty, or be an earlier checkpoint to overwrite.
        overwrite: replace the weights, index and JSON files that are written of an earlier
            checkpoint; other files of that folder, such as its tokenizer, are kept.
        max_shard_bytes: start a new file before one grows past this.
        original: write OpenAI's own layout instead, one file with q, k and v in one matrix, as
            gpt-oss's reference code reads it; `max_shard_bytes` does not apply.

    Returns:
        The folder.

    Raises:
        ConfigError: a mix of parts that no published layout can hold.
        CheckpointError: a folder with files in it, weights that are not finite, a full disk, or a
            model that several processes share.
    """
    if model.n_ranks > 1:
        raise CheckpointError(
            f"This process holds one of {model.n_ranks} shares of the model. Load it whole, with "
            "gptoss_lite.load, to save it."
        )
    folder = Path(folder)
    config_json = model.config.to_original() if original else model.config.to_hf()
    layout = gpt_oss_original(model.config) if original else published_layout(model.config)
    is_new = False
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.glob(f"{WORK_PREFIX}*"):  # of a process that was killed
            shutil.rmtree(abandoned)
        if any(folder.iterdir()) and not overwrite:
            raise CheckpointError(
                f"{folder} is not empty. Choose a new folder, or pass overwrite=True."
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix=WORK_PREFIX) as work:
            new, old = Path(work, "new"), Path(work, "old")
            new.mkdir()
            old.mkdir()
            if original:
                _write_original(model, layout, new)
            else:
                _write_shards(model, layout, new, max_shard_bytes)
            if (carried := _generation_config(model.source)) is not None:
                shutil.copyfile(carried, new / GENERATION_NAME)
            _write_json(new / CONFIG_NAME, config_json)
            _swap(new, old, folder)
    except OSError as problem:
        raise CheckpointError(
            f"Could not write {folder}: {problem.strerror or problem}. Nothing was changed; "
            f"{'free some disk space' if problem.errno == errno.ENOSPC else 'name a new folder'}."
        ) from None
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return folder


def _generation_config(source: Path | None) -> Path | None:
    """Find generation_config.json beside the weights that were loaded, or above `original/`."""
    if source is None:
        return None
    above = [source.parent] if source.name == "original" else []
    found = (place / GENERATION_NAME for place in (source, *above))
    return next((path for path in found if path.is_file()), None)


def _write_shards(model: Transformer, layout: Layout, folder: Path, max_shard_bytes: int) -> None:
    """Write the weights, numbered as the published files are: from 0, the last index after "of"."""
    shards = _plan_shards(layout, FILE_DTYPES[model.config.dtype], max_shard_bytes)
    tensors = _file_tensors(model, layout)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number:05d}-of-{len(shards) - 1:05d}.safetensors"
        name = name if len(shards) > 1 else ONE_FILE
        _write_shard(folder / name, shard, tensors)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(map(_n_bytes, (spec for shard in shards for spec in shard.values())))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / INDEX_NAME, index)


def _write_original(model: Transformer, layout: Layout, folder: Path) -> None:
    """Write one file without an index, and OpenAI's list of what kind each tensor is."""
    (shard,) = _plan_shards(layout, FILE_DTYPES[model.config.dtype], sys.maxsize)
    _write_shard(folder / ONE_FILE, shard, _file_tensors(model, layout))
    kinds = {"blocks": "FP4", "scales": "UE8"}
    dtypes = {name: kinds.get(name.rpartition(".")[2], dtype) for name, (dtype, _) in shard.items()}
    _write_json(folder / DTYPES_NAME, dtypes)


def _write_shard(
    path: Path, shard: dict[str, tuple[str, Shape]], tensors: Iterator[Tensor]
) -> None:
    data = (_as_bytes(next(tensors), name, *spec) for name, spec in shard.items())
    write_file(path, shard, data, metadata={"format": "pt"})


def _plan_shards(
    layout: Layout, float_dtype: str, max_bytes: int
) -> list[dict[str, tuple[str, Shape]]]:
    """Deal the file's tensors, name -> (dtype, shape), out to files in the layout's order."""
    shards: list[dict[str, tuple[str, Shape]]] = [{}]
    size = 0
    for name, (shape, dtypes) in layout.expected().items():
        spec = "U8" if dtypes == BYTES else float_dtype, shape
        size += _n_bytes(spec)
        if shards[-1] and size > max_bytes:
            shards.append({})
            size = _n_bytes(spec)
        shards[-1][name] = spec
    return shards


def _n_bytes(spec: tuple[str, Shape]) -> int:
    dtype, shape = spec
    return ITEM_BYTES[dtype] * math.prod(shape)


def _file_tensors(model: Transformer, layout: Layout) -> Iterator[Tensor]:
    """Yield the file's tensors in the layout's order, made from the model's one by one."""
    quantized: dict[str, Tensor] = {}
    # Parts of one file tensor, such as q, k and v, may stand apart in the table.
    order = {name: n for n, name in enumerate(layout.expected())}
    parts = sorted(layout.parts, key=lambda part: order[part.files[0]])
    for _, group in groupby(parts, key=lambda part: part.files):
        together = list(group)
        pieces = [part.write(_part_tensor(model, part, quantized)) for part in together]
        span = together[0].span
        yield from pieces[0] if span is None else [torch.cat([p[0] for p in pieces], dim=span[0])]


def _part_tensor(model: Transformer, part: Part, quantized: dict[str, Tensor]) -> Tensor:
    """Return the model's tensor of a part on the CPU, quantized first where the layout wants it.

    Blocks and scales are made together; `quantized` keeps the scales until their turn comes.
    """
    path, _, leaf = part.ours.rpartition(".")
    module = model.get_submodule(path)
    if part.ours in quantized:
        return quantized.pop(part.ours)
    is_dense = leaf == "blocks" and isinstance(module, ExpertLinear)
    tensor = getattr(module, "weight" if is_dense else leaf).detach()
    if not (tensor != 255 if leaf == "scales" else tensor.isfinite()).all():  # 255 means NaN
        raise CheckpointError(f"{part.ours} holds values that are not finite: nothing was saved.")
    if is_dense:
        # [gate | up] as the packed layer views them; expert by expert, which bounds the memory
        matrices = tensor.unflatten(1, (2, -1)) if path.endswith(".up") else tensor
        blocks, scales = zip(*map(quantize, matrices), strict=True)
        quantized[f"{path}.scales"] = torch.stack(scales).cpu()
        return torch.stack(blocks).cpu()
    tensor = tensor.cpu()
    return tensor if part.dtypes == BYTES else tensor.to(getattr(torch, model.config.dtype))


def _as_bytes(tensor: Tensor, name: str, dtype: str, shape: Shape) -> Any:
    if tensor.shape != shape or tensor.dtype != TORCH_DTYPES[dtype]:
        raise CheckpointError(
            f"{name} would be {tensor.dtype} {list(tensor.shape)}, but the model's config asks for "
            f"{dtype} {list(shape)}. Give the model a config that describes it."
        )
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _swap(new: Path, old: Path, folder: Path) -> None:
    """Exchange an earlier checkpoint's files for the new ones; what else is there stays.

    config.json goes first and comes last: without it, nothing takes the folder for a checkpoint.
    """
    incoming = sorted(new.iterdir(), key=lambda path: path.name == CONFIG_NAME)
    replaced = {INDEX_NAME, CONFIG_NAME, DTYPES_NAME, *(path.name for path in incoming)}
    outgoing = [
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name in replaced
    ]
    outgoing.sort(key=lambda path: path.name != CONFIG_NAME)
    moves = [(path, old / path.name) for path in outgoing]
    moves += [(path, folder / path.name) for path in incoming]
    done = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
