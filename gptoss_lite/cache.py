"""The KV cache: keys and values of past tokens, so that a new token costs one row of attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_lite.config import ModelConfig

Pair = tuple[Float[Tensor, "B K S hd"], Float[Tensor, "B K S hd"]]


class FullCache:
    """Every token's rotated keys and values, in a buffer that doubles when it is full."""

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

    def _grown(self, k: Tensor, needed: int) -> Tensor:
        batch, heads, _, width = k.shape
        grown = k.new_empty(2, batch, heads, max(needed, 2 * self.length, 64), width)
        if self._buffer is not None:
            grown[:, :, :, : self.length] = self._buffer[:, :, :, : self.length]
        return grown

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values held, the buffer's spare room not counted."""
        return 0 if self._buffer is None else self._buffer[:, :, :, : self.length].nbytes


class SlidingCache:
    """The last `window` tokens' rotated keys and values; older ones are forgotten."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Float[Tensor, "B K T hd"], v: Float[Tensor, "B K T hd"]) -> Pair:
        """Add T new tokens; return them behind the window - 1 tokens that they may still see."""
        if self._keys is not None and self._values is not None:
            start = max(0, self._keys.shape[2] - (self.window - 1))
            k = torch.cat((self._keys[:, :, start:], k), dim=2)
            v = torch.cat((self._values[:, :, start:], v), dim=2)
        # A copy, or a view of one long prompt would keep the whole of it in memory.
        self._keys = k[:, :, -self.window :].clone()
        self._values = v[:, :, -self.window :].clone()
        return k, v

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values held."""
        if self._keys is None or self._values is None:
            return 0
        return self._keys.nbytes + self._values.nbytes


class KVCache:
    """The caches of all layers, and how many tokens the model has seen.

    Pass the same object to successive calls: `model(prompt, cache)`, then
    `model(next_token, cache)`. It takes memory on first use, on the model's device.
    """

    def __init__(self, config: ModelConfig) -> None:
        windows = [config.window(layer) for layer in range(config.n_layers)]
        self.layers = [FullCache() if w is None else SlidingCache(w) for w in windows]
        self.n_seen = 0  # tokens so far, and so the position of the next one

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values held now; equals `account.kv_bytes`."""
        return sum(layer.n_bytes for layer in self.layers)
