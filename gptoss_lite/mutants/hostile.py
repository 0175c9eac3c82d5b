"""Tiny models in which every mistake shows.

With default initialization most bugs are invisible: biases and sinks are zero, norms are one, the
clamp never bites, and a prompt shorter than the window cannot see it. Here all sizes differ, every
tensor is random, and prompts run over several windows and far past YaRN's original context.
"""

import math

import torch
from torch import Tensor

from gptoss_lite import mxfp4
from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig
from gptoss_lite.model import Transformer

TOLERANCE = 1e-5  # of parity, on logits of order 1
VISIBLE = 100 * TOLERANCE  # what a mistake must move them by

GPT2 = ModelConfig(
    vocab_size=89,
    d_model=30,
    n_layers=3,
    n_heads=5,
    n_kv_heads=5,
    head_dim=6,
    d_ff=44,
    context=61,
    dtype="float32",
    expert_dtype="float32",
)

GPT_OSS = ModelConfig(
    vocab_size=97,
    d_model=24,
    n_layers=4,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    d_ff=20,
    context=128,
    norm="rmsnorm",
    positions="rope",
    rope_theta=50.0,
    # Ramp from pair 0.5 to pair 4.8 of 8: some kept, some blended, some slowed down.
    yarn=YarnConfig(factor=8.0, original_context=16, beta_fast=2.0, beta_slow=0.25),
    ffn="clamped_swiglu",
    swiglu_limit=2.5,
    moe=MoEConfig(n_experts=5, n_active=3, router_bias=True),
    sinks=True,
    sliding_window=7,
    layer_pattern="SF",
    tied=False,
    dtype="float32",
    expert_dtype="float32",
)

# Rows that can be cut into MXFP4 blocks of 32.
GPT_OSS_MXFP4 = GPT_OSS.but(d_model=64, d_ff=32, expert_dtype="mxfp4")

QWEN3 = ModelConfig(
    vocab_size=83,
    d_model=28,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    head_dim=10,
    d_ff=18,
    context=64,
    norm="rmsnorm_cast_first",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=70.0,
    ffn="swiglu",
    moe=MoEConfig(n_experts=7, n_active=3),
    attn_bias=False,
    ffn_bias=False,
    qk_norm=True,
    tied=False,
    dtype="float32",
    expert_dtype="float32",
)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def tokens(config: ModelConfig, batch: int, length: int, seed: int = 0) -> Tensor:
    """Draw a batch of token ids."""
    return torch.randint(config.vocab_size, (batch, length), generator=seeded(seed))


def randomise(model: Transformer, seed: int = 0) -> Transformer:
    """Draw every parameter anew, none at a value that hides it."""
    generator = seeded(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (_centre(name) + _scale(name, parameter, model.config) * noise).to(
            parameter.dtype
        )
    return model.eval()


def _centre(name: str) -> float:
    return 1.0 if "norm" in name and name.endswith("weight") else 0.0


def _scale(name: str, parameter: Tensor, config: ModelConfig) -> float:
    if "norm" in name:
        return 0.3
    if name.endswith("sinks"):
        return 1.5
    if name.endswith("bias"):
        return 0.5
    if name == "embed.weight":
        return 0.03  # small, so that the norm's eps counts
    if name == "positions.weight":
        return 0.02
    # up: so large that the clamp bites (a product without one gets long tails, and rounding errors
    # with it); router: so that its choice is clear
    up = 1.0 if config.ffn == "swiglu" else 1.6
    gains = {"up.weight": up, "down.weight": 0.6, "router.weight": 2.0}
    gain = next((g for end, g in gains.items() if name.endswith(end)), 1.0)
    return gain / math.sqrt(parameter.shape[-1])


def hostile(config: ModelConfig, seed: int = 0) -> Transformer:
    """Build a model with random weights whose logits have standard deviation 1."""
    model = randomise(Transformer(config), seed)
    with torch.no_grad():
        spread = model(tokens(config, 1, 40, seed=99)).std()
        # A tied table stays small, for the norm's eps to count, and the final norm makes up.
        for parameter in model.norm.parameters() if config.tied else [model.unembed.weight]:
            parameter.data /= spread
    return model


def packed(model: Transformer) -> Transformer:
    """Replace a model's expert matrices by MXFP4 ones, made from its weights."""
    for block in model.blocks:
        for name in ("up", "down"):
            dense = getattr(block.ffn, name)
            blocks, scales = mxfp4.quantize(dense.weight.detach())
            bias = None if dense.bias is None else dense.bias.detach()
            setattr(block.ffn, name, mxfp4.PackedExpertLinear(blocks, scales, bias))
    return model
