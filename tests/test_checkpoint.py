"""The same weights in every published form give the same model, and what we save others load."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gptoss_lite as gl
from gptoss_lite import checkpoint
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import BackendError, CheckpointError, ConfigError
from gptoss_lite.headers import INDEX_NAME, read_folder
from gptoss_lite.model import Transformer
from gptoss_lite.moe import ExpertLinear
from gptoss_lite.mxfp4 import PackedExpertLinear, dequantize
from gptoss_lite.names import choose_layout
from tests import checkpoint_files as files
from tests import hostile
from tests.checkpoint_files import Weights, read_all, write_json

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # on logits of order 1, float32
MARGIN = 1e-3  # by which a greedy choice must win to be compared between programs
EAGER = {"attn_implementation": "eager"}


@pytest.fixture(autouse=True)
def quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load(source: Path, **options: Any) -> Transformer:
    return gl.load(source, device="cpu", progress=False, **options)


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        answer = model(ids)
    return answer if isinstance(answer, Tensor) else answer.logits


def theirs(folder: Path, **options: Any) -> torch.nn.Module:
    """Load a folder in transformers, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **EAGER, **options
    )
    return model.eval()


def theirs_decoded(folder: Path) -> torch.nn.Module:
    config = transformers.Mxfp4Config(dequantize=True)
    return theirs(folder, quantization_config=config, experts_implementation="eager")


# --- gpt-oss: four forms of the same weights -----------------------------------------------------

IDS = torch.randint(files.V, (2, 40), generator=hostile.seeded(3))  # over five windows


@pytest.fixture(scope="module")
def weights() -> Weights:
    return files.original_weights()


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forms")
    made = {
        "sharded": files.write_hugging_face(root / "sharded", weights),
        "original": files.write_original(root / "repository" / "original", weights),
        "original in three": files.write_original(root / "three", weights, n_files=3),
    }
    decoded = theirs_decoded(made["sharded"])
    # transformers 5 leaves the ending "_blocks" at the experts' names, and then does not find
    # them itself; a model that never was packed has plain names. Both forms exist.
    decoded.save_pretrained(root / "decoded")
    plain = transformers.GptOssForCausalLM(decoded.config)
    plain.load_state_dict(decoded.state_dict())
    plain.bfloat16().save_pretrained(root / "unpacked")
    made |= {"decoded": root / "decoded", "unpacked": root / "unpacked"}
    return made


@pytest.fixture(scope="module")
def reference(forms: dict[str, Path]) -> Tensor:
    return logits(theirs_decoded(forms["sharded"]), IDS)


PACKED_FORMS = ("sharded", "original", "original in three")
UNPACKED_FORMS = ("decoded", "unpacked")


def test_the_forms_are_the_awkward_ones(forms: dict[str, Path]) -> None:
    """What the tests below rest on."""
    index = json.loads((forms["sharded"] / INDEX_NAME).read_text())["weight_map"]
    assert {file[6:11] for file in index.values()} == {f"{n:05d}" for n in range(5)}
    layers = [name.split(".")[2] for name in index if ".layers." in name]
    assert list(dict.fromkeys(layers)) == sorted(set(layers))  # as text: 0, 1, 10, 11, 2 ...
    files_of: dict[str, set[str]] = {}
    for name, file in index.items():
        if ".layers." in name:
            files_of.setdefault(name.split(".")[2], set()).add(file)
    assert sum(len(used) > 1 for used in files_of.values()) == 4  # layers that straddle files
    assert not (forms["original"] / INDEX_NAME).exists()
    assert len(list(forms["original in three"].glob("model--0000?-of-00003.safetensors"))) == 3
    for form in UNPACKED_FORMS:
        saved = json.loads((forms[form] / "config.json").read_text())
        assert "rope_parameters" in saved
        assert "rope_scaling" not in saved
        assert "quantization_config" not in saved
    names = {form: read_all(forms[form]).keys() for form in UNPACKED_FORMS}
    ends = {"decoded": "gate_up_proj_blocks", "unpacked": "gate_up_proj"}
    for form, end in ends.items():
        assert f"model.layers.0.mlp.experts.{end}" in names[form]


@pytest.fixture(scope="module")
def answer(forms: dict[str, Path]) -> Callable[..., Tensor]:
    """Return our logits of a form, each computed once."""

    @cache
    def answer(form: str, experts: str, dtype: torch.dtype) -> Tensor:
        return logits(load(forms[form], experts=experts, dtype=dtype), IDS)

    return answer


@pytest.mark.parametrize("experts", ["packed", "dense"])
@pytest.mark.parametrize("form", [*PACKED_FORMS, *UNPACKED_FORMS])
def test_logits_equal_those_of_transformers(
    form: str, experts: str, answer: Callable[..., Tensor], reference: Tensor
) -> None:
    assert 0.5 < reference.std() < 2
    assert (answer(form, experts, torch.float32) - reference).abs().max() <= TOLERANCE


def test_no_routing_is_a_near_tie(forms: dict[str, Path]) -> None:
    """Two correct programs may then choose different experts, so the test above needs this."""
    assert hostile.router_margin(load(forms["sharded"], dtype=torch.float32), IDS) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_forms_give_the_same_logits(answer: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Packed layouts and dense experts: not one bit of difference."""
    first = answer("sharded", "packed", dtype)
    assert first.dtype == dtype
    for form in PACKED_FORMS:
        for experts in ("packed", "dense"):
            assert torch.equal(answer(form, experts, dtype), first), (form, experts)
    for form in UNPACKED_FORMS:
        assert (answer(form, "packed", dtype) - first).abs().max() <= 5e-6, form


@pytest.mark.parametrize("form", [*PACKED_FORMS, *UNPACKED_FORMS])
def test_packed_and_dense_experts_are_what_was_asked_for(form: str, forms: dict[str, Path]) -> None:
    packed, dense = load(forms[form]), load(forms[form], experts="dense")
    kind = PackedExpertLinear if form in PACKED_FORMS else ExpertLinear
    for n in range(files.L):
        for layer in ("up", "down"):
            assert type(getattr(packed.blocks[n].ffn, layer)) is kind
            assert type(getattr(dense.blocks[n].ffn, layer)) is ExpertLinear
    assert packed.config == dense.config
    assert packed.config.expert_dtype == (
        "mxfp4" if kind is PackedExpertLinear else packed.config.dtype
    )


def test_the_original_folder_is_found_below_the_one_given(forms: dict[str, Path]) -> None:
    assert load(forms["original"].parent).source == forms["original"]
    assert load(str(forms["original"])).source == forms["original"]


def test_files_win_over_what_config_json_says_of_quantization(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    for form, changed in (("sharded", None), ("unpacked", {"quant_method": "mxfp4"})):
        folder = shutil.copytree(forms[form], tmp_path / form)
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", {**config, "quantization_config": changed})
        again, before = load(folder, dtype=torch.float32), load(forms[form], dtype=torch.float32)
        assert again.config == before.config
        assert torch.equal(logits(again, IDS), logits(before, IDS))
        assert (
            read_all(gl.save_checkpoint(again, tmp_path / f"{form} again")).keys()
            == read_all(gl.save_checkpoint(before, tmp_path / f"{form} before")).keys()
        )


# --- GPT-2 and Qwen3-MoE -------------------------------------------------------------------------

GPT2_CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 88,
    "embd_pdrop": 0.1,
    "eos_token_id": 88,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 61,
    "n_embd": 30,
    "n_head": 5,
    "n_layer": 3,
    "n_positions": 61,
    "resid_pdrop": 0.1,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 89,
}
QWEN3_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 80,
    "decoder_sparse_step": 1,
    "eos_token_id": 82,
    "head_dim": 10,
    "hidden_act": "silu",
    "hidden_size": 28,
    "initializer_range": 0.02,
    "intermediate_size": 54,
    "max_position_embeddings": 64,
    "max_window_layers": 3,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 18,
    "norm_topk_prob": True,
    "num_attention_heads": 6,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 70.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 83,
}


@pytest.fixture(scope="module")
def gpt2_forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The published file, without prefix and with masks, and what transformers saves."""
    root = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        **{key: GPT2_CONFIG[key] for key in GPT2_CONFIG if key != "model_type"}
    )
    model = transformers.GPT2LMHeadModel(config)
    files.randomise(model)
    (root / "published").mkdir()
    weights = files.published_gpt2_weights(model)
    files.save_file(weights, root / "published" / "model.safetensors")
    write_json(root / "published" / "config.json", GPT2_CONFIG)
    model.save_pretrained(root / "saved")
    return {"published": root / "published", "saved": root / "saved"}


@pytest.fixture(scope="module")
def qwen3_forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The published form in three shards, and what transformers saves."""
    root = tmp_path_factory.mktemp("qwen3")
    write_json(root / "config.json", QWEN3_CONFIG)
    config = transformers.AutoConfig.from_pretrained(root)
    model = transformers.Qwen3MoeForCausalLM(config)
    files.randomise(model)
    model.bfloat16()
    published = files.write_sharded(root / "published", files.published_qwen3_weights(model), 3)
    write_json(published / "config.json", QWEN3_CONFIG)
    model.save_pretrained(root / "saved")
    return {"published": published, "saved": root / "saved"}


@pytest.mark.parametrize("form", ["published", "saved"])
def test_gpt2_logits_equal_those_of_transformers(form: str, gpt2_forms: dict[str, Path]) -> None:
    names = read_all(gpt2_forms[form]).keys()
    assert ("h.0.attn.bias" in names) == (form == "published")
    assert ("transformer.wte.weight" in names) == (form == "saved")
    ids = torch.randint(89, (2, 61), generator=hostile.seeded(3))
    ours, reference = load(gpt2_forms[form]), theirs(gpt2_forms[form])
    assert ours.embed.weight.dtype == torch.float32
    expected = logits(reference, ids)
    assert 0.5 < expected.std() < 10
    assert (logits(ours, ids) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("form", ["published", "saved"])
def test_qwen3_logits_equal_those_of_transformers(form: str, qwen3_forms: dict[str, Path]) -> None:
    ids = torch.randint(83, (2, 50), generator=hostile.seeded(3))
    ours = load(qwen3_forms[form], dtype=torch.float32)
    reference = theirs(qwen3_forms[form], experts_implementation="eager")
    assert hostile.router_margin(ours, ids) > 1e-4
    expected = logits(reference, ids)
    assert 0.3 < expected.std() < 3
    assert (logits(ours, ids) - expected).abs().max() <= TOLERANCE


# --- how a model is loaded -----------------------------------------------------------------------


def test_a_loaded_model_is_ready_to_use(forms: dict[str, Path]) -> None:
    model = load(forms["sharded"])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.source == forms["sharded"]
    assert model.device.type == "cpu"


def mapped_ranges(folder: Path) -> list[range]:
    """Return where this process has the folder's files mapped."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            begin, end = line.split()[0].split("-")
            ranges.append(range(int(begin, 16), int(end, 16)))
    return ranges


def held_bytes(model: Transformer, folder: Path) -> tuple[int, int]:
    """Return a model's bytes: (in memory of its own, mapped from the folder's files)."""
    ranges = mapped_ranges(folder)
    own = mapped = 0
    for tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.values():
        if any(tensor.data_ptr() in span for span in ranges):
            mapped += tensor.nbytes
        else:
            own += tensor.nbytes
    return own, mapped


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("experts", ["packed", "dense"])
@pytest.mark.parametrize("form", [*PACKED_FORMS, *UNPACKED_FORMS])
def test_predicted_memory_is_what_the_model_takes(
    form: str, experts: str, dtype: torch.dtype, forms: dict[str, Path]
) -> None:
    """To the byte; and what can stay mapped is."""
    folder = forms[form]
    config, held = ModelConfig.from_hf(folder), read_folder(folder)
    layout = choose_layout(config, held)
    cpu = torch.device("cpu")
    expected = checkpoint.memory_needs(layout, held, cpu, dtype, experts)
    model = load(folder, dtype=dtype, experts=experts)
    assert held_bytes(model, folder) == expected
    if form in PACKED_FORMS and experts == "packed":
        assert expected[1] > 0.3 * sum(expected)  # bytes of experts at least


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_predicted_memory_of_gpt2_and_qwen3(
    dtype: torch.dtype, gpt2_forms: dict[str, Path], qwen3_forms: dict[str, Path]
) -> None:
    for folder in (*gpt2_forms.values(), *qwen3_forms.values()):
        held = read_folder(folder)
        layout = choose_layout(ModelConfig.from_hf(folder), held)
        cpu = torch.device("cpu")
        expected = checkpoint.memory_needs(layout, held, cpu, dtype, "packed")
        assert held_bytes(load(folder, dtype=dtype), folder) == expected


def test_on_a_gpu_nothing_stays_mapped(forms: dict[str, Path]) -> None:
    """Only the prediction: the bytes of the model, all of them allocated."""
    held = read_folder(forms["sharded"])
    layout = choose_layout(ModelConfig.from_hf(forms["sharded"]), held)
    total = sum(info.n_bytes for info in held.values())
    gpu = torch.device("cuda")
    assert checkpoint.memory_needs(layout, held, gpu, torch.bfloat16, "packed") == (total, 0)


def test_training_a_mapped_model_leaves_the_file_alone(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(forms["sharded"], tmp_path / "copy")
    before = read_all(folder)
    model = load(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert_same(read_all(folder), before)


def test_tensors_at_odd_addresses(forms: dict[str, Path], tmp_path: Path) -> None:
    """Some writers do not align tensors; such files are rare and still sound."""
    shutil.copy(forms["original"] / "config.json", tmp_path)
    weights = load_file(forms["original"] / "model.safetensors")
    odd = {"a_mask.attn.bias": ("U8", (1,))}  # shifts all that follow by one byte
    specs = {
        name: ("U8" if t.dtype == torch.uint8 else "BF16", tuple(t.shape))
        for name, t in weights.items()
    }
    text = checkpoint_bytes(odd | specs, [b"\0", *(raw(weights[name]) for name in specs)])
    (tmp_path / "model.safetensors").write_bytes(text)
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load(tmp_path)
    specs = dict(sorted(specs.items(), key=lambda item: item[1][0] != "U8"))
    scale = next(name for name in specs if name.endswith("scales"))
    cut = {scale: specs.pop(scale)} | specs
    (tmp_path / "model.safetensors").write_bytes(
        checkpoint_bytes(cut, [raw(weights[name]) for name in cut], pad=False)
    )
    assert torch.equal(logits(load(tmp_path), IDS), logits(load(forms["sharded"]), IDS))


def raw(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def checkpoint_bytes(specs: dict[str, Any], data: list[bytes], pad: bool = True) -> bytes:
    """Write a file by hand, with a header of odd length if not padded."""
    header, end = {}, 0
    for (name, (dtype, shape)), piece in zip(specs.items(), data, strict=True):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(piece)]}
        end += len(piece)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 if pad else 1 - len(text) % 2)
    return len(text).to_bytes(8, "little") + text + b"".join(data)


def test_progress_goes_to_stderr(
    forms: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gl.load(forms["sharded"], device="cpu")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "sharded: 0.00 GB on cpu, Hugging Face, MXFP4 experts." in shown.err
    load(forms["sharded"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (
            {"experts": "sparse"},
            CheckpointError,
            "experts='sparse' is unknown. Use 'packed' or 'dense'.",
        ),
        (
            {"dtype": torch.int8},
            CheckpointError,
            "A model cannot compute in torch.int8. Use one of torch.float16, torch.bfloat16, "
            "torch.float32, torch.float64.",
        ),
        (
            {"dtype": "float32"},
            CheckpointError,
            "A model cannot compute in the text 'float32'. Give torch.float32.",
        ),
        (
            {"dtype": "int4"},
            CheckpointError,
            "A model cannot compute in the text 'int4'. Use one of torch.float16, torch.bfloat16, ",
        ),
        ({"device": "meta"}, BackendError, "device='meta' holds no weights. Use 'cpu' or 'cuda'."),
        ({"device": "abacus"}, BackendError, "device='abacus' cannot be used here: "),
        ({"device": "cuda:63"}, BackendError, "device='cuda:63' cannot be used here: "),
    ],
    ids=[
        "experts",
        "dtype",
        "dtype as text",
        "no such dtype",
        "meta",
        "no such device",
        "no such GPU",
    ],
)
def test_options_that_cannot_be_met(
    options: dict[str, Any], kind: type[Exception], sentence: str, forms: dict[str, Path]
) -> None:
    with hostile.without_type_checks(), pytest.raises(kind) as caught:
        gl.load(forms["sharded"], progress=False, **options)
    assert str(caught.value).startswith(sentence)


# --- saving: round trips -------------------------------------------------------------------------


def assert_same(one: Weights, other: Weights) -> None:
    """Same names, shapes, dtypes and bytes."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert raw(tensor) == raw(other[name]), name


@pytest.mark.parametrize("form", PACKED_FORMS)
def test_gpt_oss_round_trip(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    saved = gl.save_checkpoint(load(forms[form]), tmp_path / "saved")
    assert_same(read_all(saved), read_all(forms["sharded"]))
    assert ModelConfig.from_hf(saved) == ModelConfig.from_hf(forms["sharded"])


@pytest.mark.parametrize("form", ["sharded", "original"])
def test_original_round_trip(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    """Written in OpenAI's own layout from either layout: the same bytes, config and kinds."""
    model = load(forms[form])
    saved = gl.save_checkpoint(model, tmp_path / "original", original=True, max_shard_bytes=1)
    assert_same(read_all(saved), read_all(forms["original"]))
    assert json.loads((saved / "config.json").read_text()) == files.ORIGINAL_CONFIG
    kinds = json.loads((saved / "dtypes.json").read_text())
    assert kinds.keys() == read_all(saved).keys()
    assert {name.rpartition(".")[2] for name, kind in kinds.items() if kind == "FP4"} == {"blocks"}
    assert {name.rpartition(".")[2] for name, kind in kinds.items() if kind == "UE8"} == {"scales"}
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "dtypes.json",
        "model.safetensors",
    ]
    assert torch.equal(logits(load(saved), IDS), logits(model, IDS))


def test_an_original_folder_is_overwritten_whole(forms: dict[str, Path], tmp_path: Path) -> None:
    model, folder = load(forms["sharded"]), tmp_path / "folder"
    gl.save_checkpoint(model, folder, original=True)
    gl.save_checkpoint(model, folder, overwrite=True)
    assert_same(read_all(folder), read_all(forms["sharded"]))
    assert not (folder / "dtypes.json").exists()


def test_only_gpt_oss_goes_into_the_original_layout(tmp_path: Path) -> None:
    model = gl.Transformer(gl.LADDER[0].config)
    with pytest.raises(ConfigError, match="Write this model in the Hugging Face layout"):
        gl.save_checkpoint(model, tmp_path / "folder", original=True)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("form", UNPACKED_FORMS)
def test_unpacked_round_trip(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    saved = gl.save_checkpoint(load(forms[form]), tmp_path / "saved")
    stored = read_all(forms[form])
    expected = {name.removesuffix("_blocks"): tensor for name, tensor in stored.items()}
    assert_same(read_all(saved), expected)


def test_float32_and_dense_models_are_saved_as_they_were_stored(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    """bfloat16 and MXFP4 again: neither decoding nor a wider dtype loses a bit."""
    before = read_all(forms["sharded"])
    for experts in ("packed", "dense"):
        model = load(forms["sharded"], dtype=torch.float32, experts=experts)
        after = read_all(gl.save_checkpoint(model, tmp_path / experts))
        if experts == "packed":
            assert_same(after, before)
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            if name.endswith("_scales"):
                continue
            if not name.endswith("_blocks"):
                assert raw(after[name]) == raw(tensor)
                continue
            # a value may be written in two ways, such as 1 * 2 or 2 * 1, so values are compared
            scales = name.replace("_blocks", "_scales")
            assert torch.equal(
                dequantize(after[name], after[scales]), dequantize(tensor, before[scales])
            )


def test_gpt2_round_trip(gpt2_forms: dict[str, Path], tmp_path: Path) -> None:
    published = read_all(gpt2_forms["published"])
    expected = {name: t for name, t in published.items() if not name.endswith(".attn.bias")}
    for form, folder in gpt2_forms.items():
        saved = gl.save_checkpoint(load(folder), tmp_path / form)
        assert_same(read_all(saved), expected)
        assert ModelConfig.from_hf(saved) == ModelConfig.from_hf(folder)


def test_qwen3_round_trip(qwen3_forms: dict[str, Path], tmp_path: Path) -> None:
    for form, folder in qwen3_forms.items():
        saved = gl.save_checkpoint(load(folder), tmp_path / form)
        assert_same(read_all(saved), read_all(qwen3_forms["published"]))
        assert ModelConfig.from_hf(saved) == ModelConfig.from_hf(folder)


@pytest.mark.parametrize("max_shard_bytes", [1, 40_000, 10**9])
def test_shards_are_numbered_as_published(
    max_shard_bytes: int, forms: dict[str, Path], tmp_path: Path
) -> None:
    model = load(forms["sharded"])
    saved = gl.save_checkpoint(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    index = json.loads((saved / INDEX_NAME).read_text())
    names = sorted(set(index["weight_map"].values()))
    if max_shard_bytes == 10**9:
        assert names == ["model.safetensors"]
    else:
        last = len(names) - 1
        assert names == [f"model-{n:05d}-of-{last:05d}.safetensors" for n in range(last + 1)]
    assert {path.name for path in saved.iterdir()} == {*names, INDEX_NAME, "config.json"}
    held = read_folder(saved)
    assert index["metadata"]["total_size"] == sum(info.n_bytes for info in held.values())
    for name in names:
        sizes = [info.n_bytes for info in held.values() if info.file.name == name]
        assert len(sizes) == 1 or sum(sizes) <= max_shard_bytes
    assert_same(read_all(saved), read_all(forms["sharded"]))
    assert torch.equal(logits(load(saved), IDS), logits(model, IDS))


def greedy(model: Transformer, prompt: Tensor, n_tokens: int) -> tuple[list[int], float]:
    """Return the most likely tokens, and the smallest margin by which one of them won."""
    past, ids, new, margins = gl.KVCache(model.config), prompt, [], []
    with torch.no_grad():
        for _ in range(n_tokens):
            best = model(ids, past)[0, -1].topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            new.append(int(best.indices[0]))
            ids = torch.tensor([new[-1:]])
    return new, min(margins)


@pytest.mark.parametrize("family", ["gpt-oss", "GPT-2", "Qwen3-MoE"])
def test_saved_folders_generate_the_same_in_transformers(
    family: str,
    forms: dict[str, Path],
    gpt2_forms: dict[str, Path],
    qwen3_forms: dict[str, Path],
    tmp_path: Path,
) -> None:
    source = {
        "gpt-oss": forms["original"],
        "GPT-2": gpt2_forms["saved"],
        "Qwen3-MoE": qwen3_forms["published"],
    }[family]
    model = load(source, dtype=torch.float32)
    saved = gl.save_checkpoint(model, tmp_path / "saved", max_shard_bytes=50_000)
    eager = {} if family == "GPT-2" else {"experts_implementation": "eager"}
    other = theirs_decoded(saved) if family == "gpt-oss" else theirs(saved, **eager)
    prompt = torch.randint(model.config.vocab_size, (1, 12), generator=hostile.seeded(5))
    ours, margin = greedy(model, prompt, 20)
    assert margin > MARGIN
    answer = other.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert answer[0, 12:].tolist() == ours


@pytest.mark.parametrize("original", [False, True], ids=["Hugging Face", "original"])
def test_a_saved_model_stops_in_transformers(original: bool, tmp_path: Path) -> None:
    """What ends a text is in generation_config.json: without it, an answer never stops."""
    saved = gl.save_checkpoint(
        gl.load("gpt-oss-nano", device="cpu", progress=False),
        tmp_path / "original" if original else tmp_path / "saved",
        original=original,
    )
    if original:  # the file may stand above original/, as in the published repositories
        (saved / "generation_config.json").rename(tmp_path / "generation_config.json")
        again = gl.load(saved, device="cpu", progress=False)
        saved = gl.save_checkpoint(again, tmp_path / "saved")
    prompt = gl.load_tokenizer("gpt-oss-nano").render([{"role": "user", "content": "27 + 46?"}])
    ids = torch.tensor([prompt])
    other = theirs_decoded(saved)
    answer = other.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=120
    )
    new = answer[0, len(prompt) :].tolist()
    assert len(new) < 120
    assert new[-1] in gl.load_tokenizer("gpt-oss-nano").stop_ids


# --- saving: whatever happens, no half checkpoint ------------------------------------------------


@pytest.fixture
def model() -> Transformer:
    return hostile.hostile(hostile.GPT_OSS_MXFP4.but(dtype="bfloat16", n_layers=2))


@pytest.fixture
def earlier(model: Transformer, tmp_path: Path) -> Path:
    """An earlier checkpoint of another model, with a tokenizer and a folder beside it."""
    before = hostile.hostile(hostile.GPT2)
    folder = gl.save_checkpoint(before, tmp_path / "earlier", max_shard_bytes=9_000)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "original").mkdir()
    (folder / "original" / "notes.txt").write_text("kept")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones and empty folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in folder.rglob("*")
    }


def test_not_into_a_folder_with_files(model: Transformer, earlier: Path) -> None:
    before = contents(earlier.parent)
    with pytest.raises(CheckpointError) as caught:
        gl.save_checkpoint(model, earlier)
    assert str(caught.value) == (
        f"{earlier} is not empty. Choose a new folder, or pass overwrite=True."
    )
    assert contents(earlier.parent) == before


def test_not_onto_a_file(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError) as caught:
        gl.save_checkpoint(model, tmp_path / "file", overwrite=True)
    assert str(caught.value) == (
        f"Could not write {tmp_path / 'file'}: File exists. Nothing was changed; name a new folder."
    )
    assert contents(tmp_path) == {"file": b"mine"}


def test_not_where_no_folder_can_be(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"File name too long\. Nothing was changed; name a"):
        gl.save_checkpoint(model, tmp_path / ("x" * 5_000))


def test_into_a_new_or_empty_folder(model: Transformer, tmp_path: Path) -> None:
    new = tmp_path / "a" / "b"
    assert gl.save_checkpoint(model, new) == new
    empty = tmp_path / "empty"
    empty.mkdir()
    assert gl.save_checkpoint(model, str(empty)) == empty
    assert contents(new) == contents(empty)
    assert set(contents(new)) == {"model.safetensors", INDEX_NAME, "config.json"}


def test_into_the_current_folder(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gl.save_checkpoint(model, ".")
    gl.save_checkpoint(model, "", overwrite=True)
    assert set(os.listdir()) == {"model.safetensors", INDEX_NAME, "config.json"}  # noqa: PTH208
    assert load(Path.cwd()).config == model.config


def test_overwriting_keeps_the_other_files(model: Transformer, earlier: Path) -> None:
    assert len(list(earlier.glob("*.safetensors"))) > 3
    gl.save_checkpoint(model, earlier, overwrite=True)
    assert set(contents(earlier)) == {
        "model.safetensors",
        INDEX_NAME,
        "config.json",
        "tokenizer.json",
        "original",
        "original/notes.txt",
    }
    assert load(earlier).config == model.config


def test_what_ends_a_text_is_replaced_along_with_the_model(
    model: Transformer, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (earlier / "generation_config.json").write_text("earlier")
    gl.save_checkpoint(model, earlier, overwrite=True)  # a model that was never loaded has none
    assert (earlier / "generation_config.json").read_text() == "earlier"
    model.source = tmp_path / "source"
    model.source.mkdir()
    (model.source / "generation_config.json").write_text("later")
    before = contents(earlier)
    rename = Path.rename

    def fail_last(self: Path, target: Path) -> Path:
        if self.parent.name == "new" and self.name == "config.json":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_last)
        with pytest.raises(CheckpointError):
            gl.save_checkpoint(model, earlier, overwrite=True)
    assert contents(earlier) == before
    gl.save_checkpoint(model, earlier, overwrite=True)
    assert (earlier / "generation_config.json").read_text() == "later"


def test_through_a_link(model: Transformer, earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(earlier)
    gl.save_checkpoint(model, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert load(earlier).config == model.config


def fail_at(number: int, problem: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the write of one shard fail half-way."""
    calls = iter(range(100))
    real = checkpoint.write_file

    def write_file(path: Path, *rest: Any, **more: Any) -> None:
        if next(calls) == number:
            path.write_bytes(b"half a file")
            raise problem
        real(path, *rest, **more)

    monkeypatch.setattr(checkpoint, "write_file", write_file)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("problem", [FULL, KeyboardInterrupt(), RuntimeError("bug")], ids=repr)
@pytest.mark.parametrize("overwrite", [True, False])
def test_failure_in_the_second_shard(
    problem: BaseException,
    overwrite: bool,
    model: Transformer,
    earlier: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An earlier checkpoint is untouched, a new folder does not appear, nothing is left over."""
    folder = earlier if overwrite else earlier.parent / "new"
    before = contents(earlier.parent)
    fail_at(1, problem, monkeypatch)
    expected = CheckpointError if problem is FULL else type(problem)
    with pytest.raises(expected) as caught:
        gl.save_checkpoint(model, folder, overwrite=overwrite, max_shard_bytes=20_000)
    if problem is FULL:
        assert str(caught.value) == (
            f"Could not write {folder}: No space left on device. Nothing was changed; free some "
            "disk space."
        )
    assert contents(earlier.parent) == before
    load(earlier)


@pytest.mark.parametrize("number", range(9))
def test_failure_while_files_are_exchanged(
    number: int, model: Transformer, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever move fails, those before it are undone."""
    before = contents(earlier.parent)
    calls = iter(range(100))
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if next(calls) == number:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError) as caught:
        gl.save_checkpoint(model, earlier, overwrite=True)
    assert str(caught.value) == (
        f"Could not write {earlier}: Permission denied. Nothing was changed; name a new folder."
    )
    assert contents(earlier.parent) == before


def test_without_its_config_no_half_exchanged_folder_loads(
    model: Transformer, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment of the exchange the folder is the old checkpoint, the new one, or none."""
    states = []
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = real(self, target)
        states.append((earlier / "config.json").exists())
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    gl.save_checkpoint(model, earlier, overwrite=True)
    assert len(states) > 5
    assert states == [False] * (len(states) - 1) + [True]


def test_a_killed_save_leaves_the_earlier_checkpoint(model: Transformer, earlier: Path) -> None:
    """The process dies in the second shard; the next save clears what it left."""
    before = contents(earlier)
    program = f"""
import os, signal
import gptoss_lite as gl
from gptoss_lite import checkpoint
real, calls = checkpoint.write_file, []
def write_file(path, *rest, **more):
    calls.append(path)
    if len(calls) == 2:
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, *rest, **more)
checkpoint.write_file = write_file
model = gl.load({str(earlier)!r}, device="cpu", progress=False)
gl.save_checkpoint(model, {str(earlier)!r}, overwrite=True, max_shard_bytes=9_000)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    after = contents(earlier)
    left = [name for name in after if name not in before]
    assert left
    assert all(name.startswith(".saving-") for name in left)
    assert {name: after[name] for name in before} == before
    load(earlier)
    gl.save_checkpoint(model, earlier, overwrite=True)
    assert not any(name.startswith(".saving-") for name in contents(earlier))


def test_permissions_follow_the_umask(model: Transformer, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        folder = gl.save_checkpoint(model, tmp_path / "saved", max_shard_bytes=20_000)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}
    folder.chmod(0o770)
    gl.save_checkpoint(model, folder, overwrite=True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770


def test_a_mapped_model_outlives_its_folder(model: Transformer, tmp_path: Path) -> None:
    folder = gl.save_checkpoint(model, tmp_path / "saved")
    ids = hostile.tokens(model.config, 2, 20)
    expected = logits(load(folder), ids)
    mapped = load(folder)  # no page of it read yet
    gl.save_checkpoint(hostile.hostile(hostile.GPT2), folder, overwrite=True)
    assert torch.equal(logits(mapped, ids), expected)
    shutil.rmtree(folder)
    assert torch.equal(logits(mapped, ids), expected)


@pytest.mark.parametrize("max_shard_bytes", [20_000, 10**9])
def test_saving_over_the_folder_that_the_model_is_mapped_from(
    max_shard_bytes: int, model: Transformer, tmp_path: Path
) -> None:
    folder = gl.save_checkpoint(model, tmp_path / "saved")
    before = read_all(folder)
    mapped = load(folder)
    gl.save_checkpoint(mapped, folder, overwrite=True, max_shard_bytes=max_shard_bytes)
    assert_same(read_all(folder), before)
    ids = hostile.tokens(model.config, 2, 20)
    assert torch.equal(logits(mapped, ids), logits(load(folder), ids))


# --- saving: what is refused ---------------------------------------------------------------------


def places(model: Transformer) -> Iterator[str]:
    yield "embed.weight"
    yield "blocks.1.attn.k.bias"
    yield "blocks.0.ffn.down.weight" if model.config.moe else "norm.bias"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float, model: Transformer, tmp_path: Path) -> None:
    for name in places(model):
        parameter = model.get_parameter(name)
        kept = parameter.data.clone()
        parameter.data.view(-1)[-1] = value
        with pytest.raises(CheckpointError) as caught:
            gl.save_checkpoint(model, tmp_path / "saved")
        said = name.replace("down.weight", "down.blocks")
        assert str(caught.value) == f"{said} holds values that are not finite: nothing was saved."
        assert not list(tmp_path.iterdir())
        parameter.data = kept


def test_packed_weights_that_are_not_finite(forms: dict[str, Path], tmp_path: Path) -> None:
    model = load(forms["sharded"])
    model.blocks[3].ffn.up.scales[0, 1, 2, 0] = 255  # MXFP4's NaN
    with pytest.raises(CheckpointError) as caught:
        gl.save_checkpoint(model, tmp_path / "saved")
    assert str(caught.value) == (
        "blocks.3.ffn.up.scales holds values that are not finite: nothing was saved."
    )
    assert not list(tmp_path.iterdir())


def test_a_model_that_its_config_does_not_describe(model: Transformer, tmp_path: Path) -> None:
    model.embed = torch.nn.Embedding(100, model.config.d_model)
    with pytest.raises(CheckpointError) as caught:
        gl.save_checkpoint(model, tmp_path / "saved")
    assert str(caught.value) == (
        "model.embed_tokens.weight would be torch.bfloat16 [100, 64], but the model's config asks "
        "for BF16 [97, 64]. Give the model a config that describes it."
    )
    assert not list(tmp_path.iterdir())


def test_a_rung_that_no_published_layout_can_hold(tmp_path: Path) -> None:
    rung = Transformer(hostile.GPT_OSS.but(norm="layernorm"))
    with pytest.raises(ConfigError, match="No published architecture has this mix of parts"):
        gl.save_checkpoint(rung, tmp_path / "saved")
    assert not list(tmp_path.iterdir())
