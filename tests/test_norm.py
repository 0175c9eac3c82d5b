import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptoss_lite.norm import NORMS, RMSNorm
from tests.hostile import seeded

CENTRED = {"layernorm": True, "rmsnorm": False, "rmsnorm_cast_first": False}


def by_hand(
    row: list[float], weight: list[float], bias: list[float], eps: float, centred: bool
) -> list[float]:
    """Normalise one row, one number at a time."""
    mean = sum(row) / len(row) if centred else 0.0
    square = sum((x - mean) ** 2 for x in row) / len(row)
    return [
        (x - mean) / math.sqrt(square + eps) * w + b
        for x, w, b in zip(row, weight, bias, strict=True)
    ]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("size_of_x", [1e-4, 1e-2, 1.0, 300.0])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.5])
def test_norm_equals_the_loop(name: str, size_of_x: float, eps: float) -> None:
    """Small inputs see eps, large ones the division."""
    generator = seeded(1)
    norm = NORMS[name](7, eps)
    for parameter in norm.parameters():
        parameter.data = torch.randn(7, generator=generator)
    x = size_of_x * (torch.randn(2, 3, 7, generator=generator) + 0.5)
    weight = norm.weight.tolist()
    bias = norm.bias.tolist() if CENTRED[name] else [0.0] * 7
    expected = [
        [by_hand(row, weight, bias, eps, CENTRED[name]) for row in plane] for plane in x.tolist()
    ]
    torch.testing.assert_close(norm(x), torch.tensor(expected), rtol=2e-6, atol=2e-6)


def test_rms_norm_multiplies_by_the_scale_before_the_cast_and_qwen_after() -> None:
    """In bfloat16 the two round at different places; in float32 they are one function."""
    generator = seeded(2)
    x, weight = torch.randn(50, 8, generator=generator), torch.randn(8, generator=generator)
    last, first = RMSNorm(8, 1e-5), RMSNorm(8, 1e-5, cast_first=True)
    last.weight.data, first.weight.data = weight.bfloat16(), weight.bfloat16()
    low = x.bfloat16()
    wide = low.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(last(low), (unit * weight.bfloat16().float()).bfloat16())
    assert torch.equal(first(low), unit.bfloat16() * weight.bfloat16())
    assert not torch.equal(last(low), first(low))
    last.weight.data, first.weight.data = weight, weight
    assert torch.equal(last(x), first(x))


@pytest.mark.parametrize("cast_first", [False, True])
def test_rms_norm_computes_in_float32_whatever_comes_in(cast_first: bool) -> None:
    """300 squared is past float16's largest number, 65,504."""
    norm = RMSNorm(4, 1e-5, cast_first).half()
    x = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert norm(x).dtype == torch.float16
    assert norm(x).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("name", NORMS)
def test_a_row_of_zeros_stays_finite(name: str) -> None:
    assert NORMS[name](5, 1e-5)(torch.zeros(2, 5)).tolist() == [[0.0] * 5] * 2


@given(power=st.integers(-6, 6), seed=st.integers(0, 99))
def test_without_eps_the_size_of_the_input_does_not_matter(power: int, seed: int) -> None:
    norm = RMSNorm(9, eps=0.0)
    x = torch.randn(3, 9, generator=seeded(seed))
    assert torch.equal(norm(x), norm(x * 4.0**power))
