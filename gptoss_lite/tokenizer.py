"""Text to token ids and back, for every tokenizer.json of the ladder (GPT-2, gpt-oss, Qwen3).

The byte-pair merging itself is done by the `tokenizers` library. What this file adds is what a
chat model needs around it: text from a user never turns into a special token, any id a model can
emit decodes to something visible, and a conversation becomes ids and comes back as messages.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import tokenizers

from gptoss_lite import harmony, hub
from gptoss_lite.errors import TokenizerError

# Models without harmony stop at the end of the text (GPT-2) or of their chat turn (Qwen3).
OTHER_STOPS = ("<|endoftext|>", "<|im_end|>")


class Tokenizer:
    """One tokenizer.json, with the harmony chat format on top if it has the special tokens.

    Ids are always looked up by name: `<|return|>` is 200002 for gpt-oss and another number for
    the bundled nano model.

    Attributes:
        special_ids: id of every special token, by name.
        stop_ids: ids that end a reply: `<|return|>` and `<|call|>`; without harmony, end of text.
        vocab_size: how many ids have an entry. A model's embedding can have more rows: 201,088
            for gpt-oss, whose tokenizer.json knows 200,019.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read a tokenizer.json; `load_tokenizer` finds one by name."""
        self._bpe = _read(Path(path))
        added = self._bpe.get_added_tokens_decoder()
        self.special_ids: dict[str, int] = {token.content: i for i, token in sorted(added.items())}
        # From here on "<|end|>" inside a text is seven ordinary characters. Some tokenizers add
        # tokens without calling them special (Qwen3's <think>); those must not match either.
        self._bpe.add_special_tokens(list(self.special_ids))
        self._bpe.encode_special_tokens = True
        self.vocab_size: int = self._bpe.get_vocab_size()
        self._special_names = {i: name for name, i in self.special_ids.items()}
        names = OTHER_STOPS if self._missing_harmony() else (harmony.RETURN, harmony.CALL)
        self.stop_ids: tuple[int, ...] = tuple(
            self.special_ids[name] for name in names if name in self.special_ids
        )

    def encode(self, text: str) -> list[int]:
        """Turn text into ids; the names of special tokens in it stay ordinary text.

        Args:
            text: any string; half of a surrogate pair is read as the replacement character.

        Returns:
            Ids, without anything put before or after them.
        """
        sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._bpe.encode(sound, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; special tokens appear by name, ids without an entry too.

        gpt-oss has logits for 1,069 ids that no token belongs to, so a model can emit them; they
        come out as `<|reserved_200019|>` and so on. Bytes that are no valid UTF-8 come out as the
        replacement character.

        Raises:
            TokenizerError: a negative id.
        """
        runs = groupby(map(int, ids), key=self._is_text)
        return "".join(
            self._bpe.decode(list(run), skip_special_tokens=False)
            if is_text
            else "".join(self._name(i) for i in run)
            for is_text, run in runs
        )

    def token(self, i: int) -> str:
        r"""Show one token on its own; bytes that are only part of a character show as `\xe2`."""
        if not self._is_text(i):
            return self._name(i)
        piece = self._bpe.id_to_token(i) or ""
        try:
            return bytes(_BYTE_OF[char] for char in piece).decode("utf-8", "backslashreplace")
        except KeyError:  # not a byte-level vocabulary: the entry already is text
            return piece

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        effort: str = "medium",
        *,
        date: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        drop_analysis: bool = True,
        ending: Literal["prompt", "history", "training"] = "prompt",
    ) -> list[int]:
        """Turn a conversation into the ids of a prompt that ends in `<|start|>assistant`.

        Args:
            messages: `{"role", "content"}` dicts, see `harmony.Message`.
            effort: "low", "medium" or "high".
            date: see `harmony.render`, as are the rest.
            tools: functions the model may call.
            drop_analysis: leave out the chains of thought of finished turns.
            ending: "prompt", "history" or "training".

        Raises:
            TokenizerError: a tokenizer without the harmony tokens, or a message harmony rejects.
        """
        self._require_harmony()
        parts = harmony.render(
            messages,
            effort=effort,
            date=date,
            tools=tools,
            drop_analysis=drop_analysis,
            ending=ending,
        )
        ids: list[int] = []
        for part in parts:
            ids += [self.special_ids[part.text]] if part.special else self.encode(part.text)
        return ids

    def parse(self, ids: Iterable[int]) -> list[harmony.Message]:
        """Turn a model's reply, or a whole rendered conversation, into messages.

        A reply that was cut off or is malformed gives the messages that can be made out; see
        `harmony.parse`.

        Raises:
            TokenizerError: a tokenizer without the harmony tokens, or a negative id.
        """
        self._require_harmony()
        return harmony.parse(self._parts(ids))

    def _parts(self, ids: Iterable[int]) -> Iterator[harmony.Part]:
        """Cut ids at the tokens that structure a conversation."""
        structure = {*harmony.SPECIAL_TOKENS, *harmony.MESSAGE_ENDS}
        names = {self.special_ids[name]: name for name in structure if name in self.special_ids}
        for is_text, run in groupby(map(int, ids), key=lambda i: i not in names):
            if is_text:
                yield harmony.Part(self.decode(run))
            else:
                yield from (harmony.Part(names[i], True) for i in run)

    def _is_text(self, i: int) -> bool:
        """Is this an ordinary token (not special, and with an entry)?"""
        if i < 0:
            raise TokenizerError(f"token id {i} is negative: ids count from 0.")
        return i not in self._special_names and i < _ID_LIMIT and bool(self._bpe.id_to_token(i))

    def _name(self, i: int) -> str:
        return self._special_names.get(i, f"<|reserved_{i}|>")

    def _missing_harmony(self) -> list[str]:
        return [name for name in harmony.SPECIAL_TOKENS if name not in self.special_ids]

    def _require_harmony(self) -> None:
        if missing := self._missing_harmony():
            raise TokenizerError(
                f"this tokenizer has no {', '.join(missing)}, so it cannot write or read a "
                'conversation: use encode and decode, or the tokenizer of "gpt-oss-nano".'
            )


def load_tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    """Load the tokenizer that belongs to a model.

    Args:
        source: a preset name ("gpt-oss-nano", "gpt-oss-20b", "gpt2", ...), a hub id, or a folder
            with a tokenizer.json. For the `original/` layout, the parent folder is searched too.

    Returns:
        A tokenizer; the same calls work for every family.

    Raises:
        TokenizerError: tokenizer.json is missing or damaged.
        CheckpointError: no such folder, name or repository.

    Example:
        >>> tokenizer = load_tokenizer("gpt-oss-nano")
        >>> tokenizer.decode(tokenizer.encode("Hello, world"))
        'Hello, world'
        >>> ids = tokenizer.render([{"role": "user", "content": "What is 2 + 2?"}], effort="low")
        >>> tokenizer.parse(ids)[-1]
        {'role': 'user', 'content': 'What is 2 + 2?'}
    """
    return Tokenizer(hub.find(source, want="tokenizer") / "tokenizer.json")


def _read(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise TokenizerError(
            f"{path} does not exist: copy the model's tokenizer.json there, "
            'or use the bundled "gpt-oss-nano".'
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        raise TokenizerError(
            f"{path} is not a readable tokenizer file ({error}): download it again."
        ) from error


# tokenizers takes ids as unsigned 32-bit integers.
_ID_LIMIT = 2**32


def _byte_alphabet() -> dict[str, int]:
    """Map the characters that byte-level BPE writes for bytes back to the bytes.

    Printable Latin-1 bytes stand for themselves, the other 68 for the characters from 256 on, so
    that a vocabulary file holds no spaces or control characters.

    Source:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    chars = {chr(byte): byte for byte in printable}
    return chars | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
