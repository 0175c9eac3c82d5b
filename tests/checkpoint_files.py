"""Tiny checkpoints in each published form, written without the package's tables of names.

The weights are drawn under OpenAI's names; the other layouts are made from them by the rules of
the published files: q, k and v side by side or apart, gate and up rows in turn, MXFP4 bytes equal
in both layouts, shards counted from 0, layers in the order of their names as text.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# Pairwise different sizes; H * hd = 60 is not D. Twelve layers, so that 10 and 11 sort before 2.
V, D, F, L, H, K, HD, E, A = 97, 64, 96, 12, 6, 2, 10, 5, 3
WINDOW, ORIGINAL_CONTEXT, FACTOR, THETA, LIMIT = 7, 16, 8.0, 50, 2.5

Weights = dict[str, Tensor]

HF_CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 96,
    "pad_token_id": 95,
    "experts_per_token": A,
    "num_experts_per_tok": A,
    "num_local_experts": E,
    "head_dim": HD,
    "hidden_act": "silu",
    "hidden_size": D,
    "initial_context_length": ORIGINAL_CONTEXT,
    "initializer_range": 0.02,
    "intermediate_size": F,
    "layer_types": ["sliding_attention", "full_attention"] * (L // 2),
    "max_position_embeddings": int(ORIGINAL_CONTEXT * FACTOR),
    "num_attention_heads": H,
    "num_hidden_layers": L,
    "num_key_value_heads": K,
    "output_router_logits": False,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 2.0,
        "beta_slow": 0.5,
        "factor": FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": THETA,
    "router_aux_loss_coef": 0.9,
    "sliding_window": WINDOW,
    "swiglu_limit": LIMIT,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": V,
}

ORIGINAL_CONFIG = {
    "num_hidden_layers": L,
    "num_experts": E,
    "experts_per_token": A,
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "swiglu_limit": LIMIT,
    "head_dim": HD,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "sliding_window": WINDOW,
    "initial_context_length": ORIGINAL_CONTEXT,
    "rope_theta": THETA,
    "rope_scaling_factor": FACTOR,
    "rope_ntk_alpha": 0.5,
    "rope_ntk_beta": 2,
}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def original_weights(seed: int = 0) -> Weights:
    """Draw every tensor under its name in OpenAI's original/ folder; none keeps a default."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return (mean + std * torch.randn(shape, generator=generator)).bfloat16()

    def matrix(rows: int, width: int, gain: float = 1.0) -> Tensor:
        return normal(rows, width, std=gain / math.sqrt(width))

    def codes(*shape: int) -> Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def exponents(*shape: int) -> Tensor:  # 2 ** -7 to 2 ** -4
        return torch.randint(120, 124, shape, generator=generator, dtype=torch.uint8)

    qkv = H * HD + 2 * K * HD
    weights = {"embedding.weight": normal(V, D, std=0.05)}
    for n in range(L):
        b = f"block.{n}"
        weights |= {
            f"{b}.attn.norm.scale": normal(D, std=0.3, mean=1.0),
            f"{b}.attn.qkv.weight": matrix(qkv, D),
            f"{b}.attn.qkv.bias": normal(qkv, std=0.3),
            f"{b}.attn.sinks": normal(H, std=1.5),
            f"{b}.attn.out.weight": matrix(D, H * HD, gain=0.5),
            f"{b}.attn.out.bias": normal(D, std=0.1),
            f"{b}.mlp.norm.scale": normal(D, std=0.3, mean=1.0),
            f"{b}.mlp.gate.weight": matrix(E, D, gain=3.0),
            f"{b}.mlp.gate.bias": normal(E, std=0.5),
            f"{b}.mlp.mlp1_weight.blocks": codes(E, 2 * F, D // 32, 16),
            f"{b}.mlp.mlp1_weight.scales": exponents(E, 2 * F, D // 32),
            f"{b}.mlp.mlp1_bias": normal(E, 2 * F, std=0.5),
            f"{b}.mlp.mlp2_weight.blocks": codes(E, D, F // 32, 16),
            f"{b}.mlp.mlp2_weight.scales": exponents(E, D, F // 32) - 2,
            f"{b}.mlp.mlp2_bias": normal(E, D, std=0.3),
        }
    weights["norm.scale"] = normal(D, std=0.3, mean=1.0)
    weights["unembedding.weight"] = matrix(V, D)
    return weights


def hugging_face_weights(original: Weights) -> Weights:
    """Rename and split the original tensors, in the order of the published index."""
    moved = {}
    for n in sorted(range(L), key=str):
        a, m = f"block.{n}.attn", f"block.{n}.mlp"
        b = f"model.layers.{n}"
        sizes = [H * HD, K * HD, K * HD]
        biases = original[f"{a}.qkv.bias"].split(sizes)
        matrices = original[f"{a}.qkv.weight"].split(sizes)
        moved[f"{b}.input_layernorm.weight"] = original[f"{a}.norm.scale"]
        moved[f"{b}.self_attn.o_proj.bias"] = original[f"{a}.out.bias"]
        moved[f"{b}.self_attn.o_proj.weight"] = original[f"{a}.out.weight"]
        for letter, bias in zip("qkv", biases, strict=True):
            moved[f"{b}.self_attn.{letter}_proj.bias"] = bias
        for letter, weight in zip("qkv", matrices, strict=True):
            moved[f"{b}.self_attn.{letter}_proj.weight"] = weight
        moved[f"{b}.self_attn.sinks"] = original[f"{a}.sinks"]
        moved[f"{b}.mlp.router.bias"] = original[f"{m}.gate.bias"]
        moved[f"{b}.mlp.router.weight"] = original[f"{m}.gate.weight"]
        for theirs, name in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
            moved[f"{b}.mlp.experts.{name}_bias"] = original[f"{m}.{theirs}_bias"]
            for kind in ("blocks", "scales"):
                packed = original[f"{m}.{theirs}_weight.{kind}"]
                moved[f"{b}.mlp.experts.{name}_{kind}"] = packed
        moved[f"{b}.post_attention_layernorm.weight"] = original[f"{m}.norm.scale"]
    moved["model.embed_tokens.weight"] = original["embedding.weight"]
    moved["model.norm.weight"] = original["norm.scale"]
    moved["lm_head.weight"] = original["unembedding.weight"]
    return {name: tensor.clone() for name, tensor in moved.items()}


def dealt(weights: Weights, n_files: int) -> list[Weights]:
    """Cut the tensors, in their order, into files of nearly equal counts."""
    names = list(weights)
    ends = [len(names) * n // n_files for n in range(n_files + 1)]
    return [
        {name: weights[name] for name in names[begin:end]}
        for begin, end in itertools.pairwise(ends)
    ]


def write_sharded(folder: Path, weights: Weights, n_files: int) -> Path:
    """Write shards numbered from 0, the last index after "of", and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, shard in enumerate(dealt(weights, n_files)):
        name = f"model-{number:05d}-of-{n_files - 1:05d}.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_hugging_face(folder: Path, original: Weights, n_files: int = 5) -> Path:
    write_sharded(folder, hugging_face_weights(original), n_files)
    write_json(folder / "config.json", HF_CONFIG)
    return folder


def write_original(folder: Path, original: Weights, n_files: int = 1) -> Path:
    """Write OpenAI's folder: one file, or several numbered from 1 after a double hyphen."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", ORIGINAL_CONFIG)
    kinds = {"blocks": "FP4", "scales": "UE8"}
    dtypes = {name: kinds.get(name.rpartition(".")[2], "BF16") for name in original}
    write_json(folder / "dtypes.json", dtypes)
    if n_files == 1:
        save_file(original, folder / "model.safetensors")
    else:
        for number, shard in enumerate(dealt(original, n_files), start=1):
            save_file(shard, folder / f"model--{number:05d}-of-{n_files:05d}.safetensors")
    return folder


def read_all(folder: Path) -> Weights:
    """Read every tensor of a folder with the safetensors library."""
    merged: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        merged |= load_file(file)
    return merged


# --- GPT-2 and Qwen3-MoE, as transformers builds them --------------------------------------------


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw all parameters: norms around 1, the rest with a standard deviation that is felt."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_norm = ("ln_" in name or "norm" in name) and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator)
        std = 0.3 if parameter.ndim < 2 else 1 / math.sqrt(parameter.shape[-1])
        with torch.no_grad():
            parameter.copy_(is_norm + std * noise)


def published_gpt2_weights(model: torch.nn.Module) -> Weights:
    """Return the state as the published file holds it: no prefix, no head, masks included."""
    weights = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    size = model.config.n_positions
    for n in range(model.config.n_layer):
        weights[f"h.{n}.attn.bias"] = torch.ones(size, size).tril()[None, None]
    return weights


def published_qwen3_weights(model: torch.nn.Module) -> Weights:
    """Return the state as the published files hold it: three matrices for each expert."""
    weights = {}
    for name, tensor in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        for number, matrix in enumerate(tensor if ".experts" in name else ()):
            if leaf == "gate_up_proj":  # [gate | up], rows
                gate, up = matrix.chunk(2)
                weights[f"{path}.{number}.gate_proj.weight"] = gate.clone()
                weights[f"{path}.{number}.up_proj.weight"] = up.clone()
            else:
                weights[f"{path}.{number}.down_proj.weight"] = matrix.clone()
        if ".experts" not in name:
            weights[name] = tensor.clone()
    return weights
