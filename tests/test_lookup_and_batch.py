"""Texts that are guessed ahead, continued from a cache, or written side by side.

All must be what `generate` writes alone. The tiny models compute in float32, where several tokens
read at once differ from one after the other by about 1e-6; a test first makes sure that no two
tokens are that close (`margin`), or the greedy text would not be one.
"""

from collections.abc import Iterator

import pytest
import torch

from gptoss_lite import KVCache, Transformer, generate, load, load_tokenizer, trace
from gptoss_lite.errors import ShapeError
from gptoss_lite.generate import PREFILL_CHUNK, _accepted, _Phrases, generate_batch
from tests import hostile as bases
from tests.hostile import TOLERANCE, hostile, seeded, tokens, without_type_checks

CONFIGS = {
    "gpt2": bases.GPT2,
    "gpt_oss": bases.GPT_OSS,
    "qwen3": bases.QWEN3,
    "window 1": bases.GPT_OSS.but(sliding_window=1),
    "every layer slides": bases.GPT_OSS.but(layer_pattern="S", sliding_window=4),
}
CONFIGS = {name: config.but(n_layers=2) for name, config in CONFIGS.items()}
MODELS = {name: hostile(config) for name, config in CONFIGS.items()}
GPT_OSS, GPT2, QWEN3 = CONFIGS["gpt_oss"], CONFIGS["gpt2"], CONFIGS["qwen3"]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leave out the check of every annotation, which takes most of a step."""
    with without_type_checks():
        yield


def copier(config) -> Transformer:
    """A model that repeats itself, so that guesses come true: its text depends little on the far.

    The blocks' writes are made small: what follows is then mostly decided by the last token.
    """
    model = hostile(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("attn.o.weight", "attn.o.bias")) or "ffn.down" in name:
            parameter.data *= 0.02
        if name == "embed.weight" and not config.tied:
            parameter.data *= 10
    return model


COPIERS = {name: copier(config) for name, config in CONFIGS.items()}


def prompts(config, lengths, *, of: int = 0) -> list[list[int]]:
    """Random texts; with `of`, each is a phrase of so many tokens over and over, then cut."""
    found = []
    for seed, length in enumerate(lengths):
        text = tokens(config, 1, of or length, seed=seed)[0].tolist()
        found.append((text * length)[:length])
    return found


def alone(model: Transformer, prompt: list[int], n: int, **settings) -> list[int]:
    return list(generate(model, prompt, max_new_tokens=n, **settings))


def margin(model: Transformer, prompt: list[int], reply: list[int]) -> float:
    """Return the smallest lead of a chosen token over the next best, in one pass over the text."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + reply[:-1]]))[0, len(prompt) - 1 :]
    best = logits.topk(2).values
    assert logits.argmax(-1).tolist() == reply
    return (best[:, 0] - best[:, 1]).min().item()


# --- lookup ---------------------------------------------------------------------------------------


def n_calls(model: Transformer, prompt: list[int], n: int, **settings) -> tuple[list[int], int]:
    """Return the reply, and how often the model was called for it."""
    calls = []
    hook = model.norm.register_forward_hook(lambda *_: calls.append(1))
    try:
        return alone(model, prompt, n, **settings), len(calls)
    finally:
        hook.remove()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CONFIGS)
def test_lookup_writes_the_greedy_text(name: str) -> None:
    """Past the window, far into YaRN, from random and from repeating prompts."""
    config, n, saved = CONFIGS[name], 24, 0
    asked = [(MODELS[name], prompt) for prompt in prompts(config, (2, 23), of=4)]
    asked += [(COPIERS[name], prompt) for prompt in prompts(config, (1, 8, 19))]
    for model, prompt in asked:
        wanted = alone(model, prompt, n)
        assert margin(model, prompt, wanted) > 2 * TOLERANCE
        for lookup in (1, 3, 10):
            got, calls = n_calls(model, prompt, n, lookup=lookup)
            assert got == wanted
            assert calls <= n
            saved += n - calls
    assert saved > n  # or the test would not have seen guesses come true


@pytest.mark.usefixtures("unchecked")
def test_a_text_of_one_phrase_takes_few_calls() -> None:
    """Ten guesses and the model's own token a call, once the phrase has come twice."""
    model = COPIERS["gpt_oss"]
    reply, calls = n_calls(model, [5, 9], 100, lookup=10)
    assert reply == alone(model, [5, 9], 100)
    assert calls <= 45
    assert n_calls(model, [5, 9], 100)[1] == 100


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("lookup", [3, 10])
def test_stop_room_and_context_end_a_guessed_text_where_they_end_a_plain_one(lookup: int) -> None:
    model = COPIERS["gpt2"]
    for prompt in prompts(GPT2, (3, 12), of=3):
        free = alone(model, prompt, 100)
        assert len(free) == GPT2.context - len(prompt)
        assert alone(model, prompt, 100, lookup=lookup) == free
        for n in (8, 13, 14, 15):
            assert alone(model, prompt, n, lookup=lookup) == free[:n]
        for place in (6, 11, 12, 17):
            stop = [free[place]]
            stopped = free[: free.index(stop[0]) + 1]
            assert alone(model, prompt, 100, stop=stop, lookup=lookup) == stopped


@pytest.mark.parametrize(
    ("chosen", "draft", "kept"),
    [
        ([4, 5, 6], [4, 5], [4, 5, 6]),  # all guesses right, and the token after them
        ([4, 5, 6], [4, 8], [4, 5]),
        ([4, 5, 6], [8, 5], [4]),
        ([4, 9, 6], [4, 9], [4, 9]),  # a stop that was guessed ends the text all the same
        ([9, 5, 6], [9, 5], [9]),
        ([4], [], [4]),
    ],
)
def test_guesses_are_kept_as_far_as_they_agree_and_up_to_a_stop(
    chosen: list[int], draft: list[int], kept: list[int]
) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(chosen), 10).float()
    assert _accepted(logits, draft, lambda row: int(row.argmax()), frozenset([9])) == kept


def test_lookup_asks_for_greedy_text() -> None:
    model = MODELS["gpt_oss"]
    with pytest.raises(ShapeError) as caught:
        generate(model, [1], max_new_tokens=1, temperature=0.5, lookup=4)
    assert str(caught.value) == (
        "lookup=4 needs greedy text, but temperature=0.5 draws at random. Set one of them to 0."
    )
    with pytest.raises(ShapeError, match="lookup=-1 cannot be negative"):
        generate(model, [1], max_new_tokens=1, lookup=-1)
    with pytest.raises(ShapeError, match=r"take back 4 tokens, this cache 3\. Make it with KVC"):
        generate(model, [1], max_new_tokens=1, lookup=4, cache=KVCache(GPT_OSS, slack=3))


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ([1, 2, 3, 4, 9, 2, 3], [4, 9, 2, 3]),  # after the pair (2, 3)
        ([7, 2, 3, 5, 8, 2, 3, 6, 7, 2, 3], [5, 8, 2, 3]),  # the triple wins over a later pair
        ([8, 2, 3, 5, 9, 8, 2, 3, 6, 8, 2, 3], [6, 8, 2, 3]),  # of two triples the later one
        ([1, 2, 3, 1, 2], [3, 1, 2, 3]),  # past the end it goes on with itself
        ([4, 4, 4], [4, 4, 4, 4]),
        ([1, 2, 3, 4], []),
        ([1, 2], []),
        ([1], []),
    ],
)
def test_a_guess_is_what_followed_the_last_few_tokens_before(
    text: list[int], guess: list[int]
) -> None:
    assert _Phrases().guess(text, 4) == guess
    phrases = _Phrases()  # the same when it has grown with the text
    for end in range(1, len(text)):
        phrases.guess(text[:end], 4)
    assert phrases.guess(text, 4) == guess
    assert phrases.guess(text, 0) == []


# --- a cache that is passed on --------------------------------------------------------------------


def n_read(model: Transformer, prompt: list[int], n: int, **settings) -> tuple[list[int], int]:
    """Return the reply, and how many tokens went through the model for it."""
    sizes = []
    hook = model.norm.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    try:
        return alone(model, prompt, n, **settings), sum(sizes)
    finally:
        hook.remove()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("slack", "lookup"), [(2, 0), (20, 4)])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_conversation_goes_on_in_its_cache(name: str, slack: int, lookup: int) -> None:
    """As in harmony: of each reply only the last part stays, and then comes a new question."""
    config, model = CONFIGS[name], MODELS[name]
    cache, text = KVCache(config, slack), tokens(config, 1, 11)[0].tolist()
    for turn in range(4):
        wanted = alone(model, text, 9)
        assert margin(model, text, wanted) > 2 * TOLERANCE
        assert alone(model, text, 9, cache=cache, lookup=lookup) == wanted
        assert cache.ids == (text + wanted)[:-1]
        assert cache.n_seen == len(cache.ids)
        text += wanted[turn * 2 :] + tokens(config, 1, 3, seed=turn)[0].tolist()


def test_only_what_is_new_is_read() -> None:
    model, prompt = MODELS["gpt_oss"], tokens(GPT_OSS, 1, 30)[0].tolist()
    cache = KVCache(GPT_OSS, slack=6)
    reply, read = n_read(model, prompt, 10, cache=cache)
    assert read == 30 + 9
    goes_on = [*prompt, *reply, 1, 2]
    assert n_read(model, goes_on, 1, cache=cache)[1] == 1 + 2  # the last of the reply was unread
    within_slack = [*goes_on[:-3], 50, 51, 52, 53]
    assert n_read(model, within_slack, 1, cache=cache)[1] == 4
    assert n_read(model, within_slack, 1, cache=cache)[1] == 1  # its logits are needed again
    too_far = [*prompt[:20], 50, 51]
    assert n_read(model, too_far, 1, cache=cache)[1] == 22
    assert n_read(model, [96, 95, 94], 1, cache=cache)[1] == 3


def test_full_layers_go_back_any_way() -> None:
    model, prompt = MODELS["qwen3"], tokens(QWEN3, 1, 50)[0].tolist()
    cache = KVCache(QWEN3)
    alone(model, prompt, 10, cache=cache)
    other = [*prompt[:7], 1, 2]
    wanted = alone(model, other, 10)
    assert n_read(model, other, 10, cache=cache) == (wanted, 2 + 9)


def test_several_continuations_of_one_prompt() -> None:
    model, start = MODELS["gpt_oss"], tokens(GPT_OSS, 1, 40)[0].tolist()
    shared = KVCache(GPT_OSS)
    alone(model, start, 1, cache=shared)
    for end in ([1], [2, 3, 4], [5] * 9):
        wanted = alone(model, start + end, 12)
        got = n_read(model, start + end, 12, cache=shared.select([0]))
        assert got == (wanted, len(end) + 11)
    assert shared.n_seen == 40


@pytest.mark.usefixtures("unchecked")
def test_a_reader_who_stops_early_leaves_a_sound_cache() -> None:
    model, prompt = COPIERS["gpt_oss"], [3, 1, 3, 1, 3, 1]
    wanted = alone(model, prompt, 60)
    for n in (1, 2, 7, 20):
        cache = KVCache(GPT_OSS, slack=5)
        stream = generate(model, prompt, max_new_tokens=60, cache=cache, lookup=5)
        begun = [next(stream) for _ in range(n)]
        stream.close()
        assert begun == wanted[:n]
        goes_on = prompt + begun
        assert alone(model, goes_on, 60 - n, cache=cache, lookup=5) == wanted[n:]


def test_a_long_prompt_goes_on_in_chunks() -> None:
    config = GPT_OSS.but(context=1_600)
    model, cache = hostile(config), KVCache(config)
    prompt = tokens(config, 1, 20 + PREFILL_CHUNK + 30)[0].tolist()
    alone(model, prompt[:20], 1, cache=cache)
    with trace(model, "resid") as t:
        reply = alone(model, prompt, 2, cache=cache)
    assert [x.shape[1] for x in t.steps("blocks.0.resid")] == [PREFILL_CHUNK, 30, 1]
    assert reply == alone(model, prompt, 2)


def test_a_cache_of_something_else_is_refused() -> None:
    model = MODELS["gpt_oss"]
    with pytest.raises(ShapeError, match="This cache is of another model"):
        generate(model, [1], max_new_tokens=1, cache=KVCache(QWEN3))
    filled = KVCache(GPT_OSS)
    with torch.no_grad():
        model(tokens(GPT_OSS, 1, 5), filled)
    with pytest.raises(ShapeError, match="has seen 5 tokens but knows the ids of 0: it has sev"):
        generate(model, [1], max_new_tokens=1, cache=filled)
    rows = KVCache(GPT_OSS)
    alone(model, [1, 2, 3], 1, cache=rows)
    with pytest.raises(ShapeError, match="has seen 3 tokens but knows the ids of 0"):
        generate(model, [1], max_new_tokens=1, cache=rows.select([0, 0]))


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("lengths", [(9, 9, 9), (20, 1, 11, 3, 30)])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_a_batch_are_the_texts_alone(name: str, lengths: tuple[int, ...]) -> None:
    """Rows of different lengths, past the window, that end at different places."""
    config, model, n = CONFIGS[name], MODELS[name], 12
    texts = prompts(config, lengths)
    free = [alone(model, text, n) for text in texts]
    for text, reply in zip(texts, free, strict=True):
        assert margin(model, text, reply) > 2 * TOLERANCE
    assert generate_batch(model, texts, max_new_tokens=n) == free
    stop = [free[0][5], free[-1][2]]
    ends = [next((i for i, x in enumerate(row) if x in stop), n) + 1 for row in free]
    wanted = [row[:end] for row, end in zip(free, ends, strict=True)]
    assert generate_batch(model, texts, max_new_tokens=n, stop=stop) == wanted


def test_a_shared_start_is_read_once() -> None:
    model, start = MODELS["gpt_oss"], tokens(GPT_OSS, 1, 50)[0].tolist()
    texts = [start + end for end in ([1], [2, 3], [2, 4, 5], [])]
    shapes = []
    hook = model.norm.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape[:2]))
    try:
        got = generate_batch(model, texts, max_new_tokens=3)
    finally:
        hook.remove()
    assert got == [alone(model, text, 3) for text in texts]
    assert shapes == [(1, 49), (4, 1), (4, 1), (4, 1), (3, 1), (2, 1), (1, 1)][: len(shapes)]
    assert sum(b * t for b, t in shapes) == 49 + sum(len(text) - 49 + 2 for text in texts)


def test_rows_that_have_ended_leave_and_long_prompts_are_then_read_in_pieces() -> None:
    config = GPT_OSS.but(context=1_600)
    model = hostile(config)
    texts = [[1, 2], tokens(config, 1, PREFILL_CHUNK + 40)[0].tolist()]
    sizes = []
    hook = model.norm.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[:2]))
    try:
        got = generate_batch(model, texts, max_new_tokens=3)
    finally:
        hook.remove()
    assert got == [alone(model, text, 3) for text in texts]
    left = PREFILL_CHUNK + 40 - 4
    assert (
        sizes
        == [(2, 2), (2, 1), (2, 1), (1, PREFILL_CHUNK), (1, left - PREFILL_CHUNK)] + [(1, 1)] * 2
    )


def test_rows_end_where_the_context_is_full() -> None:
    model = MODELS["gpt2"]
    texts = prompts(GPT2, (GPT2.context - 3, 5, GPT2.context - 9))
    got = generate_batch(model, texts, max_new_tokens=100)
    assert [len(reply) for reply in got] == [3, GPT2.context - 5, 9]
    assert got == [alone(model, text, 100) for text in texts]


def test_a_seed_repeats_a_batch_and_rows_draw_for_themselves() -> None:
    model = MODELS["gpt_oss"]

    def drawn(seed: int) -> list[list[int]]:
        settings = {"temperature": 1.5, "top_k": 40, "top_p": 0.95}
        return generate_batch(
            model, [[1, 2, 3]] * 3, max_new_tokens=12, generator=seeded(seed), **settings
        )

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({tuple(row) for row in drawn(0)}) == 3


def test_empty_batches_and_bad_rows() -> None:
    model = MODELS["gpt_oss"]
    assert generate_batch(model, [], max_new_tokens=3) == []
    assert generate_batch(model, [[1], [2]], max_new_tokens=0) == [[], []]
    with pytest.raises(ShapeError, match="The prompt is empty"):
        generate_batch(model, [[1], []], max_new_tokens=3)
    with pytest.raises(ShapeError, match="top_k=0"):
        generate_batch(model, [[1]], max_new_tokens=3, top_k=0)


# --- the bundled model ----------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_the_bundled_model_writes_the_same_answers_in_every_way() -> None:
    model = load("gpt-oss-nano", dtype=torch.float32, experts="dense", progress=False)
    tokenizer = load_tokenizer("gpt-oss-nano")
    asked = ["What is 38 + 15?", "Repeat: tea cup, red door, tea cup, red door", "Sort 7 3 9 1"]
    messages = [[{"role": "user", "content": question}] for question in asked]
    texts = [tokenizer.render(m, effort="medium") for m in messages]
    wanted = [alone(model, text, 60, stop=tokenizer.stop_ids) for text in texts]
    for text, reply in zip(texts, wanted, strict=True):
        assert margin(model, text, reply) > 1e-3
        assert alone(model, text, 60, stop=tokenizer.stop_ids, lookup=8) == reply
    assert generate_batch(model, texts, max_new_tokens=60, stop=tokenizer.stop_ids) == wanted
    cache = KVCache(model.config, slack=60)
    for text, reply in zip(texts, wanted, strict=True):
        got, read = n_read(model, text, 60, stop=tokenizer.stop_ids, cache=cache)
        assert got == reply
    assert read < len(texts[-1]) + len(wanted[-1]) - 1  # the system message was in the cache
