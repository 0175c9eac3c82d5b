"""Read what safetensors files say they hold, and refuse those whose header lies.

A file is an 8-byte length, a JSON header {name: {dtype, shape, data_offsets}}, then raw bytes.
Only headers are read here, so a 13 GB checkpoint is checked in milliseconds.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_lite.errors import CheckpointError

Shape = tuple[int, ...]
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
MAX_AXES = 64  # of a torch tensor
INDEX_NAME = "model.safetensors.index.json"
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # by reading bad JSON


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is, from a header alone."""

    file: Path
    dtype: str  # a safetensors name: BF16, F32, U8 ...
    shape: Shape
    offset: int  # of its first byte in the file

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


# --- one file ------------------------------------------------------------------------------------


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return every tensor that one safetensors file declares.

    Raises:
        CheckpointError: a file that cannot be read, is cut off, is no safetensors file, or whose
            header does not describe exactly the bytes that follow it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            whole = 2 <= length <= min(size - 8, MAX_HEADER_BYTES)
            raw_header = file.read(length) if whole else b""
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}.") from None
    if start == b"version ":
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` "
            "in its folder, or download it again."
        )
    if not whole:
        raise CheckpointError(
            f"{path.name} is not a whole safetensors file: it has {size:,} bytes and claims a "
            f"header of {length:,}. Download it again."
        )
    try:
        header = json.loads(raw_header.decode())
        header.pop("__metadata__", None)
    except DAMAGED:
        raise CheckpointError(
            f"{path.name} has a damaged header: it is not the JSON that safetensors files start "
            "with. Download it again."
        ) from None
    tensors = {name: _info(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_no_gaps(path, tensors, 8 + length, size)
    return tensors


def _info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    damaged = CheckpointError(
        f"{path.name} has a damaged header: its entry for {name} is not a dtype, a shape and two "
        "offsets. Download it again."
    )
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = (
            type(dtype) is str
            and len(shape) <= MAX_AXES
            and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            and max(math.prod(shape), begin, end) < 2**63
        )
    except DAMAGED:
        raise damaged from None
    if not sound:
        raise damaged
    if dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{path.name}: {name} is of dtype {dtype}, which this package does not read. Use a "
            f"copy of the model in one of {', '.join(ITEM_BYTES)}."
        )
    info = TensorInfo(path, dtype, tuple(shape), data_start + begin)
    if end - begin != info.n_bytes:
        raise CheckpointError(
            f"{path.name}: the header gives {name} {end - begin:,} bytes, but {dtype} "
            f"{list(shape)} takes {info.n_bytes:,}. Download it again."
        )
    return info


def _check_no_gaps(path: Path, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """Check that the tensors fill the data part without gaps, overlaps or leftovers."""
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
        if info.offset != position:
            raise CheckpointError(
                f"{path.name}: {name} starts at byte {info.offset - start:,} of the data instead "
                f"of {position - start:,}: tensors overlap or leave gaps. Download it again."
            )
        position += info.n_bytes
    if position != size:
        raise CheckpointError(
            f"{path.name} holds {size - start:,} bytes of tensors, but its header declares "
            f"{position - start:,}: the file is {'cut off' if size < position else 'too long'}. "
            "Download it again."
        )


def header_bytes(
    tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the start of a file whose data are these tensors, one after the other.

    Args:
        tensors: name -> (dtype, shape), in the order of the data.
        metadata: remarks, such as {"format": "pt"}.

    Example:
        >>> header_bytes({"x": ("U8", (3,))})[8:].decode().rstrip()
        '{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def write_file(
    path: Path,
    tensors: Mapping[str, tuple[str, Shape]],
    data: Iterable[Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file piece by piece: no more of it is in memory than one piece.

    Args:
        path: where to.
        tensors: name -> (dtype, shape), in the order of the data.
        data: the bytes of these tensors, in pieces of any size (bytes, arrays of bytes).
        metadata: remarks for the header.
    """
    expected = sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in tensors.values())
    with path.open("wb") as file:
        file.write(header_bytes(tensors, metadata))
        written = sum(file.write(piece) for piece in data)
    assert written == expected, f"{path}: {written} bytes for a header of {expected}"


# --- a folder ------------------------------------------------------------------------------------


def read_folder(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint folder, by its index or else from all its files.

    Raises:
        CheckpointError: no weights, a bad index, missing shards, or a damaged file.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        return _read_indexed(folder, _weight_map(index))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(_no_weights(folder))
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in both {tensors[name].file.name} and {file.name}, and there is no "
                    f"{INDEX_NAME} to say which counts. Remove the one that does not belong."
                )
            tensors[name] = info
    return tensors


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return (
            f"{folder} holds pickled weights only (*.bin, *.pt). Those can run code when opened, "
            "so this package reads safetensors alone: download the safetensors files."
        )
    return f"No *.safetensors file in {folder}. Download the weights there, or use 'gpt-oss-nano'."


def _weight_map(index: Path) -> dict[str, str]:
    damaged = CheckpointError(f"{index.name} is damaged: it has no weight_map. Download it again.")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except OSError as problem:
        raise CheckpointError(f"{index} cannot be read: {problem.strerror}.") from None
    except DAMAGED:
        raise damaged from None
    if not files or not all(type(file) is str for file in files):
        raise damaged
    # A name from a file must not lead out of the folder.
    if outside := sorted(file for file in files if Path(file).name != file or file == ".."):
        raise CheckpointError(
            f"{index.name} points outside its folder, to {outside[0]!r}. Refused."
        )
    return weight_map


def _read_indexed(folder: Path, weight_map: dict[str, str]) -> dict[str, TensorInfo]:
    files = sorted(set(weight_map.values()))
    present = {path.name for path in folder.iterdir()}
    if absent := [file for file in files if file not in present]:
        raise CheckpointError(
            f"{len(absent)} of {len(files)} weight files are missing in {folder}: "
            f"{', '.join(absent[:3])}{' ...' if len(absent) > 3 else ''}. Finish the download."
        )
    held = {file: read_header(folder / file) for file in files}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise CheckpointError(
                f"{INDEX_NAME} says that {file} holds {name}, but it does not. Download both again."
            )
    tensors = {name: held[file][name] for name, file in weight_map.items()}
    if extra := sorted({name for names in held.values() for name in names} - set(tensors)):
        raise CheckpointError(
            f"{INDEX_NAME} does not list {len(extra)} tensors that its files hold, first "
            f"{extra[0]}. Download both again."
        )
    return tensors
