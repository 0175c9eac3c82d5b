import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptoss_lite import ModelConfig, MoEConfig, mxfp4, trace
from gptoss_lite.ffn import FeedForward, activation
from gptoss_lite.moe import ExpertLinear, MixtureOfExperts, apply_experts, route
from tests.hostile import (
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    hostile,
    seeded,
    tokens,
    without_type_checks,
)

pytestmark = pytest.mark.usefixtures("plain")  # the specification


def random_experts(config: ModelConfig, seed: int = 0) -> MixtureOfExperts:
    part = MixtureOfExperts(config)
    generator = seeded(seed)
    for parameter in part.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return part


# --- the loops -----------------------------------------------------------------------------------


def route_by_hand(logits: list[float], n_active: int) -> dict[int, float]:
    """Return the weight of each chosen expert of one token."""
    chosen = sorted(range(len(logits)), key=lambda e: -logits[e])[:n_active]
    total = sum(math.exp(logits[e] - logits[chosen[0]]) for e in chosen)
    return {e: math.exp(logits[e] - logits[chosen[0]]) / total for e in chosen}


def moe_by_hand(part: MixtureOfExperts, x: list[float], config: ModelConfig) -> list[float]:
    """Send one token through its experts, one number at a time."""

    def linear(matrix: list, bias: list | None, row: list[float]) -> list[float]:
        bias = bias or [0.0] * len(matrix)
        return [
            sum(w * v for w, v in zip(weights, row, strict=True)) + b
            for weights, b in zip(matrix, bias, strict=True)
        ]

    def act(gate: float, up: float) -> float:
        if config.ffn == "swiglu":
            return gate / (1 + math.exp(-gate)) * up
        limit = config.swiglu_limit
        gate, up = min(gate, limit), max(-limit, min(up, limit))
        return gate / (1 + math.exp(-config.swiglu_alpha * gate)) * (up + 1)

    def lists(tensor: Tensor | None) -> list | None:
        return None if tensor is None else tensor.tolist()

    router_bias = lists(part.router.bias)
    logits = linear(part.router.weight.tolist(), router_bias, x)
    out = [0.0] * config.d_model
    for expert, weight in route_by_hand(logits, config.moe.n_active).items():
        up_bias = None if part.up.bias is None else part.up.bias[expert].tolist()
        down_bias = None if part.down.bias is None else part.down.bias[expert].tolist()
        both = linear(part.up.weight[expert].tolist(), up_bias, x)
        hidden = [act(both[i], both[i + config.d_ff]) for i in range(config.d_ff)]
        for i, value in enumerate(linear(part.down.weight[expert].tolist(), down_bias, hidden)):
            out[i] += weight * value
    return out


SMALL = {"d_model": 7, "d_ff": 4}
CASES = {
    "gpt-oss": GPT_OSS.but(**SMALL),
    "qwen3": QWEN3.but(**SMALL),
    "top 1": GPT_OSS.but(**SMALL, moe=MoEConfig(5, 1, router_bias=True)),
    "all": GPT_OSS.but(**SMALL, moe=MoEConfig(5, 5, router_bias=True)),
    "no biases": GPT_OSS.but(**SMALL, moe=MoEConfig(6, 2), ffn_bias=False),
}


@pytest.mark.parametrize("case", CASES)
def test_experts_equal_the_loop(case: str) -> None:
    config = CASES[case]
    part = random_experts(config)
    x = 2 * torch.randn(2, 5, config.d_model, generator=seeded(1))
    expected = [[moe_by_hand(part, row, config) for row in sequence] for sequence in x.tolist()]
    with torch.no_grad():
        torch.testing.assert_close(part(x), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@given(
    seed=st.integers(0, 999), n_experts=st.integers(1, 8), size=st.sampled_from([0.1, 3.0, 50.0])
)
def test_route_equals_the_loop(seed: int, n_experts: int, size: float) -> None:
    logits = size * torch.randn(6, n_experts, generator=seeded(seed))
    for n_active in range(1, n_experts + 1):
        weights, ids = route(logits, n_active)
        assert weights.dtype == torch.float32
        for row, w, chosen in zip(logits.tolist(), weights.tolist(), ids.tolist(), strict=True):
            expected = route_by_hand(row, n_active)
            assert chosen == list(expected)  # the largest first
            assert w == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-30)


# --- laws ----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), n_active=st.integers(1, 6), shift=st.floats(-50, 50))
def test_the_two_ways_to_weight_experts_agree(seed: int, n_active: int, shift: float) -> None:
    """Softmax of the chosen logits (gpt-oss) = softmax of all, kept and renormalised (Qwen3)."""
    logits = 3 * torch.randn(5, 6, generator=seeded(seed))
    weights, ids = route(logits + shift, n_active)
    kept = logits.softmax(-1).gather(1, ids)
    torch.testing.assert_close(weights, kept / kept.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))


@given(seed=st.integers(0, 999), order=st.permutations(range(5)))
def test_permuting_experts_with_their_router_rows_changes_nothing(
    seed: int, order: list[int]
) -> None:
    part = random_experts(GPT_OSS, seed)
    x = torch.randn(2, 6, GPT_OSS.d_model, generator=seeded(seed + 1))
    with torch.no_grad():
        before = part(x)
        for parameter in part.parameters():
            parameter.data = parameter.data[order]
        torch.testing.assert_close(part(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ffn", ["gelu", "swiglu", "clamped_swiglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_one_expert_is_the_dense_network(ffn: str, bias: bool) -> None:
    config = GPT_OSS.but(ffn=ffn, ffn_bias=bias, moe=MoEConfig(1, 1, router_bias=True))
    part, dense = random_experts(config), FeedForward(config.but(moe=None))
    for name in ("up", "down"):
        getattr(dense, name).weight.data = getattr(part, name).weight.data[0]
        if bias:
            getattr(dense, name).bias.data = getattr(part, name).bias.data[0]
    x = torch.randn(2, 6, config.d_model, generator=seeded(1))
    with torch.no_grad():
        torch.testing.assert_close(part(x), dense(x), rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 999))
def test_tokens_do_not_see_each_other(seed: int) -> None:
    """One token's answer is the same alone, in any company and in any place."""
    part = random_experts(GPT_OSS)
    x = torch.randn(3, 4, GPT_OSS.d_model, generator=seeded(seed))
    with torch.no_grad():
        together = part(x)
        for b in range(3):
            for t in range(4):
                alone = part(x[b, t].view(1, 1, -1))[0, 0]
                torch.testing.assert_close(alone, together[b, t], rtol=1e-5, atol=1e-5)


def test_equal_experts_are_one_expert() -> None:
    """The weights sum to 1, biases included."""
    part = random_experts(GPT_OSS)
    for layer in (part.up, part.down):
        layer.weight.data[:] = layer.weight.data[0].clone()
        layer.bias.data[:] = layer.bias.data[0].clone()
    x = torch.randn(1, 6, GPT_OSS.d_model, generator=seeded(1))
    act, _ = activation(GPT_OSS)
    with torch.no_grad():
        hidden = act(F.linear(x, part.up.weight[0], part.up.bias[0]))
        expected = F.linear(hidden, part.down.weight[0], part.down.bias[0])
        torch.testing.assert_close(part(x), expected, rtol=1e-5, atol=1e-5)


def test_experts_that_nobody_chose_are_not_touched() -> None:
    """NaN weights of an unused expert must not reach the answer."""
    part = random_experts(GPT_OSS)
    part.router.bias.data[4] = -1e4
    part.up.weight.data[4], part.down.bias.data[4] = torch.nan, torch.nan
    with torch.no_grad():
        assert part(torch.randn(2, 6, GPT_OSS.d_model, generator=seeded(1))).isfinite().all()


def test_a_bfloat16_model_adds_the_answers_up_in_float32() -> None:
    part = random_experts(GPT_OSS).bfloat16()
    x = torch.randn(30, GPT_OSS.d_model, generator=seeded(1)).bfloat16()
    with torch.no_grad():
        weights, ids = route(part.router(x), 3)
        assert weights.dtype == torch.float32
        got = apply_experts(x, weights, ids, part.up, part.down, part.activation)
        assert got.dtype == torch.bfloat16
        expected = torch.zeros(30, GPT_OSS.d_model)
        for n in range(30):
            for a in sorted(range(3), key=lambda a, n=n: ids[n, a]):
                e = ids[n, a]
                # the same rows at once, for the same rounding inside a matrix product
                rows = (ids == e).any(1)
                place = rows[:n].sum()
                hidden = part.activation(F.linear(x[rows], part.up.weight[e], part.up.bias[e]))
                answer = F.linear(hidden, part.down.weight[e], part.down.bias[e])
                expected[n] += weights[n, a] * answer[place].float()
    assert torch.equal(got, expected.bfloat16())


def test_router_taps_are_recorded_before_and_after_the_choice() -> None:
    model = hostile(GPT_OSS)
    with torch.no_grad(), trace(model, "router_logits", "expert_ids", "expert_weights") as seen:
        model(tokens(GPT_OSS, 2, 9))
    for layer in range(4):
        logits, ids, weights = (
            seen[f"blocks.{layer}.ffn.{name}"]
            for name in ("router_logits", "expert_ids", "expert_weights")
        )
        assert (logits.shape, ids.shape, weights.shape) == ((18, 5), (18, 3), (18, 3))
        again_weights, again_ids = route(logits, 3)
        assert torch.equal(ids, again_ids)
        assert torch.equal(weights, again_weights)


# --- packed experts ------------------------------------------------------------------------------


def packed_and_dense(
    config: ModelConfig, dtype: torch.dtype
) -> tuple[MixtureOfExperts, MixtureOfExperts]:
    """Return the same experts twice: as MXFP4 bytes, and decoded."""
    packed, dense = random_experts(config).to(dtype), random_experts(config).to(dtype)
    for name in ("up", "down"):
        layer: ExpertLinear = getattr(dense, name)
        blocks, scales = mxfp4.quantize(layer.weight.data)
        setattr(packed, name, mxfp4.PackedExpertLinear(blocks, scales, layer.bias.data))
        layer.weight.data = mxfp4.dequantize(blocks, scales, dtype)
    return packed, dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_experts_equal_dense_ones_exactly(dtype: torch.dtype) -> None:
    packed, dense = packed_and_dense(GPT_OSS_MXFP4, dtype)
    x = torch.randn(2, 9, GPT_OSS_MXFP4.d_model, generator=seeded(1)).to(dtype)
    with torch.no_grad():
        assert torch.equal(packed(x), dense(x))


def test_packed_rows_split_in_two_are_gate_then_up() -> None:
    """gpt-oss's files hold gate and up rows in turn; a strided view puts them in halves."""
    packed, _ = packed_and_dense(GPT_OSS_MXFP4, torch.float32)
    e, rows, groups, _ = packed.up.blocks.shape
    blocks = packed.up.blocks.view(e, 2, rows // 2, groups, 16)
    scales = packed.up.scales.view(e, 2, rows // 2, groups)
    in_turn = blocks.transpose(1, 2).contiguous(), scales.transpose(1, 2).contiguous()
    view = mxfp4.PackedExpertLinear(
        in_turn[0].transpose(1, 2), in_turn[1].transpose(1, 2), packed.up.bias.data
    )
    assert view.blocks.data_ptr() == in_turn[0].data_ptr()
    for expert, matrix in enumerate(packed.up.matrices(torch.float32)):
        assert torch.equal(view.matrices(torch.float32)[expert], matrix)
    x = torch.randn(2, 9, GPT_OSS_MXFP4.d_model, generator=seeded(1))
    with torch.no_grad():
        before = packed(x)
        packed.up = view
        assert torch.equal(packed(x), before)


def test_packed_experts_hold_bytes_and_decode_one_matrix_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20b's experts are 12 GB packed and 38 GB decoded: only one matrix may exist at once."""
    packed, _ = packed_and_dense(GPT_OSS_MXFP4, torch.float32)
    c = GPT_OSS_MXFP4
    for layer in (packed.up, packed.down):
        held = dict(layer.named_buffers()) | dict(layer.named_parameters())
        assert {name: x.dtype for name, x in held.items()} == {
            "blocks": torch.uint8,
            "scales": torch.uint8,
            "bias": torch.float32,
        }
        weights = 2 * layer.blocks.numel()
        assert layer.blocks.nbytes + layer.scales.nbytes == weights * 4.25 / 8

    right, alive, sizes, peak = mxfp4.dequantize, set(), [], 0

    def watched(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        nonlocal peak
        dense = right(blocks, scales, dtype)
        storage = dense.untyped_storage()
        alive.add(key := len(sizes))
        sizes.append(dense.numel())
        weakref.finalize(storage, alive.discard, key)
        peak = max(peak, sum(sizes[k] for k in alive))
        return dense

    monkeypatch.setattr(mxfp4, "dequantize", watched)
    with torch.no_grad(), without_type_checks():  # which would look at an expert too
        packed(torch.randn(2, 9, c.d_model, generator=seeded(1)))
    one_up, one_down = 2 * c.d_ff * c.d_model, c.d_ff * c.d_model
    assert set(sizes) == {one_up, one_down}
    assert len(sizes) == 2 * c.moe.n_experts
    assert peak <= one_up + one_down


def test_only_chosen_experts_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decoded token of 20b reads 4 experts of 32."""
    packed, _ = packed_and_dense(GPT_OSS_MXFP4, torch.float32)
    right, calls = mxfp4.dequantize, []

    def counted(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        calls.append(blocks.shape)
        return right(blocks, scales, dtype)

    monkeypatch.setattr(mxfp4, "dequantize", counted)
    with torch.no_grad(), without_type_checks():
        packed(torch.randn(1, 1, GPT_OSS_MXFP4.d_model, generator=seeded(1)))
    assert len(calls) == 2 * GPT_OSS_MXFP4.moe.n_active
