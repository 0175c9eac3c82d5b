"""The KV cache: keys and values of past tokens, so that a new token costs one row of attention."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ShapeError

Pair = tuple[Float[Tensor, "B K S hd"], Float[Tensor, "B K S hd"]]
# Buffers of keys and values [B K capacity hd], the first row that a token sees, and its own row.
Row = tuple[Tensor, Tensor, int, int]


class FullCache:
    """Every token's rotated keys and values, in a buffer that grows by a quarter when full."""

    def __init__(self) -> None:
        self.length = 0  # tokens held
        self._buffer: Tensor | None = None  # [2 B K capacity hd], keys then values

    def append(self, k: Float[Tensor, "B K T hd"], v: Float[Tensor, "B K T hd"]) -> Pair:
        """Add T new tokens; return the keys and values of all tokens so far, the newest last."""
        end = self.length + k.shape[2]
        if self._buffer is None or end > self._buffer.shape[3]:
            self._buffer = self._grown(k, end)
        self._buffer[0, :, :, self.length : end] = k
        self._buffer[1, :, :, self.length : end] = v
        self.length = end
        return self._buffer[0, :, :, :end], self._buffer[1, :, :, :end]

    def next_row(self) -> Row | None:
        """Say where the next token goes and what it sees; None if nothing is free for it."""
        if self._buffer is None or self.length == self._buffer.shape[3]:
            return None
        return self._buffer[0], self._buffer[1], 0, self.length

    def claim_row(self) -> None:
        """Count the token whose key and value the caller has written to `next_row`."""
        self.length += 1

    def _grown(self, k: Tensor, needed: int) -> Tensor:
        batch, heads, _, width = k.shape
        # A quarter of a long context is memory enough to leave unused.
        capacity = max(needed, self.length + max(64, self.length // 4))
        grown = k.new_empty(2, batch, heads, capacity, width)
        if self._buffer is not None:
            grown[:, :, :, : self.length] = self._buffer[:, :, :, : self.length]
        return grown

    def can_truncate(self, length: int) -> bool:
        """Can it go back to the first `length` tokens? It holds them all."""
        return length <= self.length

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; to forget them all gives the memory back."""
        self.length = length
        if length == 0:
            self._buffer = None

    def select(self, rows: Sequence[int]) -> "FullCache":
        """Return a cache of its own with copies of these rows of the batch."""
        chosen = FullCache()
        if self._buffer is not None:
            chosen._buffer = self._buffer[:, list(rows), :, : self.length]
            chosen.length = self.length
        return chosen

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values held, the buffer's spare room not counted."""
        return 0 if self._buffer is None else self._buffer[:, :, :, : self.length].nbytes


class SlidingCache:
    """The last `window` tokens' rotated keys and values; older ones are forgotten.

    New tokens are written behind the old ones into buffers with room for `window` more. When the
    room is used up, what is still needed moves to the front of new buffers: once in `window`
    steps, so that a step costs one write.

    Args:
        window: number of keys a query sees, itself included.
        slack: how many older tokens stay, so that as many newer ones can be taken back.
    """

    def __init__(self, window: int, slack: int = 0) -> None:
        self.window, self.slack = window, slack
        self.length = 0  # tokens seen
        self._held = 0  # of which the newest stand at the front of the buffers
        self._keys: Tensor | None = None  # [B K capacity hd]
        self._values: Tensor | None = None

    def append(self, k: Float[Tensor, "B K T hd"], v: Float[Tensor, "B K T hd"]) -> Pair:
        """Add T new tokens; return them behind the window - 1 tokens that they may still see."""
        n_new = k.shape[2]
        end = self._held + n_new
        start = max(0, self._held - (self.window - 1))
        self.length += n_new
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            k, v = self._renewed(k, v)
        else:
            self._keys[:, :, self._held : end] = k
            self._values[:, :, self._held : end] = v
            k, v, self._held = self._keys, self._values, end
        return k[:, :, start:end], v[:, :, start:end]

    def next_row(self) -> Row | None:
        """Say where the next token goes and what it sees; None if nothing is free for it."""
        if self._keys is None or self._values is None or self._held == self._keys.shape[2]:
            return None
        return self._keys, self._values, max(0, self._held - (self.window - 1)), self._held

    def claim_row(self) -> None:
        """Count the token whose key and value the caller has written to `next_row`."""
        self.length += 1
        self._held += 1

    def _renewed(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Move what is kept to new buffers; return all that was held, and the new tokens."""
        if self._keys is not None and self._values is not None:
            k = torch.cat((self._keys[:, :, : self._held], k), dim=2)
            v = torch.cat((self._values[:, :, : self._held], v), dim=2)
        kept = self.window + self.slack
        self._held = min(kept, k.shape[2])
        batch, heads, _, width = k.shape
        # Copies, or a view of one long prompt would keep the whole of it in memory.
        self._keys, self._values = k.new_empty(2, batch, heads, kept + self.window, width)
        self._keys[:, :, : self._held] = k[:, :, -kept:]
        self._values[:, :, : self._held] = v[:, :, -kept:]
        return k, v

    def can_truncate(self, length: int) -> bool:
        """Can it go back to the first `length` tokens, and hold the last window of them?"""
        n_left = self._held - (self.length - length)
        return length == 0 or n_left >= min(length, self.window)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; to forget them all gives the memory back."""
        self._held = max(0, self._held - (self.length - length))
        self.length = length
        if length == 0:
            self._keys = self._values = None

    def select(self, rows: Sequence[int]) -> "SlidingCache":
        """Return a cache of its own with copies of these rows of the batch."""
        chosen = SlidingCache(self.window, self.slack)
        if self._keys is not None and self._values is not None:
            chosen._keys, chosen._values = self._keys[list(rows)], self._values[list(rows)]
            chosen.length, chosen._held = self.length, self._held
        return chosen

    @property
    def n_bytes(self) -> int:
        """Bytes of the window's keys and values; spare room and slack are not counted."""
        if self._keys is None:
            return 0
        return 2 * self._keys[:, :, : min(self._held, self.window)].nbytes


class KVCache:
    """The caches of all layers, and how many tokens the model has seen.

    Pass the same object to successive calls: `model(prompt, cache)`, then
    `model(next_token, cache)`. It takes memory on first use, on the model's device.

    Args:
        config: of the model.
        slack: how many tokens `truncate` can always take back; costs a sliding layer that many
            tokens of memory. Full layers can go back any way.
    """

    def __init__(self, config: ModelConfig, slack: int = 0) -> None:
        windows = [config.window(layer) for layer in range(config.n_layers)]
        self.layers = [FullCache() if w is None else SlidingCache(w, slack) for w in windows]
        self.config, self.slack = config, slack
        self.n_seen = 0  # tokens so far, and so the position of the next one
        self.ids: list[int] = []  # the tokens themselves, if `generate` reads them, in one row

    def can_truncate(self, length: int) -> bool:
        """Say whether `truncate(length)` is possible; 0 always is."""
        return 0 <= length <= self.n_seen and all(x.can_truncate(length) for x in self.layers)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens, as if no later one had been read.

        Raises:
            ShapeError: more tokens than it has seen, or so far back that a sliding layer no
                longer holds the window that ended there.
        """
        if not self.can_truncate(length):
            raise ShapeError(
                f"This cache has seen {self.n_seen:,} tokens and cannot go back to {length:,}: "
                f"its sliding layers take back {self.slack:,} at least. Make it with "
                "KVCache(config, slack=...), or truncate(0) and read the text again."
            )
        for layer in self.layers:
            layer.truncate(length)
        self.n_seen = length
        del self.ids[length:]

    def select(self, rows: Sequence[int]) -> "KVCache":
        """Return a cache of its own with copies of these rows of the batch.

        `select([0])` copies a prompt that was read once, for one of several continuations;
        `select([0, 0, 0])` makes a batch of three; leaving a row out ends it.
        """
        chosen = KVCache(self.config, self.slack)
        chosen.layers = [layer.select(rows) for layer in self.layers]
        chosen.n_seen, chosen.ids = self.n_seen, list(self.ids) if len(rows) == 1 else []
        return chosen

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values held now; equals `account.kv_bytes`."""
        return sum(layer.n_bytes for layer in self.layers)
