import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptoss_lite import Transformer, trace
from gptoss_lite.attention import Attention, attend, visible
from gptoss_lite.errors import ShapeError
from tests.hostile import GPT2, GPT_OSS, QWEN3, hostile, seeded, tokens

pytestmark = pytest.mark.usefixtures("plain")  # the specification


def attend_by_hand(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Attend one query at a time, in float64; return the mix and the weights."""
    (batch, n_heads, n_queries, width), (_, n_kv_heads, n_keys, _) = q.shape, k.shape
    mixed = torch.zeros(batch, n_heads, n_queries, width, dtype=torch.float64)
    probs = torch.zeros(batch, n_heads, n_queries, n_keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            kv = h // (n_heads // n_kv_heads)
            keys, values = k[b, kv].tolist(), v[b, kv].tolist()
            for t in range(n_queries):
                query, here = q[b, h, t].tolist(), n_keys - n_queries + t
                weight = {}
                for s in range(n_keys):
                    if s <= here and (window is None or here - s < window):
                        score = sum(x * y for x, y in zip(query, keys[s], strict=True))
                        weight[s] = math.exp(score / math.sqrt(width))
                empty = 0.0 if sinks is None else math.exp(sinks[h].item())
                total = empty + sum(weight.values())
                for s, w in weight.items():
                    probs[b, h, t, s] = w / total
                    for i in range(width):
                        mixed[b, h, t, i] += w / total * values[s][i]
    return mixed, probs


def random_qkv(
    seed: int, batch: int, heads: tuple[int, int], lengths: tuple[int, int], width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, k, v and sinks; heads are (query, kv), lengths (queries, keys)."""
    generator = seeded(seed)
    q = torch.randn(batch, heads[0], lengths[0], width, generator=generator)
    k = torch.randn(batch, heads[1], lengths[1], width, generator=generator)
    v = torch.randn(batch, heads[1], lengths[1], width, generator=generator)
    return q, k, v, torch.randn(heads[0], generator=generator)


# --- the mask ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_queries", [1, 2, 5, 9])
@pytest.mark.parametrize("past", [0, 1, 6])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 9, 99])
def test_visible_equals_the_loop(n_queries: int, past: int, window: int | None) -> None:
    n_keys = n_queries + past
    expected = [
        [s <= t and (window is None or t - s < window) for s in range(n_keys)]
        for t in range(past, n_keys)
    ]
    got = visible(n_queries, n_keys, window)
    assert got.dtype == torch.bool
    assert got.tolist() == expected


def test_the_published_window_is_the_token_and_127_before() -> None:
    row = visible(1, 300, 128)[0]
    assert row.sum() == 128
    assert row[172:].all()
    assert not row[171]


def test_fewer_keys_than_queries_are_refused() -> None:
    with pytest.raises(ShapeError) as problem:
        visible(5, 3)
    assert str(problem.value) == (
        "5 queries need at least as many keys, got 3: each token reads itself. "
        "Append the new keys to the cache before attending."
    )


# --- attend --------------------------------------------------------------------------------------

SHAPES = {
    "grouped": (2, (6, 2), (13, 13), 10),
    "one kv head": (1, (3, 1), (9, 9), 4),
    "one query head a kv head": (2, (4, 4), (7, 7), 6),
    "cached step": (3, (6, 2), (1, 13), 10),
    "cached chunk": (2, (6, 3), (5, 13), 8),
    "one token": (2, (6, 2), (1, 1), 4),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 1, 4, 13])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_attend_equals_the_loop(shape: str, window: int | None, with_sinks: bool) -> None:
    q, k, v, sinks = random_qkv(1, *SHAPES[shape])
    sinks = sinks if with_sinks else None
    expected, expected_probs = attend_by_hand(q, k, v, sinks, window)
    with trace(Transformer(GPT2), "probs", "sink_mass") as seen:
        got = attend(q, k, v, sinks, window)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen["probs"].double(), expected_probs, rtol=1e-5, atol=1e-6)
    if with_sinks:
        mass = 1 - expected_probs.sum(-1)
        torch.testing.assert_close(seen["sink_mass"].double(), mass, rtol=1e-4, atol=1e-6)
    else:
        assert seen.keys() == ["probs"]


@given(
    seed=st.integers(0, 999),
    groups=st.integers(1, 4),
    n_kv_heads=st.integers(1, 3),
    n_queries=st.integers(1, 9),
    past=st.integers(0, 9),
    window=st.none() | st.integers(1, 12),
)
def test_weights_and_sink_mass_sum_to_one(
    seed: int, groups: int, n_kv_heads: int, n_queries: int, past: int, window: int | None
) -> None:
    heads = (groups * n_kv_heads, n_kv_heads)
    q, k, v, sinks = random_qkv(seed, 2, heads, (n_queries, n_queries + past), 6)
    with trace(Transformer(GPT2), "probs", "sink_mass") as seen:
        attend(q, k, v, sinks, window)
    total = seen["probs"].sum(-1) + seen["sink_mass"]
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (seen["sink_mass"] > 0).all()
    hidden = ~visible(n_queries, n_queries + past, window)
    assert (seen["probs"].masked_select(hidden) == 0).all()


@given(
    seed=st.integers(0, 999),
    groups=st.integers(1, 4),
    n_kv_heads=st.integers(1, 3),
    window=st.none() | st.integers(1, 12),
    with_sinks=st.booleans(),
)
def test_grouped_heads_are_ordinary_heads_with_repeated_keys(
    seed: int, groups: int, n_kv_heads: int, window: int | None, with_sinks: bool
) -> None:
    q, k, v, sinks = random_qkv(seed, 2, (groups * n_kv_heads, n_kv_heads), (7, 9), 6)
    sinks = sinks if with_sinks else None
    many = attend(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), sinks, window)
    torch.testing.assert_close(attend(q, k, v, sinks, window), many, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 999), head=st.integers(0, 5))
def test_a_huge_sink_silences_its_head_and_no_other(seed: int, head: int) -> None:
    q, k, v, sinks = random_qkv(seed, 2, (6, 2), (5, 8), 4)
    before = attend(q, k, v, sinks, None)
    sinks[head] = 1e4
    after = attend(q, k, v, sinks, None)
    assert (after[:, head] == 0).all()
    others = [h for h in range(6) if h != head]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=1e-6, atol=1e-7)


def test_a_sink_of_minus_infinity_is_no_sink() -> None:
    q, k, v, sinks = random_qkv(5, 2, (6, 2), (5, 8), 4)
    none = attend(q, k, v, None, 3)
    torch.testing.assert_close(attend(q, k, v, torch.full_like(sinks, -torch.inf), 3), none)


def test_the_sink_is_no_score_so_the_head_width_does_not_scale_it() -> None:
    """With queries of zero every score is 0, and a sink of ln 3 beside one key takes 3 / 4."""
    for width in (2, 64):
        k = torch.randn(1, 1, 1, width, generator=seeded())
        v = torch.ones(1, 1, 1, width)
        got = attend(torch.zeros(1, 1, 1, width), k, v, torch.tensor([math.log(3.0)]), None)
        torch.testing.assert_close(got, v / 4)


@given(seed=st.integers(0, 999), at=st.integers(0, 8), window=st.none() | st.integers(1, 9))
def test_unseen_keys_change_nothing(seed: int, at: int, window: int | None) -> None:
    """Not even where they hold huge numbers: future ones, and ones outside the window."""
    q, k, v, sinks = random_qkv(seed, 1, (4, 2), (9, 9), 6)
    before = attend(q, k, v, sinks, window)
    k[:, :, at], v[:, :, at] = 1e3, -1e6
    after = attend(q, k, v, sinks, window)
    cannot_see = ~visible(9, 9, window)[:, at]
    assert torch.equal(after[:, :, cannot_see], before[:, :, cannot_see])
    assert not torch.equal(after, before)


@given(seed=st.integers(0, 999), size=st.sampled_from([30.0, 1e3, 1e18]))
def test_large_scores_do_not_overflow(seed: int, size: float) -> None:
    q, k, v, sinks = random_qkv(seed, 1, (4, 2), (6, 6), 4)
    assert attend(size * q, k, v, sinks, 3).isfinite().all()
    assert attend(q, k, v, size * sinks, None).isfinite().all()


def test_scores_and_softmax_are_float32_in_a_bfloat16_model() -> None:
    q, k, v, sinks = (x.bfloat16() for x in random_qkv(3, 2, (6, 2), (9, 9), 8))
    with trace(Transformer(GPT2), "probs") as seen:
        got = attend(q, k, v, sinks, 4)
    assert got.dtype == torch.bfloat16
    assert seen["probs"].dtype == torch.float32
    wide = (q @ k.repeat_interleave(3, 1).mT).float() / math.sqrt(8)
    wide = wide.masked_fill(~visible(9, 9, 4), -torch.inf)
    column = sinks.float().view(1, 6, 1, 1).expand(2, 6, 9, 1)
    probs = torch.cat((wide, column), -1).softmax(-1)[..., :-1]
    assert torch.equal(seen["probs"], probs)


def test_dropout_drops_weights_and_scales_the_rest() -> None:
    """With values of one, what comes out is what was kept, over 1 - p."""
    q, k, _, _ = random_qkv(4, 1, (1, 1), (1, 2_000), 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        got = attend(torch.zeros_like(q), k, torch.ones_like(k), None, None, 0.25)
    assert got[0, 0, 0, 0] == pytest.approx(1.0, abs=0.05)
    assert got[0, 0, 0, 0] != 1.0
    assert (attend(q, k, torch.ones_like(k), None, None, 0.0) - 1).abs().max() < 1e-5


# --- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [GPT2, GPT_OSS, QWEN3], ids=["gpt2", "gpt_oss", "qwen3"])
def test_modules_have_the_parts_that_the_config_names(config: object) -> None:
    part = Attention(config, 0)
    names = {name for name, _ in part.named_parameters()}
    expected = {f"{letter}.weight" for letter in "qkvo"}
    expected |= {f"{letter}.bias" for letter in "qkvo"} if config.attn_bias else set()
    expected |= {"q_norm.weight", "k_norm.weight"} if config.qk_norm else set()
    expected |= {"sinks"} if config.sinks else set()
    assert names == expected
    assert part.q.weight.shape == (config.n_heads * config.head_dim, config.d_model)
    assert part.k.weight.shape == part.v.weight.shape
    assert part.v.weight.shape == (config.n_kv_heads * config.head_dim, config.d_model)
    assert part.o.weight.shape == (config.d_model, config.n_heads * config.head_dim)


def test_even_layers_slide_in_gpt_oss() -> None:
    windows = [Attention(GPT_OSS, layer).window for layer in range(4)]
    assert windows == [7, None, 7, None]


def test_dropout_works_in_training_only() -> None:
    model = hostile(GPT2.but(dropout=0.5))
    ids = tokens(GPT2, 1, 9)
    with torch.no_grad(), torch.random.fork_rng():
        assert torch.equal(model(ids), model(ids))
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(model(ids), model(ids))


def test_gradients_reach_every_parameter() -> None:
    for config in (GPT2, GPT_OSS, QWEN3):
        model = hostile(config)
        model(tokens(config, 2, 20)).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
