"""From a prompt to text: sampling, the token-by-token loop, and a one-line chat."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from operator import index
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_lite.cache import KVCache
from gptoss_lite.checkpoint import load
from gptoss_lite.errors import GptOssLiteError, ShapeError
from gptoss_lite.kernels import decode
from gptoss_lite.model import Transformer
from gptoss_lite.tokenizer import load_tokenizer

PREFILL_CHUNK = 512  # prompt tokens read at once: bounds the [H, T, S] scores
WORTH_RECORDING = 16  # tokens from which on recording a step for the GPU pays
SHOWN = 60  # characters of a wrong argument that a message repeats
PHRASES = (3, 2)  # tokens that must match before `lookup` guesses; the longer match wins


def sample(
    logits: Float[Tensor, " V"],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Pick the next token.

    Args:
        logits: one score for each token of the vocabulary.
        temperature: 0 takes the most likely token; 1 samples from the model's distribution.
        top_k: keep only the k most likely tokens.
        top_p: keep the fewest most likely tokens whose probabilities reach p ("nucleus").
        generator: the random numbers; pass a seeded one to repeat a draw.

    Raises:
        ShapeError: logits that are not finite.

    Source:
        Holtzman et al. 2020, section 3.1 (top-p); Fan et al. 2018, section 5.4 (top-k).

    Example:
        >>> sample(torch.tensor([0.0, 2.0, 1.0]))
        1
    """
    if not torch.isfinite(logits).all():
        raise ShapeError(
            "The model's logits are not finite: its weights are damaged, or float16 overflowed. "
            "Run `gptoss-lite verify` on the checkpoint, or load it with dtype=torch.float32."
        )
    if temperature == 0:
        return int(logits.argmax())
    scores = logits.float() / temperature
    if not torch.isfinite(scores).all():  # a tiny temperature: only the differences are small
        scores = ((logits.double() - logits.max()) / temperature).float()
    scores, ids = scores.sort(descending=True, stable=True)
    probs = scores[:top_k].softmax(-1)
    if top_p is not None:
        before = probs.cumsum(-1) - probs  # mass of the tokens ahead of each one
        kept = before < top_p
        kept[0] = True  # 0 < top_p, too, where float32 rounds top_p to 0
        probs = probs * kept
    probs = probs.to(generator.device) if generator else probs
    return int(ids[int(torch.multinomial(probs, 1, generator=generator))])


def generate(
    model: Transformer,
    ids: Iterable[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Iterable[int] = (),
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
    lookup: int = 0,
) -> Iterator[int]:
    """Continue a prompt, yielding each new token id as soon as it is known.

    The prompt is read in chunks into a KV cache; then each step reads one token. The stop id is
    yielded too, so that the caller sees why the text ended. Ends early where the model's context
    is full. On a CUDA device the step is recorded once and replayed (`kernels.decode`), unless the
    caller has given a cache, wants guesses, has a trace open or hooks set. Where a trace is opened
    or a hook set between two tokens, the next step is a plain one.

    With `lookup`, a step also reads tokens that are only guessed: where the last few tokens stood
    in the text before, it guesses that what followed then follows now. The model's own choices
    decide how many of the guesses stay, so the text is the greedy one. (Reading several tokens at
    once rounds differently in the last bit. In float32 that shows only where two tokens tie; in
    bfloat16, whose logits are coarse, near ties are common, and a text can then part from the one
    without `lookup`, each as good a greedy text.) It pays where texts repeat themselves: copying,
    editing, code. A wrong guess is not free: in a mixture of experts each token reads experts of
    its own.

    Args:
        model: any Transformer, on any device.
        ids: the prompt.
        max_new_tokens: at most this many.
        temperature: see `sample`, as are the next two and `generator`.
        top_k: the k most likely only.
        top_p: the nucleus only.
        stop: ids that end the text, such as `tokenizer.stop_ids`.
        generator: seeded random numbers.
        cache: holds what an earlier call has read and is left with what this one reads, so that
            the next turn of a conversation reads only what is new. Where the texts part, it goes
            back; if its slack is too small for that, it starts again.
        lookup: guess at most this many tokens a step; 0 guesses none. Greedy only.

    Raises:
        ShapeError: an empty or too long prompt, one that is not a row of ids, a setting out of
            range, or a cache of another model, of several rows, or that something else has filled.

    Source:
        Saxena 2023, "Prompt Lookup Decoding" (`lookup`).
    """
    prompt, stops = _row("ids", ids), frozenset(_row("stop", stop))
    _check_settings(max_new_tokens, temperature, top_k, top_p)
    _check_lookup(lookup, temperature)
    records = cache is None and not lookup
    cache = KVCache(model.config, slack=lookup) if cache is None else cache
    _check_cache(cache, model, lookup)
    room = _room(model, prompt, max_new_tokens)

    def pick(logits: Tensor) -> int:
        return sample(logits, temperature, top_k, top_p, generator)

    return _loop(model, prompt, room, pick, stops, cache, lookup, records)


def generate_batch(
    model: Transformer,
    prompts: Iterable[Iterable[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Iterable[int] = (),
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Continue several prompts side by side and return what `generate` yields for each.

    What all prompts begin with is read once. From there on the rows keep step, so that every row
    is at the same position and none is padded: one whose prompt is longer goes on reading while
    another already writes. A row that has ended leaves the batch.

    A step reads each weight once for all rows. That saves nearly everything in the dense matrices,
    less in the experts: 4 rows that choose 4 of 32 each at random need 13 of them. Prompts of about
    one length pay best, for a step that reads a longer prompt token by token reads it slowly.

    Args:
        model: any Transformer, on any device.
        prompts: token ids of each; the same one several times samples several answers.
        max_new_tokens: at most this many for each.
        temperature: see `sample`, as are the next two.
        top_k: the k most likely only.
        top_p: the nucleus only.
        stop: ids that end a row; the last of its tokens, as in `generate`.
        generator: seeded random numbers, drawn from row by row: a seed repeats the batch, not
            what `generate` would draw.

    Raises:
        ShapeError: as `generate` does.
    """
    texts = [_row("prompts", ids) for ids in prompts]
    _check_settings(max_new_tokens, temperature, top_k, top_p)
    ends = [len(text) + _room(model, text, max_new_tokens) for text in texts]
    starts, stops = [len(text) for text in texts], frozenset(_row("stop", stop))
    if not texts or not max_new_tokens:
        return [[] for _ in texts]
    rows, cache = list(range(len(texts))), _shared_start(model, texts)

    def is_open(row: int) -> bool:
        text = texts[row]
        return len(text) == starts[row] or (len(text) < ends[row] and text[-1] not in stops)

    while rows:
        logits = _keep_step(model, [texts[row] for row in rows], cache)
        for row, scores in zip(rows, logits, strict=True):
            if len(texts[row]) == cache.n_seen:
                texts[row].append(sample(scores, temperature, top_k, top_p, generator))
        left = [place for place, row in enumerate(rows) if is_open(row)]
        if len(left) < len(rows):
            rows, cache = [rows[place] for place in left], cache.select(left)
    return [text[start:] for text, start in zip(texts, starts, strict=True)]


def _shared_start(model: Transformer, texts: Sequence[list[int]]) -> KVCache:
    """Read what all texts begin with once; return a cache with one row for each."""
    cache, shortest = KVCache(model.config), min(texts, key=len)
    n_shared = min(_n_shared(shortest[:-1], text) for text in texts)
    _read(model, shortest[:n_shared], cache)
    return cache.select([0] * len(texts))


@torch.no_grad()
def _keep_step(
    model: Transformer, texts: Sequence[list[int]], cache: KVCache
) -> Float[Tensor, "B V"]:
    """Read every row on to the end of the shortest; return the logits after each row's last."""
    seen, limit = cache.n_seen, max(1, PREFILL_CHUNK // len(texts))
    n_new = min(limit, min(map(len, texts)) - seen)
    chunk = torch.tensor([text[seen : seen + n_new] for text in texts], device=model.device)
    return model.unembed(model.hidden(chunk, cache)[:, -1:])[:, -1]


def _room(model: Transformer, prompt: list[int], max_new_tokens: int) -> int:
    """Return how many tokens can be written after a prompt."""
    context = model.config.context
    if not prompt:
        raise ShapeError("The prompt is empty: give at least one token to go on from.")
    if len(prompt) >= context:
        raise ShapeError(
            f"The prompt has {len(prompt):,} tokens; this model reads 1 to {context - 1:,} and "
            "writes after them. Shorten the prompt."
        )
    return min(max_new_tokens, context - len(prompt))


def _row(name: str, ids: Iterable[int]) -> list[int]:
    """Return token ids as Python's integers."""
    try:
        return [index(i) for i in ids]
    except TypeError:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else repr(ids)
        raise ShapeError(
            f"{name} must be token ids, whole numbers in one row such as [5, 7]; got {got[:SHOWN]}."
        ) from None


def _check_whole(name: str, value: int) -> None:
    try:
        index(value)
    except TypeError:
        raise ShapeError(f"{name}={value!r} must be a whole number.") from None


def _check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    _check_whole("max_new_tokens", max_new_tokens)
    if max_new_tokens < 0:
        raise ShapeError(f"max_new_tokens={max_new_tokens} cannot be negative.")
    if not 0 <= temperature < float("inf"):
        raise ShapeError(f"temperature={temperature} must be 0 (greedy) or a positive number.")
    if top_k is not None:
        _check_whole("top_k", top_k)
    if top_k is not None and top_k < 1:
        raise ShapeError(f"top_k={top_k} must be at least 1, or None to keep all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ShapeError(f"top_p={top_p} must be above 0 and at most 1, or None.")


def _check_lookup(lookup: int, temperature: float) -> None:
    _check_whole("lookup", lookup)
    if lookup < 0:
        raise ShapeError(f"lookup={lookup} cannot be negative.")
    if lookup and temperature:
        raise ShapeError(
            f"lookup={lookup} needs greedy text, but temperature={temperature} draws at random. "
            "Set one of them to 0."
        )


def _check_cache(cache: KVCache, model: Transformer, lookup: int) -> None:
    if cache.config != model.config:
        raise ShapeError("This cache is of another model. Make one with KVCache(model.config).")
    if cache.n_seen != len(cache.ids):
        raise ShapeError(
            f"This cache has seen {cache.n_seen:,} tokens but knows the ids of {len(cache.ids):,}: "
            "it has several rows, or was filled by calling the model. Give generate() an empty one."
        )
    if cache.slack < lookup:
        raise ShapeError(
            f"lookup={lookup} must be able to take back {lookup} tokens, this cache {cache.slack}. "
            f"Make it with KVCache(model.config, slack={lookup})."
        )


def _n_shared(a: Iterable[int], b: Iterable[int]) -> int:
    """Count the tokens that two texts have in common from their start on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@torch.no_grad()
def _read(model: Transformer, tokens: list[int], cache: KVCache) -> None:
    """Read tokens into the cache, in chunks."""
    for start in range(0, len(tokens), PREFILL_CHUNK):
        chunk = tokens[start : start + PREFILL_CHUNK]
        model.hidden(torch.tensor([chunk], device=model.device), cache)
        cache.ids += chunk


@torch.no_grad()
def _next_logits(
    model: Transformer, tokens: list[int], cache: KVCache, n_last: int = 1
) -> Float[Tensor, "n V"]:
    """Read tokens into the cache; return the logits after each of the last few only."""
    chunk = torch.tensor([tokens], device=model.device)
    if n_last == len(tokens):
        logits = model(chunk, cache)
    else:
        logits = model.unembed(model.hidden(chunk, cache)[:, -n_last:])
    cache.ids += tokens
    return logits[0]


def _loop(
    model: Transformer,
    prompt: list[int],
    room: int,
    pick: Callable[[Tensor], int],
    stop: frozenset[int],
    cache: KVCache,
    lookup: int,
    records: bool,
) -> Iterator[int]:
    if room == 0:
        return
    n_kept = _n_shared(cache.ids, prompt[:-1])  # the last one is read anew: its logits are needed
    cache.truncate(n_kept if cache.can_truncate(n_kept) else 0)
    unread = prompt[cache.n_seen :]
    n_last = (len(unread) - 1) % PREFILL_CHUNK + 1
    _read(model, unread[:-n_last], cache)
    text, end, phrases = list(prompt), len(prompt) + room, _Phrases()
    logits, draft = _next_logits(model, unread[-n_last:], cache), []
    read = _reader(model, cache, end if records and room >= WORTH_RECORDING else None)
    while True:
        new = _accepted(logits, draft, pick, stop)
        text += new
        if draft:
            cache.truncate(len(text) - 1)  # forget the wrong guesses; the newest is unread
        yield from new
        if len(text) == end or new[-1] in stop:
            return
        draft = phrases.guess(text, min(lookup, end - len(text) - 1)) if lookup else []
        logits = read([new[-1], *draft])


def _reader(
    model: Transformer, cache: KVCache, most: int | None
) -> Callable[[list[int]], Float[Tensor, "n V"]]:
    """Return what reads the next tokens and gives a row of logits for each.

    If the text's greatest length `most` is given, the steps may be recorded; then the cache is
    emptied.
    """

    def plain(tokens: list[int]) -> Tensor:
        return _next_logits(model, tokens, cache, len(tokens))

    if most is None or decode.why_not(model):
        return plain
    hooks, decoder = decode.hooks(model), None

    def recorded(tokens: list[int]) -> Tensor:
        nonlocal cache, decoder
        if any(hooks):  # which a recorded step would not call; a trace sets some, too
            cache, decoder = decoder.cache() if decoder else cache, None
            return plain(tokens)
        decoder = decoder or decode.Decoder(model, cache, most=most, empties=True)
        return decoder(*tokens)[None]

    return recorded


def _accepted(
    logits: Float[Tensor, "n V"],
    draft: list[int],
    pick: Callable[[Tensor], int],
    stop: frozenset[int],
) -> list[int]:
    """Return the model's own choices: as long as the draft agrees with them, and one more."""
    new: list[int] = []
    for scores, guessed in zip(logits, [*draft, None], strict=True):
        new.append(pick(scores))
        if new[-1] != guessed or new[-1] in stop:
            break
    return new


class _Phrases:
    """Where each short run of tokens last stood in a growing text, to guess what comes next."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # place of the token that followed
        self._n_known = 0

    def guess(self, text: list[int], n: int) -> list[int]:
        """Return n tokens that followed the text's last few before, or none.

        Where they reach the end of the text they go on with themselves: after "abcabcab" come
        "cabcab...".
        """
        for place in range(self._n_known, len(text)):
            for size in PHRASES:
                if size <= place:
                    self._after[tuple(text[place - size : place])] = place
        self._n_known = len(text)
        for size in PHRASES:
            if place := self._after.get(tuple(text[-size:])):
                followed = text[place : place + n]
                return [followed[i % len(followed)] for i in range(n)]
        return []


def chat(
    source_or_model: str | Path | Transformer,
    question: str,
    effort: str = "low",
    *,
    max_new_tokens: int = 1_024,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> str:
    """Ask one question and return the final answer: the whole path in a line.

    Args:
        source_or_model: what `load` takes, or a model it returned.
        question: the user's message.
        effort: "low", "medium" or "high"; how long the model reasons before it answers.
        max_new_tokens: for reasoning and answer together.
        temperature: 0 is greedy; OpenAI recommends 1.0 for gpt-oss.
        generator: seeded random numbers.

    Raises:
        GptOssLiteError: no final answer within `max_new_tokens`, or only the start of one.
    """
    is_model = isinstance(source_or_model, Transformer)
    model = source_or_model if is_model else load(source_or_model, progress=False)
    if model.source is None:
        raise GptOssLiteError(
            "This model was not loaded from a folder, so its tokenizer is unknown. Use load(), or "
            "generate() with token ids."
        )
    tokenizer = load_tokenizer(model.source)
    prompt = tokenizer.render([{"role": "user", "content": question}], effort=effort)
    settings = {"temperature": temperature, "generator": generator, "stop": tokenizer.stop_ids}
    reply = list(generate(model, prompt, max_new_tokens=max_new_tokens, **settings))
    if not reply or reply[-1] not in tokenizer.stop_ids:
        full = len(prompt) + len(reply) == model.config.context
        more = "Shorten the question" if full else "Raise max_new_tokens"
        raise GptOssLiteError(
            f"No final answer within {len(reply):,} tokens: the reply was cut off. {more} or lower "
            f"the effort (now {effort!r})."
        )
    finals = [m["content"] for m in tokenizer.parse(reply) if m.get("channel") == "final"]
    if not finals:
        raise GptOssLiteError(
            f"The model ended its reply after {len(reply):,} tokens without a final answer. Ask in "
            "other words or with another effort."
        )
    return finals[-1]
