"""Other ways of attention give the plain numbers, and less rounding in bfloat16."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptoss_lite import trace, use_backend
from gptoss_lite.attention import attend
from gptoss_lite.cache import KVCache
from gptoss_lite.kernels import grouped, sdpa
from tests.hostile import GPT_OSS, QWEN3, hostile, seeded, tokens


@pytest.fixture
def forced() -> Iterator[None]:
    use_backend("grouped")
    yield
    use_backend("auto")


def inputs(
    seed: int, heads: tuple[int, int], sizes: tuple[int, int], batch: int = 2, width: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw q, k, v and sinks; keys and values are views into longer buffers, as a cache's are."""
    (n_heads, n_kv_heads), (n_queries, n_keys) = heads, sizes
    generator = seeded(seed)
    q = 2 * torch.randn(batch, n_heads, n_queries, width, generator=generator)
    k, v = torch.randn(2, batch, n_kv_heads, n_keys + 5, width, generator=generator)[..., 5:, :]
    return q, k, v, 2 * torch.randn(n_heads, generator=generator)


@given(
    seed=st.integers(0, 999),
    heads=st.sampled_from([(6, 2), (6, 6), (5, 1), (12, 3)]),
    sizes=st.sampled_from([(1, 1), (1, 23), (3, 23), (4, 4), (7, 19)]),
    window=st.sampled_from([None, 1, 4, 23, 50]),
    has_sinks=st.booleans(),
    backend=st.sampled_from(["grouped", "sdpa"]),
)
def test_they_equal_plain(
    backend: str,
    seed: int,
    heads: tuple[int, int],
    sizes: tuple[int, int],
    window: int | None,
    has_sinks: bool,
) -> None:
    """float32 sums of at most 23 terms, in another order."""
    q, k, v, sinks = inputs(seed, heads, sizes)
    call = q, k, v, sinks if has_sinks else None, window
    use_backend(backend)
    try:
        got = attend(*call)
    finally:
        use_backend("auto")
    torch.testing.assert_close(got, attend.plain(*call), rtol=1e-5, atol=1e-5)


def test_bfloat16_comes_closer_than_plain(forced: None) -> None:
    """One rounding, at the end: within half a unit of the last place of the float64 answer."""
    q, k, v, sinks = (t.bfloat16() for t in inputs(1, (6, 2), (1, 40)))
    exact = attend.plain(q.double(), k.double(), v.double(), sinks, 17)
    ours, plain = (f(q, k, v, sinks, 17) for f in (attend, attend.plain))
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all()
    assert (ours.double() - exact).norm() < 0.8 * (plain.double() - exact).norm()


@pytest.mark.parametrize("window", [None, 17])
def test_a_prompt_of_bfloat16_is_no_worse_than_plain(window: int | None) -> None:
    """A sink is as exact as a score: a width whose root is no power of two rounds it."""
    q, k, v, sinks = (t.bfloat16() for t in inputs(1, (6, 2), (40, 40), width=24))
    sinks = 3 + sinks
    exact = attend.plain(q.double(), k.double(), v.double(), sinks, window)
    ours = sdpa.attend_sdpa(q, k, v, sinks, window)
    plain = attend.plain(q, k, v, sinks, window)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() < 1.05 * (plain.double() - exact).norm()


def test_the_c_version_is_asked_first() -> None:
    """The order of registration is the order of trying."""
    assert next(iter(attend.fast)) == "native"


def test_a_trace_and_dropout_get_another_way() -> None:
    q, k, v, sinks = inputs(0, (16, 8), (5, 9), width=64)
    assert sdpa.too_small(q, k, v, sinks, None) is None
    assert sdpa.too_small(q[:, :, :4], k, v, sinks, None) == "4 queries leave nothing to fuse"
    assert sdpa.why_not(q, k, v, sinks, None, 0.1) == "it drops nothing"
    with trace(hostile(GPT_OSS), "probs"):
        assert sdpa.why_not(q, k, v, sinks, None) == (
            "a trace asks for attention weights, which it never writes down"
        )


@pytest.mark.parametrize("config", [GPT_OSS, QWEN3], ids=["gpt-oss", "qwen3"])
def test_traces_see_the_same_numbers_step_by_step(config, monkeypatch) -> None:
    monkeypatch.setattr(grouped, "WIDE", 0)  # under "auto", for one token at a time
    model, ids = hostile(config), tokens(config, 2, 30)
    seen = []
    for backend in ("plain", "auto"):
        use_backend(backend)
        try:
            cache = KVCache(config)
            with torch.no_grad(), trace(model, "probs", "sink_mass", "resid") as t:
                model(ids[:, :25], cache)
                for i in range(25, 30):
                    model(ids[:, i : i + 1], cache)
        finally:
            use_backend("auto")
        seen.append({(key, i): x for key in t.keys() for i, x in enumerate(t.steps(key))})  # noqa: SIM118
    assert seen[0].keys() == seen[1].keys()
    for key, plain in seen[0].items():
        torch.testing.assert_close(seen[1][key], plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["grouped", "sdpa"])
def test_gradients_pass_through(forced: None, backend: str) -> None:
    use_backend(backend)
    q, k, v, sinks = (t.requires_grad_() for t in inputs(3, (6, 2), (3, 12)))
    wrt = q, sinks
    ours = torch.autograd.grad(attend(q, k, v, sinks, 5).square().sum(), wrt)
    plain = torch.autograd.grad(attend.plain(q, k, v, sinks, 5).square().sum(), wrt)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_when_it_steps_aside() -> None:
    q, k, v, sinks = inputs(0, (6, 2), (1, 9))
    assert grouped.too_small(q, k, v, sinks, None) == (
        "a key has 20 numbers, and below 512 is no gain"
    )
    q, k, v, sinks = inputs(0, (16, 8), (5, 9), width=64)
    assert grouped.too_small(q, k, v, sinks, None) == (
        "5 queries at once are better left in 16 bits"
    )
    assert grouped.too_small(q[:, :, :1], k, v, sinks, None) is None
    assert grouped.why_not(q.to("meta"), k, v, sinks, None) == (
        "q is on meta, and this is for the CPU"
    )
