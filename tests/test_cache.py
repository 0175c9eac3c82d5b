import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_lite import KVCache, ModelConfig, account
from gptoss_lite.cache import FullCache, SlidingCache
from gptoss_lite.errors import ShapeError
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
    cache = SlidingCache(4, slack=3)
    cache.append(*pair(1_000))
    held = [x for x in vars(cache).values() if isinstance(x, torch.Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    assert sum(storages.values()) == (4 + 3 + 4) * 2 * 2 * 3 * 4 * 4  # tokens, keys and values


def test_a_sliding_cache_moves_what_it_holds_once_in_a_window() -> None:
    """Not in every step: that would copy the window for each token."""
    cache, buffers = SlidingCache(16), []
    for step in range(160):
        cache.append(*pair(1, step))
        if not buffers or cache._keys is not buffers[-1]:
            buffers.append(cache._keys)
    assert len(buffers) == 1 + (160 - 2 * 16) // 16


def test_a_full_cache_takes_little_more_than_it_holds() -> None:
    """Appending one token at a time must not copy everything each time either."""
    cache, capacities = FullCache(), set()
    for step in range(600):
        cache.append(*pair(1, step))
        capacities.add(cache._buffer.shape[3])
        assert cache._buffer.shape[3] <= max(64 + cache.length, cache.length * 5 / 4)
    assert sorted(capacities) == [64, 128, 192, 256, 320, 400, 500, 625]
    cache.truncate(0)
    assert cache._buffer is None


@pytest.mark.parametrize("config", [GPT_OSS, GPT_OSS.but(layer_pattern="FFS")])
def test_each_layer_gets_the_cache_of_its_kind(config: ModelConfig) -> None:
    kinds = {"S": SlidingCache, "F": FullCache}
    pattern = (config.layer_pattern * 4)[:4]
    assert [type(layer) for layer in KVCache(config).layers] == [kinds[x] for x in pattern]


@given(
    window=st.integers(1, 9),
    slack=st.integers(0, 7),
    steps=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), min_size=1, max_size=9),
)
def test_going_back_is_as_if_nothing_had_been_read(
    window: int, slack: int, steps: list[tuple[int, int]]
) -> None:
    """Append, take back up to `slack` tokens or start again, append others: any number of times."""
    caches, text = (FullCache(), SlidingCache(window, slack)), pair(0)
    for step, (n_new, n_back) in enumerate(steps):
        new = pair(n_new, step)
        start = text[0].shape[2]
        text = tuple(torch.cat(both, 2) for both in zip(text, new, strict=True))
        for cache, seen in zip(caches, (start, min(start, window - 1)), strict=True):
            got = cache.append(*new)
            for mine, wanted in zip(got, text, strict=True):
                assert torch.equal(mine, wanted[:, :, start - seen :])
        length = start + n_new - n_back
        if length < 0 or (n_back > slack and not caches[1].can_truncate(length)):
            length = 0
        for cache in caches:
            assert cache.can_truncate(length)
            cache.truncate(length)
            assert cache.length == length
        text = tuple(x[:, :, :length] for x in text)
        assert caches[0].n_bytes == 2 * text[0].nbytes
        assert caches[1].n_bytes == 2 * text[0][:, :, max(0, length - window) :].nbytes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_goes_back_reads_on_as_if_nothing_had_been(name: str) -> None:
    """Before every piece of the text, up to `slack` wrong tokens are read and taken back."""
    config, model, slack = CONFIGS[name], MODELS[name], 6
    ids, wrong = tokens(config, 3, 40), tokens(config, 3, slack, seed=5)
    cache = KVCache(config, slack)
    with torch.no_grad():
        for start in range(40):
            model(wrong[:, : 1 + start % slack], cache)
            cache.truncate(start)
            got = model(ids[:, start : start + 1], cache)
            assert (got - full_logits(name, 3)[:, start : start + 1]).abs().max() <= TOLERANCE
            assert cache.n_seen == start + 1
            n_bytes = account.kv_bytes(config, start + 1, batch=3, dtype="float32")
            assert cache.n_bytes == n_bytes


def test_a_cache_says_when_it_cannot_go_back() -> None:
    model, cache = MODELS["gpt_oss"], KVCache(GPT_OSS, slack=2)
    with torch.no_grad():
        model(tokens(GPT_OSS, 1, 40), cache)  # one piece: no more than the slack is kept
    for length in (41, 37, -1):
        assert not cache.can_truncate(length)
        with pytest.raises(ShapeError) as caught:
            cache.truncate(length)
        assert str(caught.value) == (
            f"This cache has seen 40 tokens and cannot go back to {length}: its sliding layers "
            "take back 2 at least. Make it with KVCache(config, slack=...), or truncate(0) and "
            "read the text again."
        )
    cache.truncate(38)
    assert not cache.can_truncate(37)
    cache.truncate(0)
    assert cache.n_seen == cache.n_bytes == 0


def test_an_interrupted_call_is_undone_by_going_back() -> None:
    """Some layers have written, the others not; positions did not move."""
    model, cache = MODELS["gpt_oss"], KVCache(GPT_OSS, slack=3)
    ids = tokens(GPT_OSS, 1, 40)
    with torch.no_grad():
        model(ids[:, :20], cache)
        for layer in cache.layers[:3]:
            layer.append(torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16))
        cache.truncate(20)
        got = model(ids[:, 20:], cache)
    assert (got - full_logits("gpt_oss", 1)[:, 20:]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_selected_rows_read_on_like_their_texts_alone(name: str) -> None:
    """Rows may be left out, repeated and put in another order; the first cache stays as it was."""
    config, model = CONFIGS[name], MODELS[name]
    ids, cache = tokens(config, 3, 40), KVCache(config, slack=2)
    expected = full_logits(name, 3)
    with torch.no_grad():
        model(ids[:, :23], cache)
        for rows in ([2, 0], [1, 1, 1, 0], [0]):
            chosen = cache.select(rows)
            for start in (23, 24, 25, 31):
                end = {25: 31, 31: 40}.get(start, start + 1)
                got = model(ids[rows][:, start:end], chosen)
                assert (got - expected[rows][:, start:end]).abs().max() <= TOLERANCE
            assert chosen.n_bytes == account.kv_bytes(config, 40, batch=len(rows), dtype="float32")
        assert cache.n_seen == 23
        got = model(ids[:, 23:], cache)
    assert (got - expected[:, 23:]).abs().max() <= TOLERANCE


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
