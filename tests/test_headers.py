"""Headers that lie are refused with a sentence that says how; sound ones are read exactly."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gptoss_lite.errors import CheckpointError, GptOssLiteError
from gptoss_lite.headers import (
    INDEX_NAME,
    TensorInfo,
    header_bytes,
    read_folder,
    read_header,
    write_file,
)

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "c": torch.arange(5, dtype=torch.uint8).reshape(5, 1),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file's parsed header; the data stay as they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    return str(caught.value)


# --- sound files ---------------------------------------------------------------------------------


def test_header_of_a_sound_file(file: Path) -> None:
    held = read_header(file)
    assert set(held) == set(TENSORS)  # metadata is no tensor
    content = file.read_bytes()
    for name, tensor in TENSORS.items():
        info = held[name]
        assert info.shape == tuple(tensor.shape)
        assert info.dtype == {"a": "F32", "b": "BF16", "c": "U8"}[name]
        assert info.n_bytes == tensor.nbytes
        raw = content[info.offset : info.offset + info.n_bytes]
        assert raw == tensor.view(torch.uint8).numpy().tobytes()


def test_header_with_other_order_and_an_empty_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"z": ("U8", (2,)), "none": ("F32", (0, 7)), "scalar": ("U8", ())}
    write_file(path, tensors, [b"\1\2\3"])
    rewrite(path, lambda header: dict(reversed(header.items())))
    held = read_header(path)
    assert held["none"].n_bytes == 0
    assert held["scalar"].shape == ()
    assert held["z"].offset + 2 == held["scalar"].offset


def test_written_files_are_read_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    specs = {"a": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("U8", (5, 1))}
    pieces = [TENSORS[name].flatten().view(torch.uint8).numpy() for name in specs]
    pieces = [half for piece in pieces for half in np.array_split(piece, 2)]  # any size will do
    write_file(path, specs, pieces, metadata={"format": "pt"})
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        for name, tensor in TENSORS.items():
            torch.testing.assert_close(opened.get_tensor(name), tensor, rtol=0, atol=0)
    assert set(read_header(path)) == set(TENSORS)


def test_header_length_is_a_multiple_of_eight() -> None:
    for length in range(1, 20):
        text = header_bytes({"n" * length: ("U8", (1,))})
        assert len(text) % 8 == 0
        assert int.from_bytes(text[:8], "little") == len(text) - 8


# --- damaged files -------------------------------------------------------------------------------


def test_empty_file(file: Path) -> None:
    file.write_bytes(b"")
    assert refusal(file) == (
        "x.safetensors is not a whole safetensors file: it has 0 bytes and claims a header of 0. "
        "Download it again."
    )


def test_seven_bytes(file: Path) -> None:
    file.write_bytes(b"\2\0\0\0\0\0\0")
    assert "it has 7 bytes" in refusal(file)


def test_cut_off_in_the_header(file: Path) -> None:
    length = int.from_bytes(file.read_bytes()[:8], "little")
    file.write_bytes(file.read_bytes()[:50])
    assert refusal(file) == (
        "x.safetensors is not a whole safetensors file: it has 50 bytes and claims a header of "
        f"{length}. Download it again."
    )


def test_cut_off_in_the_data(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])
    assert refusal(file) == (
        "x.safetensors holds 34 bytes of tensors, but its header declares 37: the file is cut "
        "off. Download it again."
    )


def test_too_long(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")
    assert refusal(file) == (
        "x.safetensors holds 41 bytes of tensors, but its header declares 37: the file is too "
        "long. Download it again."
    )


@pytest.mark.parametrize(
    "text",
    [
        b"hello, I am no JSON",
        b'{"a": ',
        b"[1, 2]",
        b'"text"',
        b"77",
        b"\xff\xfe{}",
        b"[" * 50_000,
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=["words", "half", "list", "string", "number", "bytes", "deep", "utf-16"],
)
def test_header_that_is_no_json_object(file: Path, text: bytes) -> None:
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert refusal(file) == (
        "x.safetensors has a damaged header: it is not the JSON that safetensors files start "
        "with. Download it again."
    )


@pytest.mark.parametrize("length", [0, 1, 10_000, 2**40, 2**64 - 1])
def test_header_length_lies(file: Path, length: int) -> None:
    """Nothing is read, so a claim of 16 EiB costs no memory."""
    content = file.read_bytes()
    file.write_bytes(length.to_bytes(8, "little") + content[8:])
    assert refusal(file) == (
        f"x.safetensors is not a whole safetensors file: it has {len(content)} bytes and claims a "
        f"header of {length:,}. Download it again."
    )


def test_header_longer_than_the_format_allows(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.write((100_000_001).to_bytes(8, "little"))
        sparse.truncate(200_000_000)
    assert "claims a header of 100,000,001" in refusal(file)


def test_git_lfs_pointer(file: Path) -> None:
    file.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4792272488\n"
    )
    assert refusal(file) == (
        "x.safetensors is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in "
        "its folder, or download it again."
    )


def test_web_page_instead_of_weights(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><body>503 Service Unavailable</body></html>")
    assert "x.safetensors is not a whole safetensors file" in refusal(file)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "FLOAT", ""])
def test_unknown_dtype(file: Path, dtype: str) -> None:
    rewrite(file, lambda header: header["b"].update(dtype=dtype))
    assert refusal(file) == (
        f"x.safetensors: b is of dtype {dtype}, which this package does not read. Use a copy of "
        "the model in one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL."
    )


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "text",
        [],
        {},
        {"shape": [4]},
        {"dtype": 5},
        {"dtype": None},
        {"dtype": ["BF16"]},
        {"shape": None},
        {"shape": 4},
        {"shape": "4"},
        {"shape": [-4]},
        {"shape": [-2, -2]},
        {"shape": [4.0]},
        {"shape": [True, 4]},
        {"shape": [[4]]},
        {"shape": [2**62, 2**62]},
        {"shape": [1] * 65},
        {"shape": [10**4000]},
        {"data_offsets": None},
        {"data_offsets": [0]},
        {"data_offsets": [24, 32, 40]},
        {"data_offsets": ["24", "32"]},
        {"data_offsets": [24.0, 32.0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [2**64, 2**64 + 8]},
        {"data_offsets": {"24": 32}},
    ],
    ids=lambda entry: str(entry)[:40],
)
def test_entry_that_is_no_tensor(file: Path, entry: Any) -> None:
    """Negative shapes, numbers that are none, missing fields."""

    def change(header: dict[str, Any]) -> None:
        if isinstance(entry, dict) and entry and entry != {"shape": [4]}:
            header["b"].update(entry)
        else:
            header["b"] = entry

    rewrite(file, change)
    assert refusal(file) == (
        "x.safetensors has a damaged header: its entry for b is not a dtype, a shape and two "
        "offsets. Download it again."
    )


def test_offsets_that_do_not_fit_the_shape(file: Path) -> None:
    rewrite(file, lambda header: header["a"].update(shape=[2, 4]))
    assert refusal(file) == (
        "x.safetensors: the header gives a 24 bytes, but F32 [2, 4] takes 32. Download it again."
    )


def test_offsets_in_reverse(file: Path) -> None:
    rewrite(file, lambda header: header["b"].update(data_offsets=[32, 24]))
    assert refusal(file) == (
        "x.safetensors: the header gives b -8 bytes, but BF16 [4] takes 8. Download it again."
    )


def test_offsets_past_the_end(file: Path) -> None:
    rewrite(file, lambda header: header["c"].update(data_offsets=[2**40, 2**40 + 5]))
    assert refusal(file) == (
        "x.safetensors: c starts at byte 1,099,511,627,776 of the data instead of 32: tensors "
        "overlap or leave gaps. Download it again."
    )


def test_overlapping_tensors(file: Path) -> None:
    rewrite(file, lambda header: header["b"].update(data_offsets=[16, 24]))
    assert refusal(file) == (
        "x.safetensors: b starts at byte 16 of the data instead of 24: tensors overlap or leave "
        "gaps. Download it again."
    )


def test_two_names_for_the_same_bytes(file: Path) -> None:
    rewrite(file, lambda header: header.update(twin=dict(header["b"])))
    assert "tensors overlap or leave gaps" in refusal(file)


def test_gap_between_tensors(file: Path) -> None:
    rewrite(file, lambda header: header.pop("b") and None)
    assert refusal(file) == (
        "x.safetensors: c starts at byte 32 of the data instead of 24: tensors overlap or leave "
        "gaps. Download it again."
    )


def test_file_that_cannot_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal of the system is played."""

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(file) == f"{file} cannot be read: Permission denied."


def test_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    assert refusal(tmp_path / "x.safetensors").endswith("cannot be read: Is a directory.")


def test_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").symlink_to(tmp_path / "gone")
    assert refusal(tmp_path / "x.safetensors").endswith(
        "cannot be read: No such file or directory."
    )


# --- folders -------------------------------------------------------------------------------------

FILES = ("m-00000-of-00001.safetensors", "m-00001-of-00001.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / FILES[0])
    save_file({"c": TENSORS["c"]}, tmp_path / FILES[1])
    write_index(tmp_path, {"a": FILES[0], "b": FILES[0], "c": FILES[1]})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def folder_refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_folder(folder)
    return str(caught.value)


def test_folder_with_an_index(folder: Path) -> None:
    save_file({"other": TENSORS["a"]}, folder / "adapter.safetensors")  # not in the index
    held = read_folder(folder)
    assert {name: info.file.name for name, info in held.items()} == {
        "a": FILES[0],
        "b": FILES[0],
        "c": FILES[1],
    }


def test_folder_without_an_index(folder: Path) -> None:
    """As in OpenAI's original/ folder: every *.safetensors counts."""
    (folder / INDEX_NAME).unlink()
    assert set(read_folder(folder)) == {"a", "b", "c"}


def test_same_tensor_in_two_files_without_an_index(folder: Path) -> None:
    save_file({"a": TENSORS["a"]}, folder / "extra.safetensors")
    (folder / INDEX_NAME).unlink()
    assert folder_refusal(folder) == (
        f"a is in both extra.safetensors and {FILES[0]}, and there is no "
        "model.safetensors.index.json to say which counts. Remove the one that does not belong."
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"weight_map": null}',
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ["x"]}}',
        "\ud800",
        "[" * 50_000,
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_index_without_a_weight_map(folder: Path, text: str) -> None:
    (folder / INDEX_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert folder_refusal(folder) == (
        "model.safetensors.index.json is damaged: it has no weight_map. Download it again."
    )


@pytest.mark.parametrize(
    "outside", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "a/../b"]
)
def test_index_that_points_outside(folder: Path, outside: str) -> None:
    write_index(folder, {"a": FILES[0], "b": FILES[0], "c": outside})
    assert folder_refusal(folder) == (
        f"model.safetensors.index.json points outside its folder, to {outside!r}. Refused."
    )


def test_missing_shards(folder: Path) -> None:
    (folder / FILES[1]).unlink()
    assert folder_refusal(folder) == (
        f"1 of 2 weight files are missing in {folder}: {FILES[1]}. Finish the download."
    )
    write_index(folder, {str(n): f"m-{n}.safetensors" for n in range(5)})
    assert folder_refusal(folder) == (
        f"5 of 5 weight files are missing in {folder}: m-0.safetensors, m-1.safetensors, "
        "m-2.safetensors .... Finish the download."
    )


@pytest.mark.parametrize("name", ["", "x" * 5_000, "nul\0.safetensors", "\ud800"], ids=ascii)
def test_shard_names_that_no_file_can_have(folder: Path, name: str) -> None:
    write_index(folder, {"a": FILES[0], "b": FILES[0], "c": name})
    assert "1 of 2 weight files are missing" in folder_refusal(folder)


def test_index_names_a_tensor_that_its_file_lacks(folder: Path) -> None:
    write_index(folder, {"a": FILES[0], "b": FILES[0], "c": FILES[0]})
    assert folder_refusal(folder) == (
        f"model.safetensors.index.json says that {FILES[0]} holds c, but it does not. Download "
        "both again."
    )


def test_file_holds_tensors_that_the_index_does_not_list(folder: Path) -> None:
    write_index(folder, {"a": FILES[0], "c": FILES[1]})
    assert folder_refusal(folder) == (
        "model.safetensors.index.json does not list 1 tensors that its files hold, first b. "
        "Download both again."
    )


def test_unreadable_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    assert folder_refusal(folder) == f"{folder / INDEX_NAME} cannot be read: Permission denied."


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert folder_refusal(tmp_path) == (
        f"{tmp_path} holds pickled weights only (*.bin, *.pt). Those can run code when opened, so "
        "this package reads safetensors alone: download the safetensors files."
    )


def test_folder_without_weights(tmp_path: Path) -> None:
    assert folder_refusal(tmp_path) == (
        f"No *.safetensors file in {tmp_path}. Download the weights there, or use 'gpt-oss-nano'."
    )


# --- at random -----------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, insert, remove or cut some bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        where = rng.randrange(max(1, len(changed)))
        kind = rng.choice(["bit", "byte", "insert", "remove", "cut"])
        if kind == "bit" and changed:
            changed[where] ^= 1 << rng.randrange(8)
        elif kind == "byte" and changed:
            changed[where] = rng.choice(b'0123456789{}[]",:-.eE \\\0\xff')
        elif kind == "insert":
            changed[where:where] = rng.randbytes(rng.randrange(1, 9))
        elif kind == "remove":
            del changed[where : where + rng.randrange(1, 9)]
        elif kind == "cut":
            del changed[where:]
    return bytes(changed)


@pytest.mark.parametrize("target", [FILES[0], INDEX_NAME])
def test_random_damage_gives_our_errors_or_sound_tensors(folder: Path, target: str) -> None:
    content = (folder / target).read_bytes()
    refused = 0
    for seed in range(1_000):
        (folder / target).write_bytes(damaged(content, random.Random(seed)))
        try:
            held = read_folder(folder)
        except GptOssLiteError:
            refused += 1
        else:
            for info in held.values():
                assert isinstance(info, TensorInfo)
                assert info.offset + info.n_bytes <= info.file.stat().st_size
    assert refused > 800
