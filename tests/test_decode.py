"""The step that CUDA records, here only run: token by token as `model(token, cache)`."""

import weakref

import pytest
import torch

from gptoss_lite import LADDER, KVCache, Transformer, generate, trace
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ShapeError
from gptoss_lite.kernels import decode
from gptoss_lite.kernels.gpu import apply_experts_gathered, why_not_gathered
from gptoss_lite.moe import apply_experts, route
from tests.hostile import (
    GPT2,
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    TOLERANCE,
    hostile,
    packed,
    seeded,
    tokens,
    without_type_checks,
)

SWITCHES = (
    "norm", "positions", "rope_theta", "yarn", "ffn", "sinks", "layer_pattern", "qk_norm", "tied",
)  # fmt: skip


def small(config: ModelConfig) -> ModelConfig:
    """Give a rung of the ladder the sizes of the hostile models; its switches stay."""
    base = GPT_OSS.but(moe=GPT_OSS.moe if config.moe else None)
    window = 7 if config.sliding_window else None
    kept = {name: getattr(config, name) for name in SWITCHES}
    heads = 2 if config.n_kv_heads < config.n_heads else 6
    return base.but(**kept, sliding_window=window, n_kv_heads=heads)


CONFIGS = {
    "GPT-2": GPT2,
    "gpt-oss": GPT_OSS,
    "MXFP4": GPT_OSS_MXFP4,
    "Qwen3": QWEN3,
}
RUNGS = {rung.name: small(rung.config) for rung in LADDER}


def build(config: ModelConfig) -> Transformer:
    model = hostile(config)
    return packed(model) if config.expert_dtype == "mxfp4" else model


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("config", "n_read"),
    [pytest.param(c, n, id=f"{name}-{n}") for name, c in CONFIGS.items() for n in (0, 3, 19)]
    + [pytest.param(c, 9, id=f"{name}-9") for name, c in RUNGS.items()],
)
def test_a_step_is_a_call_of_the_model(config: ModelConfig, n_read: int) -> None:
    """From an empty, a short and a long past, over the window and past the first buffers."""
    model, text = build(config), tokens(config, 1, n_read + 13)
    with torch.no_grad():
        cache, reference = KVCache(config), KVCache(config)
        if n_read:
            model(text[:, :n_read], cache)
            model(text[:, :n_read], reference)
        decoder = decode.Decoder(model, cache, spare=5)
        assert decoder.capacity == n_read + 5
        for place in range(n_read, text.shape[1]):
            want = model(text[:, place : place + 1], reference)[0, 0]
            got = decoder(int(text[0, place]))
            # the same products; only sums over keys go in another order
            torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)
    assert decoder.capacity > n_read + 5
    assert cache.n_seen == n_read  # the cache is where it was
    assert decoder.n_seen == reference.n_seen


@pytest.mark.usefixtures("plain")
def test_the_cache_can_be_read_on_after_the_decoder_has_taken_over() -> None:
    model, text = build(GPT_OSS), tokens(GPT_OSS, 1, 30)
    with torch.no_grad():
        want = model(text)[:, 20:]
        cache = KVCache(GPT_OSS)
        model(text[:, :20], cache)
        decoder = decode.Decoder(model, cache)
        decoder(int(text[0, 20]))
        torch.testing.assert_close(model(text[:, 20:], cache), want, rtol=0, atol=TOLERANCE)


def test_memory_of_the_buffers() -> None:
    """Full layers hold the capacity, sliding ones their window; keys and values, float32."""
    decoder = decode.Decoder(build(GPT_OSS), KVCache(GPT_OSS), spare=50)
    assert (
        decoder.n_bytes == 2 * 2 * (50 + 7) * 2 * 16 * 4
    )  # k v, layers a kind, rows, K, hd, bytes


def test_what_a_step_refuses() -> None:
    model = build(GPT2)
    with torch.no_grad(), without_type_checks():
        cache = KVCache(GPT2)
        model(tokens(GPT2, 1, 60), cache)
        decoder = decode.Decoder(model, cache)
        with pytest.raises(
            ShapeError, match="Token 89 is outside this model's vocabulary, 0 to 88"
        ):
            decoder(89)
        decoder(3)
        with pytest.raises(ShapeError, match="Position 61 is past the learned table's 61 rows"):
            decoder(3)
        several = KVCache(GPT2)
        model(tokens(GPT2, 2, 5), several)
        with pytest.raises(ShapeError, match="continues one sequence, but the cache holds 2"):
            decode.Decoder(model, several)


def test_why_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reason, on a model that pretends to be on a device."""
    model = build(GPT_OSS_MXFP4)
    assert decode.why_not(model) == "the model is on cpu; only CUDA records graphs"
    monkeypatch.setattr(Transformer, "device", torch.device("cuda"))
    assert decode.why_not(model) == "the model lies on several devices"
    monkeypatch.setattr(Transformer, "device", torch.device("cpu"))
    monkeypatch.setattr(decode, "RECORDS", "cpu")
    assert "expert" in str(decode.why_not(model))  # Triton is missing, or they are too small
    model.n_ranks = 2
    assert "several processes" in str(decode.why_not(model))
    model.n_ranks = 1
    with trace(model, "resid"):
        assert "a trace is open" in str(decode.why_not(model))
    handle = model.blocks[1].attn.register_forward_hook(lambda *args: None)
    assert "a hook is registered" in str(decode.why_not(model))
    handle.remove()
    dropping = Transformer(GPT2.but(dropout=0.1)).train()
    assert "dropout" in str(decode.why_not(dropping))
    assert decode.why_not(dropping.eval()) is None  # GPT-2 has no experts to ask for


def test_gathered_experts_are_the_plain_ones() -> None:
    for config in (GPT_OSS, QWEN3):
        moe = build(config).blocks[1].ffn
        x = torch.randn(4, config.d_model, generator=seeded())
        with torch.no_grad():
            weights, ids = route(moe.router(x), moe.n_active)
            call = x, weights, ids, moe.up, moe.down, moe.activation
            assert why_not_gathered(*call) is None
            got, want = apply_experts_gathered(*call), apply_experts.plain(*call)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_generate_uses_it_where_it_can(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text, from buffers that grow on the way; not with a cache that the caller keeps."""
    model, made = build(GPT_OSS), []

    def write(**more: KVCache) -> list[int]:
        settings = {"max_new_tokens": 25, "temperature": temperature, "generator": seeded()}
        return list(generate(model, [5, 6, 7], **settings, **more))

    want = write()
    monkeypatch.setattr(decode, "why_not", lambda model: None)

    def make(model: Transformer, cache: KVCache, **settings: int) -> decode.Decoder:
        made.append(plain(model, cache, spare=9, **settings))
        return made[-1]

    plain = decode.Decoder
    monkeypatch.setattr(decode, "Decoder", make)
    assert write(cache=KVCache(GPT_OSS)) == want
    assert not made
    assert write() == want
    assert made[0].n_seen == 3 + 24
    assert made[0].capacity == 24 + 4  # the whole text, not the 48 of buffers twice as large


@pytest.mark.usefixtures("plain")
def test_keys_and_values_are_in_memory_once() -> None:
    """What the decoder takes over leaves the cache; buffers have no room for more than comes."""
    model, text = build(GPT_OSS), tokens(GPT_OSS, 1, 30)
    with torch.no_grad():
        want, cache = model(text)[0, 20:], KVCache(GPT_OSS)
        model(text[:, :20], cache)
        held = [weakref.ref(layer.next_row()[0]) for layer in cache.layers]
        decoder = decode.Decoder(model, cache, spare=3, most=30, empties=True)
        assert (cache.n_seen, cache.n_bytes, [ref() for ref in held]) == (0, 0, [None] * 4)
        got = torch.stack([decoder(int(token)).clone() for token in text[0, 20:]])
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)
        assert decoder.capacity == 30
        decoder(3)  # more than was said is read all the same
        assert decoder.capacity == 31
        model(text, cache)  # and the cache is as good as new
        assert cache.n_seen == 30


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("n_seen", [0, 1, 6, 7, 8, 19])
def test_a_cache_of_what_the_buffers_hold(n_seen: int) -> None:
    """Shorter and longer than the window of 7, and after it went round."""
    model, text = build(GPT_OSS), tokens(GPT_OSS, 1, n_seen + 9)
    with torch.no_grad():
        decoder, reference = decode.Decoder(model, KVCache(GPT_OSS), spare=4), KVCache(GPT_OSS)
        for token in text[0, :n_seen].tolist():
            decoder(token)
        if n_seen:
            model(text[:, :n_seen], reference)
        cache = decoder.cache()
        assert cache.n_seen == n_seen
        assert cache.n_bytes == reference.n_bytes
        assert [layer.length for layer in cache.layers] == [n_seen] * GPT_OSS.n_layers
        got, want = (model(text[:, n_seen:], each) for each in (cache, reference))
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)
        decoder(3)  # whose buffers are its own
        assert cache.n_seen == n_seen + 9


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[decode.Decoder]:
    """Let `generate` use decoders here, and keep them."""
    right, kept = decode.Decoder, []

    def make(model: Transformer, cache: KVCache, **settings: int) -> decode.Decoder:
        kept.append(right(model, cache, spare=9, **settings))
        return kept[-1]

    monkeypatch.setattr(decode, "Decoder", make)
    monkeypatch.setattr(decode, "why_not", lambda model: None)
    return kept


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("traced", [(0, 1), (4, 6), (13, 20), (24, 25)])
def test_a_trace_that_is_opened_between_tokens_sees_the_steps(
    traced: tuple[int, int], made: list[decode.Decoder]
) -> None:
    """A step is plain while it is open, and recorded before and after; the text is the same."""
    model, (first, end) = build(GPT_OSS), traced
    want = list(generate(model, [5, 6, 7], max_new_tokens=27, cache=KVCache(GPT_OSS)))
    made.clear()
    steps = generate(model, [5, 6, 7], max_new_tokens=27)
    text = [next(steps) for _ in range(first + 1)]  # the first comes from the prompt alone
    with trace(model, "probs", "resid") as seen:
        text += [next(steps) for _ in range(end - first)]
    text += steps
    assert text == want
    assert len(seen.steps("blocks.1.resid")) == end - first
    visible = [probs.shape[-1] for probs in seen.steps("blocks.1.attn.probs")]  # a full layer
    assert visible == [3 + n + 1 for n in range(first, end)]
    assert [decoder.n_seen for decoder in made] == [3 + first] * (first > 0) + [3 + 26] * (end < 26)


@pytest.mark.usefixtures("plain")
def test_a_hook_that_is_set_between_tokens_is_called(made: list[decode.Decoder]) -> None:
    model, called = build(GPT_OSS), []
    steps = generate(model, [5, 6, 7], max_new_tokens=27)
    next(steps), next(steps)
    assert made[0].n_seen == 4
    handle = model.blocks[2].ffn.register_forward_hook(lambda *args: called.append(1))
    next(steps), next(steps)
    handle.remove()
    next(steps)
    assert len(called) == 2
    assert [decoder.n_seen for decoder in made] == [4, 7]
