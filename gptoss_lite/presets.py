"""The published models as configurations, and the bundled one."""

from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig


def _gpt2(n_layers: int, n_heads: int, d_model: int) -> ModelConfig:
    """GPT-2 of one size; Radford et al. 2019, table 2, with the sizes of the published files."""
    return ModelConfig(
        vocab_size=50_257,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=4 * d_model,
        context=1_024,
        dropout=0.1,
        dtype="float32",
        expert_dtype="float32",
    )


def _gpt_oss(n_layers: int, n_experts: int) -> ModelConfig:
    """gpt-oss of one size; the two differ in these two numbers only (model card, table 1)."""
    return ModelConfig(
        vocab_size=201_088,
        d_model=2_880,
        n_layers=n_layers,
        n_heads=64,
        n_kv_heads=8,
        head_dim=64,
        d_ff=2_880,
        context=131_072,
        norm="rmsnorm",
        positions="rope",
        rope_theta=150_000.0,
        yarn=YarnConfig(factor=32.0, original_context=4_096),
        ffn="clamped_swiglu",
        moe=MoEConfig(n_experts=n_experts, n_active=4, router_bias=True),
        sinks=True,
        sliding_window=128,
        layer_pattern="SF",
        tied=False,
        expert_dtype="mxfp4",
    )


GPT_OSS_20B = _gpt_oss(n_layers=24, n_experts=32)
GPT_OSS_120B = _gpt_oss(n_layers=36, n_experts=128)

QWEN3_30B_A3B = ModelConfig(
    vocab_size=151_936,
    d_model=2_048,
    n_layers=48,
    n_heads=32,
    n_kv_heads=4,
    head_dim=128,
    d_ff=768,
    context=40_960,
    norm="rmsnorm_cast_first",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=1_000_000.0,
    ffn="swiglu",
    moe=MoEConfig(n_experts=128, n_active=8),
    attn_bias=False,
    ffn_bias=False,
    qk_norm=True,
    tied=False,
)

# The bundled model: gpt-oss's switches, at a size that trains on a laptop.
GPT_OSS_NANO = GPT_OSS_20B.but(
    vocab_size=2_048,
    d_model=128,
    n_layers=4,
    n_heads=8,
    n_kv_heads=2,
    head_dim=32,
    d_ff=128,
    context=1_024,
    yarn=YarnConfig(factor=4.0, original_context=256),
    sliding_window=32,
)

PRESETS = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1_024),
    "gpt2-large": _gpt2(36, 20, 1_280),
    "gpt2-xl": _gpt2(48, 25, 1_600),
    "gpt-oss-20b": GPT_OSS_20B,
    "gpt-oss-120b": GPT_OSS_120B,
    "qwen3-30b-a3b": QWEN3_30B_A3B,
    "gpt-oss-nano": GPT_OSS_NANO,
}
