"""From a config alone: every name, shape and dtype of the published files, to the byte."""

import json
import math
from pathlib import Path

import pytest
import torch

from gptoss_lite import PRESETS, Transformer
from gptoss_lite.headers import ITEM_BYTES, header_bytes
from gptoss_lite.names import (
    BYTES,
    Layout,
    choose_layout,
    gpt2,
    gpt_oss,
    gpt_oss_original,
    gpt_oss_unpacked,
    published_layout,
    qwen3_moe,
)
from tests import hostile

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index_gpt_oss_20b.json").read_text())
ORIGINAL = json.loads((GOLDEN / "original_dtypes_20b.json").read_text())


def specs(layout: Layout, floats: str = "BF16") -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: ("U8" if dtypes == BYTES else floats, shape)
        for name, (shape, dtypes) in layout.expected().items()
    }


def n_bytes(layout: Layout, floats: str = "BF16") -> int:
    tensors = specs(layout, floats).values()
    return sum(ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in tensors)


def published_file_bytes(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """Return the size of a file ordered as the published ones: widest dtype first, then by name."""
    ordered = sorted(tensors.items(), key=lambda item: (-ITEM_BYTES[item[1][0]], item[0]))
    data = sum(ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in tensors.values())
    return len(header_bytes(dict(ordered))) + data


# --- gpt-oss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "layout", "n_tensors", "total"),
    [
        ("gpt-oss-20b", gpt_oss, 459, 13_761_264_768),
        ("gpt-oss-20b", gpt_oss_original, 363, 13_761_264_768),
        ("gpt-oss-120b", gpt_oss, 687, 65_248_815_744),
        ("gpt-oss-120b", gpt_oss_original, 543, 65_248_815_744),
        ("gpt-oss-20b", gpt_oss_unpacked, 411, 41_829_514_368),
        ("gpt-oss-120b", gpt_oss_unpacked, 615, 233_658_313_344),
    ],
)
def test_full_size_counts_and_bytes(preset: str, layout, n_tensors: int, total: int) -> None:
    made = layout(PRESETS[preset])
    assert len(made.expected()) == n_tensors
    assert n_bytes(made) == total


def test_hugging_face_names_are_those_of_the_published_index() -> None:
    published = [name for names in INDEX["files"].values() for name in names]
    assert len(published) == len(set(published)) == 459
    assert set(gpt_oss(PRESETS["gpt-oss-20b"]).expected()) == set(published)
    assert INDEX["total_size"] == n_bytes(gpt_oss(PRESETS["gpt-oss-20b"]))


@pytest.mark.parametrize("file", list(INDEX["files"]))
def test_published_shard_sizes_to_the_byte(file: str) -> None:
    """Header and data of each shard come out as long as the published file."""
    all_tensors = specs(gpt_oss(PRESETS["gpt-oss-20b"]))
    shard = {name: all_tensors[name] for name in INDEX["files"][file]}
    assert published_file_bytes(shard) == INDEX["file_bytes"][file]


def test_original_names_dtypes_and_file_size() -> None:
    tensors = specs(gpt_oss_original(PRESETS["gpt-oss-20b"]))
    stored_as = {"BF16": "BF16", "FP4": "U8", "UE8": "U8"}  # a safetensors file has no FP4 or UE8
    published = {
        name: stored_as[dtype] for dtype, names in ORIGINAL["names"].items() for name in names
    }
    assert {name: dtype for name, (dtype, _) in tensors.items()} == published
    assert all(name.endswith(".blocks") for name in ORIGINAL["names"]["FP4"])
    assert all(name.endswith(".scales") for name in ORIGINAL["names"]["UE8"])
    assert published_file_bytes(tensors) == ORIGINAL["file_bytes"]


HF_LAYER = {
    "input_layernorm.weight": (2880,),
    "self_attn.q_proj.weight": (4096, 2880),
    "self_attn.q_proj.bias": (4096,),
    "self_attn.k_proj.weight": (512, 2880),
    "self_attn.k_proj.bias": (512,),
    "self_attn.v_proj.weight": (512, 2880),
    "self_attn.v_proj.bias": (512,),
    "self_attn.sinks": (64,),
    "self_attn.o_proj.weight": (2880, 4096),
    "self_attn.o_proj.bias": (2880,),
    "post_attention_layernorm.weight": (2880,),
    "mlp.router.weight": ("E", 2880),
    "mlp.router.bias": ("E",),
    "mlp.experts.gate_up_proj_blocks": ("E", 5760, 90, 16),
    "mlp.experts.gate_up_proj_scales": ("E", 5760, 90),
    "mlp.experts.gate_up_proj_bias": ("E", 5760),
    "mlp.experts.down_proj_blocks": ("E", 2880, 90, 16),
    "mlp.experts.down_proj_scales": ("E", 2880, 90),
    "mlp.experts.down_proj_bias": ("E", 2880),
}
ORIGINAL_LAYER = {
    "attn.norm.scale": (2880,),
    "attn.qkv.weight": (5120, 2880),
    "attn.qkv.bias": (5120,),
    "attn.sinks": (64,),
    "attn.out.weight": (2880, 4096),
    "attn.out.bias": (2880,),
    "mlp.norm.scale": (2880,),
    "mlp.gate.weight": ("E", 2880),
    "mlp.gate.bias": ("E",),
    "mlp.mlp1_weight.blocks": ("E", 5760, 90, 16),
    "mlp.mlp1_weight.scales": ("E", 5760, 90),
    "mlp.mlp1_bias": ("E", 5760),
    "mlp.mlp2_weight.blocks": ("E", 2880, 90, 16),
    "mlp.mlp2_weight.scales": ("E", 2880, 90),
    "mlp.mlp2_bias": ("E", 2880),
}


@pytest.mark.parametrize("preset", ["gpt-oss-20b", "gpt-oss-120b"])
def test_every_shape_of_gpt_oss(preset: str) -> None:
    config = PRESETS[preset]
    ends = (201_088, 2880), (2880,), (201_088, 2880)
    expected_hf = dict(
        zip(("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), ends, strict=True)
    )
    expected_original = dict(
        zip(("embedding.weight", "norm.scale", "unembedding.weight"), ends, strict=True)
    )
    experts = {"gpt-oss-20b": 32, "gpt-oss-120b": 128}[preset]
    for n in range({"gpt-oss-20b": 24, "gpt-oss-120b": 36}[preset]):
        for prefix, layer, expected in (
            (f"model.layers.{n}.", HF_LAYER, expected_hf),
            (f"block.{n}.", ORIGINAL_LAYER, expected_original),
        ):
            for name, shape in layer.items():
                expected[prefix + name] = tuple(experts if n == "E" else n for n in shape)
    for layout, expected in (
        (gpt_oss(config), expected_hf),
        (gpt_oss_original(config), expected_original),
    ):
        tensors = specs(layout)
        assert {name: shape for name, (_, shape) in tensors.items()} == expected
        packed = {name for name in expected if name.endswith(("blocks", "scales"))}
        assert {name for name, (dtype, _) in tensors.items() if dtype == "U8"} == packed


def test_unpacked_experts_are_stored_in_by_out() -> None:
    expected = gpt_oss_unpacked(PRESETS["gpt-oss-20b"]).expected()
    experts = "model.layers.3.mlp.experts"
    assert expected[f"{experts}.gate_up_proj"][0] == (32, 2880, 5760)
    assert expected[f"{experts}.down_proj"][0] == (32, 2880, 2880)
    assert not any(name.endswith(("_blocks", "_scales")) for name in expected)


# --- the others ----------------------------------------------------------------------------------


def test_qwen3_30b_a3b() -> None:
    layout = qwen3_moe(PRESETS["qwen3-30b-a3b"])
    expected = {name: shape for name, (shape, _) in layout.expected().items()}
    assert len(expected) == 18_867
    assert n_bytes(layout) == 61_064_245_248
    layer = "model.layers.47"
    assert expected[f"{layer}.self_attn.q_proj.weight"] == (4096, 2048)
    assert expected[f"{layer}.self_attn.k_proj.weight"] == (512, 2048)
    assert expected[f"{layer}.self_attn.o_proj.weight"] == (2048, 4096)
    assert expected[f"{layer}.self_attn.q_norm.weight"] == (128,)
    assert expected[f"{layer}.self_attn.k_norm.weight"] == (128,)
    assert expected[f"{layer}.mlp.gate.weight"] == (128, 2048)
    assert expected[f"{layer}.mlp.experts.127.gate_proj.weight"] == (768, 2048)
    assert expected[f"{layer}.mlp.experts.127.up_proj.weight"] == (768, 2048)
    assert expected[f"{layer}.mlp.experts.127.down_proj.weight"] == (2048, 768)
    assert expected["lm_head.weight"] == (151_936, 2048)


@pytest.mark.parametrize(
    ("preset", "n_tensors", "parameters"),
    [
        ("gpt2", 148, 124_439_808),
        ("gpt2-medium", 292, 354_823_168),
        ("gpt2-large", 436, 774_030_080),
        ("gpt2-xl", 580, 1_557_611_200),
    ],
)
def test_gpt2_sizes(preset: str, n_tensors: int, parameters: int) -> None:
    layout = gpt2(PRESETS[preset], "")
    assert len(layout.expected()) == n_tensors
    assert n_bytes(layout, "F32") == 4 * parameters


def test_gpt2_shapes_are_in_by_out() -> None:
    expected = {name: shape for name, (shape, _) in gpt2(PRESETS["gpt2"], "").expected().items()}
    assert expected["wte.weight"] == (50_257, 768)
    assert expected["wpe.weight"] == (1_024, 768)
    layer = {name: shape for name, shape in expected.items() if name.startswith("h.11.")}
    assert layer == {
        "h.11.ln_1.weight": (768,),
        "h.11.ln_1.bias": (768,),
        "h.11.attn.c_attn.weight": (768, 2304),
        "h.11.attn.c_attn.bias": (2304,),
        "h.11.attn.c_proj.weight": (768, 768),
        "h.11.attn.c_proj.bias": (768,),
        "h.11.ln_2.weight": (768,),
        "h.11.ln_2.bias": (768,),
        "h.11.mlp.c_fc.weight": (768, 3072),
        "h.11.mlp.c_fc.bias": (3072,),
        "h.11.mlp.c_proj.weight": (3072, 768),
        "h.11.mlp.c_proj.bias": (768,),
    }


# --- every table ---------------------------------------------------------------------------------

TABLES = {
    "gpt-oss": gpt_oss(hostile.GPT_OSS_MXFP4),
    "gpt-oss original": gpt_oss_original(hostile.GPT_OSS_MXFP4),
    "gpt-oss unpacked": gpt_oss_unpacked(hostile.GPT_OSS),
    "GPT-2": gpt2(hostile.GPT2, ""),
    "Qwen3": qwen3_moe(hostile.QWEN3),
}
CONFIGS = {
    "gpt-oss": hostile.GPT_OSS_MXFP4,
    "gpt-oss original": hostile.GPT_OSS_MXFP4,
    "gpt-oss unpacked": hostile.GPT_OSS,
    "GPT-2": hostile.GPT2,
    "Qwen3": hostile.QWEN3,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_tensor_of_the_model_has_one_part(table: str) -> None:
    """Nothing of the model is left out and nothing is read twice."""
    names = [part.ours for part in TABLES[table].parts]
    assert len(names) == len(set(names))
    with torch.device("meta"):
        model = Transformer(CONFIGS[table])
    ours = {name for name, _ in model.named_parameters()}  # a tied head counts once
    unpacked = {
        name.replace(".blocks", ".weight") for name in names if not name.endswith(".scales")
    }
    assert unpacked == ours


@pytest.mark.parametrize("table", TABLES)
def test_write_undoes_read(table: str) -> None:
    """What a part writes is, value for value, what it read."""
    generator = hostile.seeded()
    for part in TABLES[table].parts:
        files = [torch.randint(256, part.shape, generator=generator) for _ in part.files]
        if part.span:
            files = [tensor.narrow(*part.span) for tensor in files]
        again = part.write(part.read(files))
        assert len(again) == len(files)
        for before, after in zip(files, again, strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("table", TABLES)
def test_copies_says_whether_bytes_are_shared(table: str) -> None:
    """A part that is read without a copy stays mapped to its file, and only such a part."""
    for part in TABLES[table].parts:
        files = [torch.zeros(part.shape, dtype=torch.uint8) for _ in part.files]
        if part.span:
            files = [tensor.narrow(*part.span) for tensor in files]
        storages = {tensor.untyped_storage().data_ptr() for tensor in files}
        shared = part.read(files).untyped_storage().data_ptr() in storages
        assert shared != part.copies, part.ours


@pytest.mark.parametrize("table", ["gpt-oss original", "GPT-2"])
def test_spans_cover_their_file_tensor_once(table: str) -> None:
    covered: dict[str, list[tuple[int, int]]] = {}
    lengths = {}
    for part in TABLES[table].parts:
        if part.span:
            axis, start, length = part.span
            covered.setdefault(part.files[0], []).append((start, start + length))
            lengths[part.files[0]] = part.shape[axis]
    assert len(covered) == 2 * CONFIGS[table].n_layers  # a weight and a bias each
    for name, ranges in covered.items():
        position = 0
        for start, end in sorted(ranges):
            assert start == position
            position = end
        assert position == lengths[name]


def test_layouts_are_told_apart_by_their_names() -> None:
    for table, layout in TABLES.items():
        chosen = choose_layout(CONFIGS[table], layout.expected())
        assert chosen.name == layout.name
        assert list(chosen.expected()) == list(layout.expected())
    prefixed = gpt2(hostile.GPT2, "transformer.")
    assert choose_layout(hostile.GPT2, prefixed.expected()).expected() == prefixed.expected()


def test_models_are_saved_in_the_published_layout() -> None:
    assert published_layout(hostile.GPT_OSS_MXFP4).name == "Hugging Face, MXFP4 experts"
    assert published_layout(hostile.GPT_OSS).name == "Hugging Face, unpacked experts"
    assert published_layout(hostile.QWEN3).name == "Qwen3-MoE"
    assert "wte.weight" in published_layout(hostile.GPT2).expected()
