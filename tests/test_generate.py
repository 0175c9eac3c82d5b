"""Sampling and the generation loop, on a tiny random model."""

import copy
import math

import pytest
import torch

from gptoss_lite import (
    KVCache,
    Transformer,
    generate,
    generate_batch,
    load,
    load_tokenizer,
    trace,
)
from gptoss_lite.errors import GptOssLiteError, ShapeError
from gptoss_lite.generate import PREFILL_CHUNK, chat, sample
from tests.hostile import GPT2, GPT_OSS, hostile, tokens, without_type_checks


@pytest.fixture(scope="module")
def model() -> Transformer:
    return hostile(GPT_OSS.but(context=1_600))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greedy_without_cache(model: Transformer, ids: list[int], n: int) -> list[int]:
    """The specification: read the whole text again for every token."""
    ids = list(ids)
    start = len(ids)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("length", [1, 6, 7, 8, 40])
def test_greedy_equals_reading_the_whole_text_for_each_token(model, length):
    prompt = tokens(model.config, 1, length)[0].tolist()
    assert list(generate(model, prompt, max_new_tokens=20)) == greedy_without_cache(
        model, prompt, 20
    )


def test_a_prompt_longer_than_a_chunk_reads_the_same(model):
    """The prompt is read in chunks, each far longer than the window."""
    prompt = tokens(model.config, 1, PREFILL_CHUNK + 37)[0].tolist()
    assert list(generate(model, prompt, max_new_tokens=3)) == greedy_without_cache(model, prompt, 3)


def test_stop_id_is_yielded_and_ends_the_text(model):
    prompt = [3, 1, 4]
    free = list(generate(model, prompt, max_new_tokens=12))
    stop = free[5]
    stopped = list(generate(model, prompt, max_new_tokens=12, stop=[stop]))
    assert stopped == free[: free.index(stop) + 1]


def test_ends_where_the_context_is_full():
    model = hostile(GPT2)
    prompt = tokens(model.config, 1, GPT2.context - 4)[0].tolist()
    assert len(list(generate(model, prompt, max_new_tokens=100))) == 4


def test_a_seed_repeats_a_sampled_text_and_another_changes_it(model):
    def text(seed: int) -> list[int]:
        options = {"temperature": 1.5, "generator": seeded(seed)}
        return list(generate(model, [1, 2], max_new_tokens=30, **options))

    assert text(0) == text(0)
    assert text(0) != text(1)


def test_it_streams(model):
    stream = generate(model, [1, 2], max_new_tokens=10**9)
    assert isinstance(next(stream), int)
    assert isinstance(next(stream), int)


def test_trace_sees_every_step(model):
    with trace(model, "resid") as t:
        list(generate(model, [1, 2, 3], max_new_tokens=4))
    lengths = [step.shape[1] for step in t.steps("blocks.0.resid")]
    assert lengths == [3, 1, 1, 1]


def test_generation_leaves_no_gradients(model):
    list(generate(model, [1], max_new_tokens=2))
    assert all(p.grad is None for p in model.parameters())


# --- sample ---------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5])
IDS = "must be token ids, whole numbers in one row such as [5, 7]; got "


def frequencies(n: int = 4_000, **settings: float) -> list[float]:
    generator = seeded(0)
    drawn = [sample(LOGITS, generator=generator, **settings) for _ in range(n)]  # type: ignore[arg-type]
    return [drawn.count(i) / n for i in range(len(LOGITS))]


def near(found: list[float], wanted: torch.Tensor) -> bool:
    """Within four standard deviations of a binomial with n = 4,000."""
    return all(abs(f - w) < 4 * math.sqrt(0.25 / 4_000) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    wanted = (LOGITS / temperature).softmax(-1)
    assert near(frequencies(temperature=temperature), wanted)


def test_top_k_keeps_the_k_largest():
    kept = LOGITS.clone()
    kept[[0, 2, 4]] = -torch.inf
    assert near(frequencies(temperature=1.0, top_k=2), kept.softmax(-1))


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    """Probabilities 0.56, 0.21, 0.12, ...: 0.7 needs the first two, 0.5 the first alone."""
    kept = LOGITS.clone()
    kept[[0, 2, 4]] = -torch.inf
    assert near(frequencies(temperature=1.0, top_p=0.7), kept.softmax(-1))
    assert frequencies(n=50, temperature=1.0, top_p=0.5)[1] == 1
    assert near(frequencies(temperature=1.0, top_p=1.0), LOGITS.softmax(-1))


def test_a_tiny_top_p_still_keeps_one():
    assert frequencies(n=20, temperature=1.0, top_p=1e-9)[1] == 1


@pytest.mark.parametrize("settings", [{"temperature": 1e-45}, {"temperature": 5e-324}])
def test_the_coldest_temperature_takes_the_most_likely(settings):
    assert frequencies(n=20, **settings)[1] == 1


def test_large_logits_can_be_divided():
    assert sample(torch.tensor([1e38, 2e38]), temperature=0.1) == 1


@pytest.mark.parametrize("top_p", [1e-46, 1e-300, 5e-324])
def test_a_top_p_that_rounds_to_zero_still_keeps_one(top_p):
    assert frequencies(n=20, temperature=1.0, top_p=top_p)[1] == 1


def test_not_finite_logits_are_refused():
    with pytest.raises(ShapeError, match="logits are not finite"):
        sample(torch.tensor([0.0, torch.nan]))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1 cannot be negative."),
        ({"temperature": -0.5}, "temperature=-0.5 must be 0 (greedy) or a positive number."),
        ({"temperature": math.nan}, "temperature=nan must be 0 (greedy) or a positive number."),
        ({"top_k": 0}, "top_k=0 must be at least 1, or None to keep all tokens."),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1, or None."),
        ({"top_p": 1.1}, "top_p=1.1 must be above 0 and at most 1, or None."),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5 must be a whole number."),
        ({"top_k": 2.5}, "top_k=2.5 must be a whole number."),
        ({"lookup": 1.5}, "lookup=1.5 must be a whole number."),
        ({"stop": 3}, f"stop {IDS}3."),
        ({"stop": None}, f"stop {IDS}None."),
        ({"ids": [1.5, 2.7]}, f"ids {IDS}[1.5, 2.7]."),
        ({"ids": torch.zeros(1, 9, dtype=torch.long)}, f"ids {IDS}torch.int64 [1, 9]."),
        ({"ids": "a text" * 99}, f"ids {IDS}'{'a text' * 9}a tex."),
        ({"ids": 5}, f"ids {IDS}5."),
    ],
)
def test_settings_out_of_range_are_refused_at_once(model, settings, message):
    """At the call, not at the first token: a generator would hide the mistake until then."""
    with without_type_checks(), pytest.raises(ShapeError) as caught:
        generate(model, **{"ids": [1], "max_new_tokens": 1, **settings})
    assert str(caught.value) == message


def test_ids_may_come_as_a_tensor_or_an_array(model):
    wanted = list(generate(model, [5, 7], max_new_tokens=4, stop=[200]))
    rows, stop = torch.tensor([5, 7]), torch.tensor([wanted[1]])
    with without_type_checks():
        for ids in (rows, rows.numpy(), (i for i in (5, 7))):
            assert list(generate(model, ids, max_new_tokens=4)) == wanted
        assert list(generate(model, rows, max_new_tokens=4, stop=stop)) == wanted[:2]
        (row,) = generate_batch(model, [rows], max_new_tokens=4, stop=stop)
    assert row == wanted[:2]


def test_a_prompt_that_cannot_be_read_is_refused(model):
    with pytest.raises(ShapeError) as caught:
        generate(model, [1] * 1_600, max_new_tokens=1)
    assert str(caught.value) == (
        "The prompt has 1,600 tokens; this model reads 1 to 1,599 and writes after them. "
        "Shorten the prompt."
    )
    with pytest.raises(ShapeError, match="The prompt is empty: give at least one token"):
        generate(model, [], max_new_tokens=1)


def test_ids_of_another_vocabulary_are_refused(model):
    with pytest.raises(ShapeError, match="vocabulary is 0 to 96"):
        next(generate(model, [200_000], max_new_tokens=1))


def test_chat_needs_a_model_from_a_folder(model):
    with pytest.raises(GptOssLiteError, match="was not loaded from a folder"):
        chat(model, "hello")


def test_chat_answers_and_says_when_it_could_not():
    assert chat("gpt-oss-nano", "What is 12 + 35?").strip()
    with pytest.raises(GptOssLiteError, match="No final answer within 2 tokens"):
        chat("gpt-oss-nano", "What is 12 + 35?", effort="high", max_new_tokens=2)


def test_chat_does_not_pass_off_half_an_answer():
    model = load("gpt-oss-nano", progress=False)
    whole = chat(model, "Tell me a story")
    for n in (0, 2, 12):
        with pytest.raises(
            GptOssLiteError, match=rf"{n} tokens: the reply was cut .* Raise max_ne"
        ):
            chat(model, "Tell me a story", max_new_tokens=n)
    prompt = load_tokenizer("gpt-oss-nano").render(
        [{"role": "user", "content": "Tell me a story"}], effort="low"
    )
    small = copy.deepcopy(model)
    small.config = small.config.but(context=len(prompt) + 5)
    with pytest.raises(GptOssLiteError, match=r"within 5 tokens: .* Shorten the question"):
        chat(small, "Tell me a story")
    assert len(whole) > 12


def test_a_cache_that_is_passed_on_continues_the_text(model):
    prompt = tokens(model.config, 1, 20)
    cache = KVCache(model.config)
    with torch.no_grad():
        whole = model(prompt)
        first = model(prompt[:, :13], cache)
        second = model(prompt[:, 13:], cache)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=1e-5, rtol=0)


def test_stop_ids_of_the_bundled_tokenizer_end_a_reply():
    tokenizer = load_tokenizer("gpt-oss-nano")
    assert {tokenizer.token(i) for i in tokenizer.stop_ids} == {"<|return|>", "<|call|>"}
