"""Read what safetensors files say they hold, and refuse those whose header lies.

A file is an 8-byte length, a JSON header {name: {dtype, shape, data_offsets}}, then raw bytes.
Only headers are read here, so a 13 GB checkpoint is checked in milliseconds.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_lite.errors import CheckpointError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is, from a header alone."""

    file: Path
    dtype: str  # a safetensors name: BF16, F32, U8 ...
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return every tensor that one safetensors file declares.

    Raises:
        CheckpointError: a file that is cut off, is no safetensors file, or whose header does not
            describe exactly the bytes that follow it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length < 2 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path.name} is not a whole safetensors file: it has {size:,} bytes and claims a "
                f"header of {length:,}. Download it again."
            )
        raw_header = file.read(length)
    try:
        header = json.loads(raw_header)
        header.pop("__metadata__", None)
        spans = {
            name: (_info(path, entry), *entry["data_offsets"]) for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path.name} has a damaged header: it is not the JSON that safetensors files start "
            "with. Download it again."
        ) from None
    _check_spans(path, spans, size - 8 - length)
    return {name: info for name, (info, _, _) in spans.items()}


def _info(path: Path, entry: dict[str, Any]) -> TensorInfo:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in ITEM_BYTES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError
    return TensorInfo(path, entry["dtype"], shape)


def _check_spans(
    path: Path, spans: dict[str, tuple[TensorInfo, int, int]], data_bytes: int
) -> None:
    """Check that the tensors fill the data part without gaps, overlaps or leftovers."""
    position = 0
    for name, (info, begin, end) in sorted(spans.items(), key=lambda item: item[1][1:]):
        if end - begin != info.n_bytes:
            raise CheckpointError(
                f"{path.name}: the header gives {name} {end - begin:,} bytes, but {info.dtype} "
                f"{list(info.shape)} takes {info.n_bytes:,}. Download it again."
            )
        if begin != position:
            raise CheckpointError(
                f"{path.name}: {name} starts at byte {begin:,} of the data instead of "
                f"{position:,}: tensors overlap or leave gaps. Download it again."
            )
        position = end
    if position != data_bytes:
        raise CheckpointError(
            f"{path.name} holds {data_bytes:,} bytes of tensors, but its header declares "
            f"{position:,}: the file is {'cut off' if data_bytes < position else 'too long'}. "
            "Download it again."
        )


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
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
        valid = bool(files) and all(type(file) is str for file in files)
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise CheckpointError(f"{index.name} is damaged: it has no weight_map. Download it again.")
    # A name from a file must not lead out of the folder.
    if outside := sorted(file for file in files if Path(file).name != file):
        raise CheckpointError(
            f"{index.name} points outside its folder, to {outside[0]!r}. Refused."
        )
    return weight_map


def _read_indexed(folder: Path, weight_map: dict[str, str]) -> dict[str, TensorInfo]:
    files = sorted(set(weight_map.values()))
    if absent := [file for file in files if not (folder / file).is_file()]:
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
