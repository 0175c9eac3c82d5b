"""Write a gpt-oss checkpoint (Hugging Face layout) as a GGUF file, for llama.cpp to be timed on.

The experts' MXFP4 weights are kept exactly, in GGUF's order; the dense matrices become bf16 (the
released numbers) or Q8_0 (what people run: 30 % fewer bytes a token at 24 layers). There is no
tokenizer in the file: llama-bench needs none.

Example:
    python benchmarks/make_gguf.py random-20b 20b-bf16.gguf --dense bf16
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.headers import TensorInfo, read_folder

Bytes = NDArray[np.uint8]
Make = Callable[[], NDArray[np.generic]]
ROWS = 4_096  # converted together: bounds the memory
MXFP4_BYTES = 17  # of a block of 32: its scale, then 16 bytes of codes
Q8_0_BYTES = 34  # of a block of 32: a float16 scale, then 32 bytes
LAYER_VECTORS = {  # GGUF's name -> the file's; always float32 in GGUF
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}
LAYER_MATRICES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
}
# Gate and up rows take turns in the file's matrices; GGUF has a tensor for each.
LAYER_EXPERTS = {
    "ffn_gate_exps": ("mlp.experts.gate_up_proj", slice(0, None, 2)),
    "ffn_up_exps": ("mlp.experts.gate_up_proj", slice(1, None, 2)),
    "ffn_down_exps": ("mlp.experts.down_proj", slice(None)),
}


def main(argv: list[str] | None = None) -> int:
    summary, _, example = (__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog="Example:" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a checkpoint with MXFP4 experts")
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--dense", choices=("bf16", "q8_0"), default="bf16")
    args = parser.parse_args(argv)
    try:
        write_gguf(args.folder, args.out, args.dense)
    except GptOssLiteError as problem:
        print(problem, file=sys.stderr)
        return 2
    except ImportError:
        print("This needs the package gguf: pip install gguf", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, dense matrices {args.dense}")
    return 0


def write_gguf(folder: Path, out: Path, dense: str) -> None:
    """Write the whole file, tensor by tensor; it gets its name when it is complete."""
    import gguf

    config, held = ModelConfig.from_hf(folder), read_folder(folder)
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT_OSS])
    _describe(writer, config)
    plan = list(_plan(config, held, dense))
    for name, shape, kind, _ in plan:
        writer.add_tensor_info(
            name, shape, np.dtype(np.uint8), int(np.prod(shape)), gguf.GGMLQuantizationType[kind]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, _, make in plan:
        data = make()
        assert data.nbytes == np.prod(shape)
        writer.write_tensor_data(data)
    writer.close()
    part.rename(out)


def _describe(writer, config: ModelConfig) -> None:
    """Write the sizes; what gpt-oss has in common, llama.cpp knows by the architecture's name."""
    import gguf

    assert config.moe is not None
    assert config.yarn is not None
    assert config.sliding_window is not None
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_expert_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(config.yarn.original_context)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.moe.n_experts)
    writer.add_expert_used_count(config.moe.n_active)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _plan(
    config: ModelConfig, held: dict[str, TensorInfo], dense: str
) -> Iterator[tuple[str, tuple[int, ...], str, Make]]:
    """Yield GGUF's name, shape in bytes, type and maker of each tensor."""

    def vector(name: str, theirs: str, rows: slice = slice(None)):
        shape = np.empty(held[theirs].shape, dtype=np.uint8)[..., rows].shape
        wide = (*shape[:-1], 4 * shape[-1])
        return name, wide, "F32", lambda: _floats(_mapped(held[theirs])[..., rows])

    def matrix(name: str, theirs: str):
        rows, width = held[theirs].shape
        if dense == "bf16":
            return name, (rows, 2 * width), "BF16", lambda: _mapped(held[theirs])
        packed = (rows, width // 32 * Q8_0_BYTES)
        return name, packed, "Q8_0", lambda: _to_q8_0(_mapped(held[theirs]))

    def experts(name: str, theirs: str, rows: slice):
        blocks, scales = (held[f"{theirs}_{leaf}"] for leaf in ("blocks", "scales"))
        n_experts, n_rows, groups = scales.shape
        shape = n_experts, len(range(n_rows)[rows]), groups * MXFP4_BYTES
        return (
            name,
            shape,
            "MXFP4",
            lambda: to_gguf_blocks(_mapped(blocks)[:, rows], _mapped(scales)[:, rows]),
        )

    yield matrix("token_embd.weight", "model.embed_tokens.weight")
    for n in range(config.n_layers):
        ours, theirs = f"blk.{n}.", f"model.layers.{n}."
        for name, their_name in LAYER_VECTORS.items():
            yield vector(ours + name, theirs + their_name)
        for name, their_name in LAYER_MATRICES.items():
            yield matrix(ours + name, theirs + their_name)
        for name, (their_name, rows) in LAYER_EXPERTS.items():
            yield experts(f"{ours}{name}.weight", theirs + their_name, rows)
            if name != "ffn_down_exps":
                yield vector(f"{ours}{name}.bias", f"{theirs}{their_name}_bias", rows)
    yield vector("output_norm.weight", "model.norm.weight")
    yield matrix("output.weight", "lm_head.weight")


# --- numbers -------------------------------------------------------------------------------------


def _mapped(info: TensorInfo) -> NDArray[np.generic]:
    """Map one tensor of the file; numpy has no bfloat16, so those are two bytes each."""
    dtype = np.uint8 if info.dtype == "U8" else np.uint16
    return np.memmap(info.file, dtype, "r", info.offset, info.shape)


def _floats(bf16: NDArray[np.generic]) -> NDArray[np.float32]:
    """Widen bfloat16, given as its 16 bits; float32 has the same exponent and 16 bits more."""
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def _to_q8_0(bf16: NDArray[np.generic]) -> Bytes:
    from gguf import GGMLQuantizationType, quants

    packed = np.empty((len(bf16), bf16.shape[1] // 32 * Q8_0_BYTES), dtype=np.uint8)
    for start in range(0, len(bf16), ROWS):
        rows = _floats(bf16[start : start + ROWS])
        packed[start : start + ROWS] = quants.quantize(rows, GGMLQuantizationType.Q8_0)
    return packed


def to_gguf_blocks(blocks: NDArray[np.generic], scales: NDArray[np.generic]) -> Bytes:
    """Turn the file's MXFP4 into GGUF's, number for number.

    Here byte j holds numbers 2j and 2j + 1. In GGUF it holds numbers j and j + 16, and the scale
    stands before the 16 bytes.

    Args:
        blocks: [E, rows, G, 16] bytes.
        scales: [E, rows, G] bytes.

    Returns:
        [E, rows, G * 17] bytes.
    """
    packed = np.empty((*scales.shape, MXFP4_BYTES), dtype=np.uint8)
    packed[..., 0] = scales
    for expert, matrix in enumerate(blocks):  # one by one: bounds the memory
        codes = np.stack((matrix & 15, matrix >> 4), axis=-1).reshape(*matrix.shape[:-1], 32)
        packed[expert, ..., 1:] = codes[..., :16] | codes[..., 16:] << 4
    return packed.reshape(*scales.shape[:-1], -1)


if __name__ == "__main__":
    sys.exit(main())
