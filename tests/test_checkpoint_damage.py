"""Damaged checkpoints: each is refused with its own sentence before anything of it is loaded."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptoss_lite as gl
from gptoss_lite import checkpoint
from gptoss_lite.errors import CheckpointError, ConfigError, GptOssLiteError
from gptoss_lite.headers import INDEX_NAME
from tests import checkpoint_files as files
from tests.test_headers import damaged, rewrite

SHARDS = [f"model-{n:05d}-of-00004.safetensors" for n in range(5)]
FIRST, LAST = SHARDS[0], SHARDS[-1]
HELP = "Download weights and config.json of the same model."
AGAIN = "Download it again."
BUNDLED = 'Without a network, use the bundled model "gpt-oss-nano".'


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    return files.write_hugging_face(folder, files.original_weights())


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "model")


# --- ways to damage a folder ---------------------------------------------------------------------

Damage = Callable[[Path], Any]


def cut(name: str, keep: int) -> Damage:
    """Keep the first bytes of a file; a negative number takes some off its end."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def put(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def append(name: str, more: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + more)


def header(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    return lambda folder: rewrite(folder / name, change)


def config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def index(change: Callable[[dict[str, str]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / INDEX_NAME).read_text())
        change(content["weight_map"])
        (folder / INDEX_NAME).write_text(json.dumps(content))

    return damage


def tensors(change: Callable[[files.Weights], Any]) -> Damage:
    """Change the tensors of the last file and the index with them."""

    def damage(folder: Path) -> None:
        held = load_file(folder / LAST)
        change(held)
        (folder / LAST).unlink()
        save_file(held, folder / LAST)
        content = json.loads((folder / INDEX_NAME).read_text())
        others = {name: file for name, file in content["weight_map"].items() if file != LAST}
        content["weight_map"] = others | dict.fromkeys(held, LAST)
        (folder / INDEX_NAME).write_text(json.dumps(content))

    return damage


def both(*steps: Damage) -> Damage:
    return lambda folder: [step(folder) for step in steps]


def keep_only(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()

    return damage


def misfit(problems: str, layout: str = "Hugging Face, MXFP4 experts") -> str:
    return (
        "The tensors in {folder} do not fit its config.json, read as "
        f"{layout}: {problems}. {HELP}"
    )


EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
UP9 = "model.layers.9.mlp.experts.gate_up_proj_scales"  # in the last file

# case: (damage, the whole sentence)
CASES: dict[str, tuple[Damage, str]] = {
    "empty file": (
        put(FIRST, b""),
        f"{FIRST} is not a whole safetensors file: it has 0 bytes and claims a header of 0. "
        f"{AGAIN}",
    ),
    "cut off in the header": (
        cut(FIRST, 100),
        f"{FIRST} is not a whole safetensors file: it has 100 bytes and claims a header of "
        f"{{length:,}}. {AGAIN}",
    ),
    "cut off in the data": (
        cut(LAST, -7),
        f"{LAST} holds {{short:,}} bytes of tensors, but its header declares {{data:,}}: the file "
        f"is cut off. {AGAIN}",
    ),
    "too long": (
        append(LAST, b"1234567"),
        f"{LAST} holds {{long:,}} bytes of tensors, but its header declares {{data:,}}: the file "
        f"is too long. {AGAIN}",
    ),
    "header is no JSON": (
        put(FIRST, (9).to_bytes(8, "little") + b"not JSON!"),
        f"{FIRST} has a damaged header: it is not the JSON that safetensors files start with. "
        f"{AGAIN}",
    ),
    "header length lies": (
        put(FIRST, (2**50).to_bytes(8, "little") + b"{}"),
        f"{FIRST} is not a whole safetensors file: it has 10 bytes and claims a header of "
        f"1,125,899,906,842,624. {AGAIN}",
    ),
    "Git LFS pointer": (
        put(FIRST, b"version https://git-lfs.github.com/spec/v1\n"),
        f"{FIRST} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its "
        "folder, or download it again.",
    ),
    "unknown dtype in the header": (
        header(LAST, lambda h: h[NORM].update(dtype="F8_E4M3")),
        f"{LAST}: {NORM} is of dtype F8_E4M3, which this package does not read. Use a copy of the "
        "model in one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL.",
    ),
    "data_offsets lie": (
        header(LAST, lambda h: h[NORM]["data_offsets"].__setitem__(1, 10**9)),
        f"{LAST}: the header gives {NORM} {{lie:,}} bytes, but BF16 [64] takes 128. {AGAIN}",
    ),
    "data_offsets are no numbers": (
        header(LAST, lambda h: h[NORM].update(data_offsets=["a", "b"])),
        f"{LAST} has a damaged header: its entry for {NORM} is not a dtype, a shape and two "
        f"offsets. {AGAIN}",
    ),
    "overlapping tensors": (
        header(
            LAST, lambda h: h[NORM].update(data_offsets=[n - 2 for n in h[NORM]["data_offsets"]])
        ),
        f"{LAST}: {NORM} starts at byte {{early:,}} of the data instead of {{norm:,}}: tensors "
        f"overlap or leave gaps. {AGAIN}",
    ),
    "negative shape": (
        header(LAST, lambda h: h[NORM].update(shape=[-64])),
        f"{LAST} has a damaged header: its entry for {NORM} is not a dtype, a shape and two "
        f"offsets. {AGAIN}",
    ),
    "index is no JSON": (
        cut(INDEX_NAME, 500),
        f"{INDEX_NAME} is damaged: it has no weight_map. {AGAIN}",
    ),
    "index without weight_map": (
        put(INDEX_NAME, b'{"metadata": {"total_size": 1}}'),
        f"{INDEX_NAME} is damaged: it has no weight_map. {AGAIN}",
    ),
    "index points outside the folder": (
        index(lambda m: m.update({NORM: "../x.safetensors"})),
        f"{INDEX_NAME} points outside its folder, to '../x.safetensors'. Refused.",
    ),
    "missing shard": (
        lambda folder: (folder / SHARDS[2]).unlink(),
        f"1 of 5 weight files are missing in {{folder}}: {SHARDS[2]}. Finish the download.",
    ),
    "index names a tensor that its file lacks": (
        index(lambda m: m.update({NORM: FIRST})),
        f"{INDEX_NAME} says that {FIRST} holds {NORM}, but it does not. Download both again.",
    ),
    "file holds a tensor that the index does not list": (
        index(lambda m: m.pop(NORM)),
        f"{INDEX_NAME} does not list 1 tensors that its files hold, first {NORM}. Download both "
        "again.",
    ),
    "same tensor in two files without an index": (
        both(
            lambda folder: shutil.copy(folder / LAST, folder / "model-copy.safetensors"),
            lambda folder: (folder / INDEX_NAME).unlink(),
        ),
        f"{{first_of_last}} is in both {LAST} and model-copy.safetensors, and there is no "
        f"{INDEX_NAME} to say which counts. Remove the one that does not belong.",
    ),
    "missing tensors": (
        tensors(lambda t: [t.pop(name) for name in (NORM, HEAD)]),
        misfit(f"2 missing ({HEAD}, {NORM})"),
    ),
    "many missing tensors": (
        both(lambda folder: (folder / INDEX_NAME).unlink(), keep_only(LAST, "config.json")),
        misfit(
            "184 missing (model.layers.0.input_layernorm.weight, "
            "model.layers.0.mlp.experts.down_proj_bias, "
            "model.layers.0.mlp.experts.down_proj_blocks, "
            "model.layers.0.mlp.experts.down_proj_scales, "
            "model.layers.0.mlp.experts.gate_up_proj_bias ...)"
        ),
    ),
    "unexpected tensors": (
        tensors(lambda t: t.update(extra=torch.zeros(2), more=torch.zeros(3))),
        misfit("2 unexpected (extra, more)"),
    ),
    "wrong shape": (
        tensors(lambda t: t.update({NORM: torch.zeros(65).bfloat16()})),
        misfit(f"1 of the wrong shape ({NORM} is [65], not [64])"),
    ),
    "bytes where floats are expected": (
        tensors(lambda t: t.update({NORM: torch.zeros(64, dtype=torch.uint8)})),
        misfit(f"1 of the wrong dtype ({NORM} is U8, not BF16 or F32 or F16)"),
    ),
    "floats where bytes are expected": (
        tensors(lambda t: t.update({UP9: t[UP9].bfloat16()})),
        misfit(f"1 of the wrong dtype ({UP9} is BF16, not U8)"),
    ),
    "several things at once": (
        tensors(
            lambda t: t.update({EMBED: t.pop(HEAD)[:, :63].clone(), NORM: t[NORM].double()}),
        ),
        misfit(
            f"1 missing ({HEAD}); 1 of the wrong shape ({EMBED} is [97, 63], not [97, 64]); 1 of "
            f"the wrong dtype ({NORM} is F64, not BF16 or F32 or F16)"
        ),
    ),
    "config.json of another model": (
        config(lambda c: c.update(vocab_size=98)),
        misfit(
            f"2 of the wrong shape ({EMBED} is [97, 64], not [98, 64], {HEAD} is [97, 64], not "
            "[98, 64])"
        ),
    ),
    "no config.json": (
        lambda folder: (folder / "config.json").unlink(),
        "No config.json at {folder}/config.json. Give a folder that holds one.",
    ),
    "config.json is no JSON": (
        put("config.json", b"{"),
        "{folder}/config.json is not JSON (Expecting property name enclosed in double quotes: "
        f"line 1 column 2 (char 1)). {AGAIN}",
    ),
    "config.json is no object": (
        put("config.json", b"[1]"),
        f"{{folder}}/config.json holds a list, not an object. {AGAIN}",
    ),
    "unknown model_type": (
        config(lambda c: c.update(model_type="llama")),
        "Unknown architecture: model_type='llama'. This package reads 'gpt2', 'gpt_oss' and "
        "'qwen3_moe', and the config.json of gpt-oss's original/ folder.",
    ),
    "missing key in config.json": (
        config(lambda c: c.pop("hidden_size")),
        "config.json of a 'gpt_oss' model lacks the key 'hidden_size'. Download the file again.",
    ),
    "sizes that contradict each other": (
        config(lambda c: c.update(num_key_value_heads=4)),
        "n_heads=6 cannot be shared by n_kv_heads=4: 6 / 4 is not whole. Use n_kv_heads in "
        "[1, 2, 3, 6].",
    ),
    "pickles only": (
        both(keep_only("config.json"), put("pytorch_model.bin", b"\x80\x04.")),
        "There is no *.safetensors in {folder} or {folder}/original, which holds config.json, "
        f"pytorch_model.bin. {BUNDLED}",
    ),
    "empty folder": (
        keep_only(),
        f"There is no *.safetensors in {{folder}} or {{folder}}/original, which holds nothing. "
        f"{BUNDLED}",
    ),
    "a shard that is a folder": (
        both(
            lambda folder: (folder / FIRST).unlink(),
            lambda folder: (folder / FIRST).mkdir(),
        ),
        f"{{folder}}/{FIRST} cannot be read: Is a directory.",
    ),
    "a shard that is a link to nowhere": (
        both(
            lambda folder: (folder / FIRST).unlink(),
            lambda folder: (folder / FIRST).symlink_to("gone"),
        ),
        f"{{folder}}/{FIRST} cannot be read: No such file or directory.",
    ),
}


def facts(sound: Path) -> dict[str, Any]:
    """Return the numbers of the sound folder that the sentences mention."""
    length = int.from_bytes((sound / FIRST).read_bytes()[:8], "little")
    content = (sound / LAST).read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    held = json.loads(content[8:data_start])
    data = len(content) - data_start
    norm = held[NORM]["data_offsets"][0]
    return {
        "length": length,
        "data": data,
        "short": data - 7,
        "long": data + 7,
        "lie": 10**9 - norm,
        "norm": norm,
        "early": norm - 2,
        "first_of_last": next(iter(held)),
    }


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal comes before the model exists and before a file is mapped."""

    def too_late(*_: Any) -> None:
        pytest.fail("damage was found only after loading had begun")

    monkeypatch.setattr(checkpoint, "_assemble", too_late)


def load(folder: Path | str, **options: Any) -> gl.Transformer:
    return gl.load(folder, device="cpu", progress=False, **options)


def test_the_undamaged_folder_loads(sound: Path) -> None:
    with torch.no_grad():
        assert load(sound)(torch.tensor([[1, 2, 3]])).isfinite().all()


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("case", CASES)
def test_damage_is_named(case: str, folder: Path, sound: Path) -> None:
    damage, sentence = CASES[case]
    damage(folder)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load(folder)
    assert str(caught.value) == sentence.format(folder=folder, **facts(sound))
    assert "\n" not in str(caught.value)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 16
    assert len({sentence for _, sentence in CASES.values()}) >= 30


# --- what no change of a file can bring about ----------------------------------------------------


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_file_instead_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(folder / FIRST)
    assert str(caught.value) == f"{folder / FIRST} is a file: give the folder that holds it."


@pytest.mark.usefixtures("nothing_is_loaded")
def test_no_such_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(f"{folder}/nowhere")
    assert str(caught.value) == f"There is no folder {folder}/nowhere. {BUNDLED}"


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the refusal is played."""
    real = Path.open

    def open_or_refuse(self: Path, *rest: Any, **more: Any) -> Any:
        if self.name == FIRST:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *rest, **more)

    monkeypatch.setattr(Path, "open", open_or_refuse)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(caught.value) == f"{folder / FIRST} cannot be read: Permission denied."


def test_a_file_that_vanishes_after_its_header_was_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.check_tensors

    def check_then_remove(*arguments: Any) -> None:
        real(*arguments)
        (folder / LAST).unlink()

    monkeypatch.setattr(checkpoint, "check_tensors", check_then_remove)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*No such file or directory"):
        load(folder)


def test_a_file_that_is_cut_off_after_its_header_was_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.check_tensors

    def check_then_cut(*arguments: Any) -> None:
        real(*arguments)
        cut(LAST, -100)(folder)

    monkeypatch.setattr(checkpoint, "check_tensors", check_then_cut)
    with pytest.raises(CheckpointError, match="cannot be read: "):
        load(folder)


GB = 10**9


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("free", "total", "options"),
    [
        (1_073_000_000, 64 * GB, {"dtype": torch.float32}),  # all is taken by others
        (1_060_000_000, 1_074_500_000, {}),  # mapped, but more than the machine has
    ],
    ids=["little is free", "more than the machine has"],
)
def test_a_model_too_large(
    free: int,
    total: int,
    options: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: (free, total))
    with pytest.raises(CheckpointError) as caught:
        load(folder, **options)
    assert str(caught.value) == (
        f"model needs 0.0 GB on cpu and 1 GiB to work in, but {free / 1e9:.1f} GB of "
        f"{total / 1e9:.1f} GB are free. Close other programs, keep experts='packed', choose a "
        "16-bit dtype, or use a smaller model such as 'gpt-oss-nano'."
    )


def test_a_mapped_model_needs_little_free_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of a mapped file can be dropped at any time, so they need not be free now."""
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: (1_074_000_000, 64 * GB))
    load(folder)
    with pytest.raises(CheckpointError, match="1 GiB to work in"):
        load(folder, experts="dense", dtype=torch.float32)


def test_available_memory_is_that_of_this_machine() -> None:
    free, total = checkpoint.available_memory(torch.device("cpu"))
    assert 0 < free <= total
    assert total > 10**8


# --- at random -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [FIRST, INDEX_NAME])
def test_random_damage_gives_our_errors_or_a_model(
    target: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a header or of the index change at random; the data are left alone."""
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = load(folder)(ids)
    content = (folder / target).read_bytes()
    length = 8 + int.from_bytes(content[:8], "little") if target == FIRST else len(content)
    assembled = []
    real = checkpoint._assemble

    def assemble(*arguments: Any) -> gl.Transformer:
        assembled.append(True)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "_assemble", assemble)
    loaded = 0
    for seed in range(200):
        changed = damaged(content[:length], random.Random(seed))
        (folder / target).write_bytes(changed + content[length:])
        assembled.clear()
        try:
            model = load(folder)
        except GptOssLiteError:
            assert not assembled
        else:
            loaded += 1
            with torch.no_grad():
                assert torch.equal(model(ids), expected), f"seed {seed} loads another model"
    assert loaded < 40


def test_random_cuts_give_our_errors(folder: Path) -> None:
    """Downloads that broke off: anywhere in any file."""
    rng = random.Random(0)
    for name in (*SHARDS, INDEX_NAME, "config.json"):
        content = (folder / name).read_bytes()
        for _ in range(20):
            (folder / name).write_bytes(content[: rng.randrange(len(content))])
            with pytest.raises(GptOssLiteError):
                load(folder)
        (folder / name).write_bytes(content)
    load(folder)
