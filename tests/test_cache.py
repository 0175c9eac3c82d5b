import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_lite import KVCache, ModelConfig, account
from gptoss_lite.cache import FullCache, SlidingCache
from tests.hostile import GPT2, GPT_OSS, QWEN3, TOLERANCE, hostile, seeded, tokens

CONFIGS = {
    "gpt2": GPT2,
    "gpt_oss": GPT_OSS,
    "qwen3": QWEN3,
    "window 1": GPT_OSS.but(sliding_window=1),
    "every layer slides": GPT_OSS.but(layer_pattern="S", sliding_window=4),
}
MODELS = {name: hostile(config) for name, config in CONFIGS.items()}
FULL = {}


def full_logits(name: str, batch: int) -> torch.Tensor:
    if (name, batch) not in FULL:
        with torch.no_grad():
            FULL[name, batch] = MODELS[name](tokens(CONFIGS[name], batch, 40))
    return FULL[name, batch]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_token_at_a_time_equals_the_full_forward(name: str, batch: int) -> None:
    config, model = CONFIGS[name], MODELS[name]
    cache = KVCache(config)
    with torch.no_grad():
        ids = tokens(config, batch, 40)[:, :24]
        steps = [model(column, cache) for column in ids.split(1, dim=1)]
    difference = torch.cat(steps, dim=1) - full_logits(name, batch)[:, :24]
    assert difference.abs().max() <= TOLERANCE
    assert cache.n_seen == 24


@settings(max_examples=20)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    batch=st.sampled_from([1, 3]),
    chunks=st.lists(st.integers(1, 17), min_size=1, max_size=9),
)
def test_any_chunks_equal_the_full_forward_and_take_the_bytes_of_the_account(
    name: str, batch: int, chunks: list[int]
) -> None:
    """Chunks longer than the window, chunks that straddle it, single steps: all the same."""
    config, model = CONFIGS[name], MODELS[name]
    ids, expected = tokens(config, batch, 40), full_logits(name, batch)
    cache, start = KVCache(config), 0
    assert cache.n_bytes == 0
    with torch.no_grad():
        for size in chunks:
            end = min(start + size, 40)
            if start == end:
                break
            got = model(ids[:, start:end], cache)
            assert (got - expected[:, start:end]).abs().max() <= TOLERANCE
            start = end
            assert cache.n_seen == end
            assert cache.n_bytes == account.kv_bytes(config, end, batch=batch, dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_keeps_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = hostile(GPT_OSS).to(dtype)
    cache = KVCache(GPT_OSS)
    with torch.no_grad():
        model(tokens(GPT_OSS, 2, 23), cache)
    name = str(dtype).removeprefix("torch.")
    assert cache.n_bytes == account.kv_bytes(GPT_OSS, 23, batch=2, dtype=name)


def pair(length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    shape = (2, 3, length, 4)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@given(chunks=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_a_full_cache_returns_everything_so_far(chunks: list[int]) -> None:
    """Past its first buffer of 64 tokens too."""
    k, v = pair(sum(chunks))
    cache, end = FullCache(), 0
    for part in zip(k.split(chunks, 2), v.split(chunks, 2), strict=True):
        end += part[0].shape[2]
        got_k, got_v = cache.append(*part)
        assert torch.equal(got_k, k[:, :, :end])
        assert torch.equal(got_v, v[:, :, :end])
        assert cache.length == end
        assert cache.n_bytes == 2 * got_k.nbytes


@given(window=st.integers(1, 9), chunks=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_sliding_cache_returns_what_the_new_tokens_may_see(
    window: int, chunks: list[int]
) -> None:
    """The window - 1 tokens before the chunk, and the chunk; it keeps the last `window`."""
    k, v = pair(sum(chunks))
    cache, end = SlidingCache(window), 0
    for part in zip(k.split(chunks, 2), v.split(chunks, 2), strict=True):
        start, end = end, end + part[0].shape[2]
        oldest = max(0, start - (window - 1))
        got_k, got_v = cache.append(*part)
        assert torch.equal(got_k, k[:, :, oldest:end])
        assert torch.equal(got_v, v[:, :, oldest:end])
        assert cache.n_bytes == 2 * k[:, :, max(0, end - window) : end].nbytes


def test_a_sliding_cache_does_not_keep_a_long_prompt_in_memory() -> None:
    """A view of the last keys would hold the storage of all of them."""
    cache = SlidingCache(4)
    cache.append(*pair(1_000))
    held = [x for x in vars(cache).values() if isinstance(x, torch.Tensor)]
    assert len(held) == 2
    for tensor in held:
        assert tensor.untyped_storage().nbytes() == 2 * 3 * 4 * 4 * 4


def test_a_full_cache_takes_at_most_twice_what_it_holds() -> None:
    """Appending one token at a time must not copy everything each time either."""
    cache, buffers = FullCache(), set()
    for step in range(300):
        cache.append(*pair(1, step))
        buffers.add(cache._buffer.data_ptr())
        assert cache._buffer.shape[3] <= max(64, 2 * cache.length)
    assert len(buffers) <= 4  # 64, 128, 256, 512


@pytest.mark.parametrize("config", [GPT_OSS, GPT_OSS.but(layer_pattern="FFS")])
def test_each_layer_gets_the_cache_of_its_kind(config: ModelConfig) -> None:
    kinds = {"S": SlidingCache, "F": FullCache}
    pattern = (config.layer_pattern * 4)[:4]
    assert [type(layer) for layer in KVCache(config).layers] == [kinds[x] for x in pattern]


def test_two_caches_do_not_share_anything() -> None:
    """Two conversations with one model at a time."""
    model, ids = MODELS["gpt_oss"], tokens(GPT_OSS, 1, 40)
    other = tokens(GPT_OSS, 1, 40, seed=5)
    first, second = KVCache(GPT_OSS), KVCache(GPT_OSS)
    with torch.no_grad():
        model(ids[:, :20], first)
        model(other[:, :9], second)
        got = model(ids[:, 20:], first)
    assert (got - full_logits("gpt_oss", 1)[:, 20:]).abs().max() <= TOLERANCE


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    """A bad token id is found before any layer has written."""
    model, cache = MODELS["gpt_oss"], KVCache(GPT_OSS)
    ids = tokens(GPT_OSS, 1, 40)
    with torch.no_grad():
        model(ids[:, :20], cache)
        with pytest.raises(ValueError, match="vocabulary"):
            model(torch.tensor([[GPT_OSS.vocab_size]]), cache)
        got = model(ids[:, 20:], cache)
    assert (got - full_logits("gpt_oss", 1)[:, 20:]).abs().max() <= TOLERANCE
