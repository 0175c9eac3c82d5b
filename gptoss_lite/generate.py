"""From a prompt to text: sampling, the token-by-token loop, and a one-line chat."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_lite.cache import KVCache
from gptoss_lite.checkpoint import load
from gptoss_lite.errors import GptOssLiteError, ShapeError
from gptoss_lite.model import Transformer
from gptoss_lite.tokenizer import load_tokenizer

PREFILL_CHUNK = 512  # prompt tokens read at once: bounds the [H, T, S] scores


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
    scores, ids = (logits.float() / temperature).sort(descending=True, stable=True)
    probs = scores[:top_k].softmax(-1)
    if top_p is not None:
        before = probs.cumsum(-1) - probs  # mass of the tokens ahead of each one
        probs = probs * (before < top_p)
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
) -> Iterator[int]:
    """Continue a prompt, yielding each new token id as soon as it is known.

    The prompt is read in chunks into a KV cache; then each step reads one token. The stop id is
    yielded too, so that the caller sees why the text ended. Ends early where the model's context
    is full.

    Args:
        model: any Transformer, on any device.
        ids: the prompt.
        max_new_tokens: at most this many.
        temperature: see `sample`, as are the next two and `generator`.
        top_k: the k most likely only.
        top_p: the nucleus only.
        stop: ids that end the text, such as `tokenizer.stop_ids`.
        generator: seeded random numbers.

    Raises:
        ShapeError: an empty or too long prompt, or a sampling setting out of range.
    """
    prompt = [int(i) for i in ids]
    _check_settings(max_new_tokens, temperature, top_k, top_p)
    context = model.config.context
    if not 0 < len(prompt) < context:
        raise ShapeError(
            f"The prompt has {len(prompt):,} tokens; this model reads 1 to {context - 1:,} and "
            "writes after them. Shorten the prompt."
        )
    room = min(max_new_tokens, context - len(prompt))

    def pick(logits: Tensor) -> int:
        return sample(logits, temperature, top_k, top_p, generator)

    return _loop(model, prompt, room, pick, frozenset(stop))


def _check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if max_new_tokens < 0:
        raise ShapeError(f"max_new_tokens={max_new_tokens} cannot be negative.")
    if not 0 <= temperature < float("inf"):
        raise ShapeError(f"temperature={temperature} must be 0 (greedy) or a positive number.")
    if top_k is not None and top_k < 1:
        raise ShapeError(f"top_k={top_k} must be at least 1, or None to keep all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ShapeError(f"top_p={top_p} must be above 0 and at most 1, or None.")


@torch.no_grad()
def _next_logits(model: Transformer, tokens: list[int], cache: KVCache) -> Float[Tensor, " V"]:
    """Read tokens into the cache; return the logits after the last one only."""
    chunk = torch.tensor([tokens], device=model.device)
    return model.unembed(model.hidden(chunk, cache)[:, -1:])[0, -1]


def _loop(
    model: Transformer,
    prompt: list[int],
    room: int,
    pick: Callable[[Tensor], int],
    stop: frozenset[int],
) -> Iterator[int]:
    if room == 0:
        return
    cache = KVCache(model.config)
    *chunks, last = [prompt[i : i + PREFILL_CHUNK] for i in range(0, len(prompt), PREFILL_CHUNK)]
    for chunk in chunks:
        with torch.no_grad():
            model.hidden(torch.tensor([chunk], device=model.device), cache)
    token = pick(_next_logits(model, last, cache))
    yield token
    for _ in range(room - 1):
        if token in stop:
            return
        token = pick(_next_logits(model, [token], cache))
        yield token


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
        GptOssLiteError: no final answer within `max_new_tokens`.
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
    finals = [m["content"] for m in tokenizer.parse(reply) if m.get("channel") == "final"]
    if not finals:
        raise GptOssLiteError(
            f"No final answer within {len(reply):,} tokens of reasoning. Raise max_new_tokens or "
            f"lower the effort (now {effort!r})."
        )
    return finals[-1]
