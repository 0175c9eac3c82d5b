import math

import pytest
import torch
from torch import Tensor

from gptoss_lite.ffn import FeedForward, activation, clamped_swiglu, gelu, swiglu
from tests.hostile import GPT2, GPT_OSS, seeded

# (gate, up): gate * sigmoid(1.702 * gate) * (up + 1), gate cut at 7, up at -7 and 7
KNOWN = {
    (1, 1): 1.6915915318656425,
    (8, -9): -41.99971876981991,
    (-8, 0.5): -1.4649643298595572e-05,
    (0.5, 10): 2.803107492851041,
    (7, 7): 55.99962502642654,
    (-1, -1): 0.0,
    (-20, 3): -1.3e-13,
}


@pytest.mark.parametrize(("gate", "up"), KNOWN)
def test_clamped_swiglu_has_the_known_values(gate: float, up: float) -> None:
    got = clamped_swiglu(torch.tensor([gate, up], dtype=torch.float64)).item()
    expected = KNOWN[gate, up]
    assert got == pytest.approx(expected, rel=1e-12 if abs(expected) > 1e-9 else 0.05, abs=1e-300)


def test_clamped_swiglu_does_not_cut_the_gate_from_below() -> None:
    """Logits hardly see it: at -7 the gate lets 5e-5 through, at -20 nothing."""
    at_7, at_20 = (clamped_swiglu(torch.tensor([g, 1.0], dtype=torch.float64)) for g in (-7, -20))
    assert abs(at_20) < 1e-3 * abs(at_7)


def by_hand(gate: float, up: float, alpha: float, limit: float) -> float:
    gate, up = min(gate, limit), max(-limit, min(up, limit))
    return gate / (1 + math.exp(-alpha * gate)) * (up + 1)


@pytest.mark.parametrize(("alpha", "limit"), [(1.702, 7.0), (1.0, 7.0), (2.3, 0.9)])
def test_clamped_swiglu_equals_the_loop(alpha: float, limit: float) -> None:
    """Rows are [gate | up]: the first half gates the second."""
    x = 4 * torch.randn(3, 5, 10, generator=seeded(1))
    expected = [
        [[by_hand(row[i], row[i + 5], alpha, limit) for i in range(5)] for row in plane]
        for plane in x.tolist()
    ]
    torch.testing.assert_close(
        clamped_swiglu(x, alpha, limit), torch.tensor(expected), rtol=2e-6, atol=2e-6
    )


def test_swiglu_equals_the_loop() -> None:
    x = 3 * torch.randn(4, 6, generator=seeded(2))
    expected = [
        [row[i] / (1 + math.exp(-row[i])) * row[i + 3] for i in range(3)] for row in x.tolist()
    ]
    torch.testing.assert_close(swiglu(x), torch.tensor(expected), rtol=2e-6, atol=1e-6)


def test_gelu_is_the_tanh_form() -> None:
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    root = math.sqrt(2 / math.pi)
    tanh = [0.5 * v * (1 + math.tanh(root * (v + 0.044715 * v**3))) for v in x.tolist()]
    erf = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    torch.testing.assert_close(gelu(x), torch.tensor(tanh, dtype=torch.float64))
    largest = (gelu(x) - torch.tensor(erf, dtype=torch.float64)).abs().max()
    assert 4e-4 < largest < 5e-4


@pytest.mark.parametrize(("ffn", "n_in"), [("gelu", 1), ("swiglu", 2), ("clamped_swiglu", 2)])
def test_activation_follows_the_config(ffn: str, n_in: int) -> None:
    config = GPT_OSS.but(ffn=ffn, moe=None, swiglu_alpha=0.7, swiglu_limit=0.4)
    act, n_halves = activation(config)
    assert n_halves == n_in
    x = torch.randn(3, 2 * n_in, generator=seeded(3))
    expected: dict[str, Tensor] = {
        "gelu": gelu(x),
        "swiglu": swiglu(x) if n_in == 2 else x,
        "clamped_swiglu": clamped_swiglu(x, 0.7, 0.4) if n_in == 2 else x,
    }
    assert torch.equal(act(x), expected[ffn])


@pytest.mark.parametrize("ffn", ["gelu", "swiglu", "clamped_swiglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_is_up_activation_down(ffn: str, bias: bool) -> None:
    config = GPT2.but(ffn=ffn, ffn_bias=bias)
    part = FeedForward(config)
    for parameter in part.parameters():
        parameter.data = torch.randn(parameter.shape, generator=seeded(parameter.numel()))
    x = torch.randn(2, 3, 30, generator=seeded(4))
    act, n_in = activation(config)
    assert part.up.weight.shape == (n_in * 44, 30)
    up = x @ part.up.weight.T + (part.up.bias if bias else 0)
    expected = act(up) @ part.down.weight.T + (part.down.bias if bias else 0)
    torch.testing.assert_close(part(x), expected, rtol=1e-5, atol=1e-4)
    assert (part.up.bias is None) == (part.down.bias is None) == (not bias)
