"""Ids: equal to OpenAI's own library on the real vocabulary, and never a crash on the way back."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptoss_lite import experiments_data, harmony
from gptoss_lite.errors import GptOssLiteError, TokenizerError
from gptoss_lite.tokenizer import Tokenizer, load_tokenizer
from tests import harmony_oracle, o200k

# The conversation of the format's documentation: system, developer, user, generation prompt.
RIDDLE_IDS = [
    *(200006, 17360, 200008, 3575, 553, 17554, 162016, 11, 261, 4410, 6439, 2359, 22203, 656),
    *(7788, 17527, 558, 87447, 100594, 25, 220, 1323, 19, 12, 3218, 198, 6576, 3521, 25, 220),
    *(1323, 20, 12, 3218, 12, 2029, 279, 30377, 289, 25, 1932, 279, 2, 13888, 18403, 25, 8450),
    *(11, 49159, 11, 1721, 13, 21030, 2804, 413, 7360, 395, 1753, 3176, 13, 200007, 200006),
    *(77944, 200008, 2, 68406, 279, 48258, 9570, 306, 151829, 1032, 200007, 200006, 1428),
    *(200008, 4827, 382, 220, 17, 659, 220, 17, 30, 200007, 200006, 173781),
]


@pytest.fixture(scope="module")
def real(pytestconfig: pytest.Config) -> Tokenizer:
    """The tokenizer of gpt-oss."""
    return load_tokenizer(o200k.folder(pytestconfig))


@pytest.fixture(scope="module")
def oracle(pytestconfig: pytest.Config) -> harmony_oracle.Oracle:
    pytest.importorskip("openai_harmony")
    return harmony_oracle.Oracle(o200k.folder(pytestconfig))


@cache
def nano() -> Tokenizer:
    return load_tokenizer("gpt-oss-nano")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small tokenizer of GPT-2's kind: byte-level, its split pattern, no chat format."""
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["the cat and the hat in the house that the man had"], trainer)
    bpe.add_special_tokens(["<|endoftext|>"])
    bpe.add_tokens(["<think>"])  # added, but not called special: Qwen3 has such tokens
    folder = tmp_path_factory.mktemp("gpt2")
    bpe.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


# --- Against OpenAI's library -------------------------------------------------------------------

PIECES = [
    "What is 12345 + 67?",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|endoftext|><|return|><|call|><|constrain|>",
    "naïve café – ‘quotes’…",
    "日本語のテキスト。한국어",
    "👩‍👩‍👧‍👦🇩🇪\u200d é ﷽",
    "def f(x):\n\treturn x  # tabs\r\n\r\n   ",
    "   leading, trailing   \n\n\n",
    "it's I'LL they've",
    "x" * 70,
    "http://example.org/a/b?c=1&d=%20",
    "\x00\x07\u2028\ufeff",
    "",
]
TOOLS: list[dict[str, Any]] = [
    harmony_oracle.WEATHER,
    {"name": "now", "description": "The time.\n\nIn UTC.\n"},
    {
        "name": "search",
        "description": "Search, “fuzzy”.",
        "parameters": {
            "type": "object",
            "description": "All of it.",
            "properties": {
                "query": {"type": "string", "title": "Query", "examples": ["cats", "dogs"]},
                "limit": {"type": ["integer", "null"], "default": 10},
                "filters": {
                    "type": "object",
                    "description": "Which ones.",
                    "properties": {
                        "tags": {"type": "array", "items": {"type": "string"}},
                        "score": {"type": "number", "default": 0.5, "nullable": True},
                        "nested": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {"deep": {"type": "boolean", "default": False}},
                            },
                        },
                    },
                    "required": ["tags"],
                },
                "mode": {"type": "string", "enum": ["a", "b"], "default": "a", "nullable": True},
                "tag": {"type": "string", "default": "höher"},
                "free": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "list": {"type": "array", "default": [1, "é", {"z": True}]},
            },
            "required": ["query"],
        },
    },
]
CONVERSATIONS = 240


def a_turn(rng: random.Random, finished: bool) -> list[dict[str, str]]:
    """Make up a turn: a question, some thinking, perhaps a tool call, and mostly an answer."""

    def text() -> str:
        return "".join(rng.choices(PIECES, k=rng.randint(1, 3)))

    turn = [{"role": "user", "content": text()}]
    if rng.random() < 0.7:
        turn.append({"role": "assistant", "channel": "analysis", "content": text()})
    for _ in range(rng.choice([0, 0, 1, 2])):
        tool = rng.choice(["functions.search", "functions.now", "python"])
        call = {
            "role": "assistant",
            "channel": rng.choice(["commentary", "analysis"]),
            "recipient": tool,
            "content": text(),
        }
        if rng.random() < 0.7:
            call["content_type"] = rng.choice(["<|constrain|>json", "json", "code"])
        answer = {"role": tool, "content": text(), "channel": "commentary"}
        turn += [call, {**answer, "recipient": "assistant"} if rng.random() < 0.5 else answer]
    if finished:
        turn.append({"role": "assistant", "channel": "final", "content": text()})
    return turn


def a_conversation(seed: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    rng = random.Random(seed)
    messages = []
    if rng.random() < 0.6:
        messages.append({"role": "developer", "content": rng.choice(PIECES)})
    for left in reversed(range(rng.randint(1, 3))):
        messages += a_turn(rng, finished=left > 0 or rng.random() < 0.5)
    options = {
        "effort": rng.choice(harmony.EFFORTS),
        "date": rng.choice([None, "2025-06-28"]),
        "tools": rng.sample(TOOLS, rng.choice([0, 0, 1, 3])),
        "ending": rng.choice(["prompt", "prompt", "history", "training"]),
    }
    return messages, options


def agrees_on_history(messages: list[dict[str, str]]) -> bool:
    """Say whether openai-harmony drops what its documentation says it drops.

    It leaves out the analysis before the first final answer, and only if the assistant spoke
    last on the final channel: right for one finished turn.
    """
    finals = [message for message in messages if message.get("channel") == "final"]
    spoken = [message for message in messages if message["role"] == "assistant"]
    return not finals or (len(finals) == 1 and spoken[-1] is finals[0])


def test_conversations_have_openais_ids(real: Tokenizer, oracle: harmony_oracle.Oracle) -> None:
    same_history = 0
    for seed in range(CONVERSATIONS):
        messages, options = a_conversation(seed)
        every = real.render(messages, drop_analysis=False, **options)
        assert every == oracle.render(messages, drop_analysis=False, **options), seed
        kept = harmony.without_old_analysis(messages)
        dropped = real.render(messages, **options)
        assert dropped == oracle.render(kept, drop_analysis=False, **options), seed
        if agrees_on_history(messages):
            assert dropped == oracle.render(messages, **options), seed
            same_history += 1
    assert same_history >= 60


def test_openai_keeps_the_analysis_of_a_second_finished_turn(
    real: Tokenizer, oracle: harmony_oracle.Oracle
) -> None:
    """The one place where we follow the documentation and not the library (0.0.8)."""
    turn = [harmony_oracle.QUESTION, harmony_oracle.THOUGHT, harmony_oracle.ANSWER]
    thought = harmony_oracle.THOUGHT["content"]
    assert real.decode(oracle.render([*turn, *turn])).count(thought) == 1
    assert real.decode(real.render([*turn, *turn])).count(thought) == 0


def test_replies_are_read_as_openai_reads_them(
    real: Tokenizer, oracle: harmony_oracle.Oracle
) -> None:
    start = [real.special_ids["<|start|>"], *real.encode("assistant")]
    for seed in range(100):
        turn = [m for m in a_turn(random.Random(seed), finished=True) if m["role"] == "assistant"]
        # openai-harmony reads a lone content type as a recipient
        turn = [m for m in turn if m.get("content_type") != "json" or "recipient" in m]
        ids = real.render(turn, drop_analysis=False, ending="training")
        reply = ids[ids.index(real.special_ids["<|end|>"]) + 1 :]
        assert reply[: len(start)] == start
        ours, theirs = real.parse(reply[len(start) :]), oracle.parse(reply[len(start) :])
        assert [dict(m) for m in ours] == theirs == turn, seed


def test_text_has_openais_ids(real: Tokenizer, oracle: harmony_oracle.Oracle) -> None:
    rng = random.Random(0)
    planes = [(0, 0x250), (0x250, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
    texts = PIECES + [
        "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randint(1, 60)))
        for _ in range(300)
    ]
    for text in texts:
        ids = real.encode(text)
        assert ids == oracle.encode(text), repr(text)
        assert real.decode(ids) == text


def test_golden_conversations(real: Tokenizer) -> None:
    golden = json.loads(harmony_oracle.GOLDEN.read_text(encoding="utf-8"))
    assert len(golden["cases"]) == len(harmony_oracle.GOLDEN_CASES)
    for case in golden["cases"]:
        assert real.render(case["messages"], **case["options"]) == case["ids"], case["name"]
    assert golden["cases"][0]["ids"] == RIDDLE_IDS


@pytest.mark.parametrize("name", ["riddles", "a tool call and an answer"])
def test_the_ids_that_the_book_shows(
    name: str, real: Tokenizer, oracle: harmony_oracle.Oracle
) -> None:
    case = experiments_data.harmony_ids(name)
    ids, options = case["ids"], case["options"]
    assert ids == oracle.render(case["messages"], **options)
    assert ids == real.render(case["messages"], **options)
    assert case["pieces"] == [real.token(i) for i in ids]
    text = harmony.text_of(harmony.render(case["messages"], **options))
    assert (
        "".join(case["pieces"]) == text == nano().decode(nano().render(case["messages"], **options))
    )


def test_the_87_ids_that_the_book_shows() -> None:
    assert experiments_data.harmony_ids()["ids"] == RIDDLE_IDS
    assert len(RIDDLE_IDS) == 87


def test_an_unknown_conversation_is_named() -> None:
    with pytest.raises(GptOssLiteError, match="No conversation 'poems' is stored"):
        experiments_data.harmony_ids("poems")


# --- The tokenizer itself -----------------------------------------------------------------------


def test_the_real_vocabulary(real: Tokenizer) -> None:
    assert real.vocab_size == 200_019
    assert real.stop_ids == (200_002, 200_012)
    assert {real.special_ids[name]: name for name in o200k.SPECIALS.values()} == o200k.SPECIALS
    assert len(real.special_ids) == 21
    assert real.encode("assistant") == [173_781]


def test_the_nano_vocabulary_has_the_same_names() -> None:
    tokenizer = nano()
    assert tokenizer.stop_ids == (
        tokenizer.special_ids["<|return|>"],
        tokenizer.special_ids["<|call|>"],
    )
    assert max(tokenizer.special_ids.values()) < tokenizer.vocab_size


def test_special_token_text_stays_text(real: Tokenizer) -> None:
    for name, i in real.special_ids.items():
        ids = real.encode(f"a{name}b")
        assert i not in ids
        assert max(ids) < 199_998
        assert real.decode(ids) == f"a{name}b"


def test_every_id_decodes(real: Tokenizer) -> None:
    assert real.decode([200_019, 201_087, 200_007]) == (
        "<|reserved_200019|><|reserved_201087|><|end|>"
    )
    assert real.decode([]) == ""
    assert real.decode([2**40]) == f"<|reserved_{2**40}|>"
    # A character cut in two: its bytes are no valid UTF-8 until both tokens are there.
    ids = real.encode("🫏")
    assert len(ids) > 1
    assert real.decode(ids[:1]) == "\ufffd"
    assert real.decode(ids) == "🫏"
    tokenizer = nano()
    everything = tokenizer.decode(range(tokenizer.vocab_size + 10))
    assert everything.endswith(f"<|reserved_{tokenizer.vocab_size + 9}|>")


def test_single_tokens_are_shown_safely(real: Tokenizer) -> None:
    assert real.token(real.encode(" the")[0]) == " the"
    assert real.token(200_006) == "<|start|>"
    assert real.token(200_100) == "<|reserved_200100|>"
    assert real.token(real.encode("🫏")[0]) == r"\xf0\x9f"
    shown = [nano().token(i) for i in range(nano().vocab_size)]
    assert all(isinstance(text, str) for text in shown)


def test_half_a_surrogate_pair_is_read_as_the_replacement_character(real: Tokenizer) -> None:
    assert real.encode("a\ud83d!") == real.encode("a\ufffd!")


def test_gpt2(gpt2: Tokenizer) -> None:
    text = "the cat's hat 123 — naïve 日本 <|endoftext|>\n"
    assert gpt2.decode(gpt2.encode(text)) == text
    assert len(gpt2.encode("the hat")) < 7
    assert gpt2.stop_ids == (gpt2.special_ids["<|endoftext|>"],)
    assert gpt2.stop_ids[0] not in gpt2.encode(text)
    assert gpt2.decode(gpt2.stop_ids) == "<|endoftext|>"
    assert gpt2.special_ids["<think>"] not in gpt2.encode("a <think> b")
    assert gpt2.decode([gpt2.special_ids["<think>"]]) == "<think>"
    assert gpt2.vocab_size == gpt2.special_ids["<think>"] + 1


def test_a_generation_prompt_is_no_message(real: Tokenizer) -> None:
    ids = real.render([{"role": "user", "content": "Hi"}])
    assert [message["role"] for message in real.parse(ids)] == ["system", "user"]


def test_truncated_and_odd_replies(real: Tokenizer) -> None:
    special = real.special_ids
    header = [special["<|channel|>"], *real.encode("final"), special["<|message|>"]]
    body = real.encode("The 🫏 answers")
    final = {"role": "assistant", "channel": "final"}
    whole = real.parse([*header, *body, special["<|return|>"]])
    assert whole == [{**final, "content": "The 🫏 answers"}]
    for cut in range(len(body)):
        (message,) = real.parse([*header, *body[:cut]])
        assert message == {**final, "content": real.decode(body[:cut])}
    odd = [*header, *real.encode("4"), special["<|reserved_200013|>"], 200_500]
    assert real.parse(odd) == [{**final, "content": "4<|reserved_200013|><|reserved_200500|>"}]
    ended = [*header, *real.encode("4"), special["<|endoftext|>"], *real.encode("more")]
    assert real.parse(ended) == [
        {**final, "content": "4"},
        {"role": "assistant", "content": "more"},
    ]
    spelled = [*header, *real.encode("<|end|>")]
    assert real.parse(spelled) == [{**final, "content": "<|end|>"}]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3000)))
def test_no_ids_crash_the_way_back(ids: list[int]) -> None:
    nano().decode(ids)
    nano().parse(ids)


ONE_WORD = st.from_regex(r"[a-z]+\.[a-z_]+", fullmatch=True)
CONTENT = st.text() | st.sampled_from(PIECES)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": CONTENT}),
    st.fixed_dictionaries(
        {
            "role": st.just("assistant"),
            "content": CONTENT,
            "channel": st.sampled_from(["analysis", "commentary", "final"]),
        },
        optional={
            "recipient": ONE_WORD,
            "content_type": st.sampled_from(["<|constrain|>json", "code"]),
        },
    ),
    st.fixed_dictionaries(
        {"role": ONE_WORD, "content": CONTENT, "recipient": st.just("assistant")}
    ),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(MESSAGE, max_size=5))
def test_what_is_rendered_is_parsed_back(messages: list[dict[str, str]]) -> None:
    tokenizer = nano()
    ids = tokenizer.render(messages, drop_analysis=False)
    system, *parsed = tokenizer.parse(ids)
    assert parsed == messages
    assert system == {"role": "system", "content": harmony.system_text()}
    assert tokenizer.render([system, *parsed], drop_analysis=False) == ids


# --- Mistakes -----------------------------------------------------------------------------------


def test_a_negative_id_is_refused() -> None:
    for call in (nano().decode, nano().parse, lambda ids: nano().token(ids[-1])):
        with pytest.raises(TokenizerError) as caught:
            call([5, -1])
        assert str(caught.value) == "token id -1 is negative: ids count from 0."


def test_a_tokenizer_without_harmony_says_so(gpt2: Tokenizer) -> None:
    sentence = (
        "this tokenizer has no <|start|>, <|channel|>, <|constrain|>, <|message|>, <|end|>, "
        "<|return|>, <|call|>, so it cannot write or read a conversation: use encode and decode, "
        'or the tokenizer of "gpt-oss-nano".'
    )
    with pytest.raises(TokenizerError) as caught:
        gpt2.render([{"role": "user", "content": "Hi"}])
    assert str(caught.value) == sentence
    with pytest.raises(TokenizerError) as caught:
        gpt2.parse([1, 2])
    assert str(caught.value) == sentence


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"There is no tokenizer.json in {tmp_path} or {tmp_path / 'original'}, which holds "
        'config.json. Without a network, use the bundled model "gpt-oss-nano".'
    )
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(tmp_path / "tokenizer.json")
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.json'} does not exist: copy the model's tokenizer.json there, "
        'or use the bundled "gpt-oss-nano".'
    )


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "Nonsense"}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a readable tokenizer file (")
    assert message.endswith("): download it again.")
    assert "\n" not in message


def test_original_layout_uses_the_tokenizer_of_the_parent(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    packaged = Path(str(harmony.__file__)).parent / "data" / "gpt-oss-nano" / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(packaged.read_bytes())
    assert load_tokenizer(original).special_ids == nano().special_ids
