"""The whole Transformer: embed, L blocks of attention and feed-forward, norm, output head."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_lite.attention import Attention
from gptoss_lite.cache import FullCache, KVCache, SlidingCache
from gptoss_lite.config import ModelConfig, require_config
from gptoss_lite.dispatch import Op
from gptoss_lite.errors import ShapeError
from gptoss_lite.ffn import FeedForward
from gptoss_lite.linear import Linear
from gptoss_lite.moe import MixtureOfExperts
from gptoss_lite.norm import NORMS
from gptoss_lite.positions import POSITIONS, Rotation
from gptoss_lite.trace import tap

INIT_STD = 0.02  # GPT-2's, for every matrix


class Block(nn.Module):
    """Two additions to the residual stream: what attention read, and what the MLP made of it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.attn_norm = norm(config.d_model, config.norm_eps)
        self.attn = Attention(config, layer)
        self.ffn_norm = norm(config.d_model, config.norm_eps)
        self.ffn = MixtureOfExperts(config) if config.moe else FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
        cache: FullCache | SlidingCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after this block."""
        x = x + self.dropout(self.attn(self.attn_norm(x), cos, sin, cache))
        x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        tap("resid", x)
        return x


@Op
def logits(
    model: "Transformer", tokens: Int[Tensor, "B T"], cache: KVCache | None = None
) -> Float[Tensor, "B T V"]:
    """Return a model's next-token logits at each position; the cache is extended in place."""
    return model.unembed(model.hidden(tokens, cache))


class Transformer(nn.Module):
    """A decoder-only language model with the parts that its config names.

    Args:
        config: switches and sizes.

    Example:
        >>> from gptoss_lite.presets import PRESETS
        >>> model = Transformer(PRESETS["gpt-oss-nano"].but(n_layers=1))
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 2048])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = require_config(config)
        self.source: Path | None = None  # the folder it was loaded from
        self.n_ranks = 1  # processes that share its weights, see `parallel`
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = POSITIONS[config.positions](config)
        self.rotation = Rotation(config)
        self.dropout = nn.Dropout(config.dropout)
        blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.blocks: Sequence[Block] = blocks  # pyright: ignore[reportAttributeAccessIssue]
        self.norm = NORMS[config.norm](config.d_model, config.norm_eps)
        self.unembed = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.unembed.weight = self.embed.weight
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as GPT-2 does: normal, smaller where a block writes to the stream."""
        writes = INIT_STD / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):  # of experts too, which are tables [E, out]
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                is_write = name.endswith(("attn.o.weight", "ffn.down.weight"))
                nn.init.normal_(parameter, std=writes if is_write else INIT_STD)

    def forward(
        self, tokens: Int[Tensor, "B T"], cache: KVCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return the next-token logits at each position.

        Args:
            tokens: token ids; with a cache, only those it has not seen.
            cache: keys and values of the tokens before; extended in place.

        Raises:
            ShapeError: ids outside the vocabulary, or not a [B, T] tensor of integers.
        """
        return logits(self, tokens, cache)

    def hidden(
        self, tokens: Int[Tensor, "B T"], cache: KVCache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return what the output head reads: the residual stream after the last norm."""
        self.check(tokens)
        past = cache.n_seen if cache else 0
        layer_caches = cache.layers if cache else [None] * len(self.blocks)
        positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)
        cos, sin = self.rotation(positions)
        # the table may be elsewhere, `load(offload_embedding=True)`: then only its rows come here
        x = self.embed(tokens.to(self.embed.weight.device)).to(tokens.device)
        x = x + self.positions(positions)
        x = self.dropout(x.to(self.norm.weight.dtype))  # a float16 model keeps norms in float32
        for block, layer_cache in zip(self.blocks, layer_caches, strict=True):
            x = block(x, cos, sin, layer_cache)
        if cache:
            cache.n_seen += tokens.shape[1]
        return self.norm(x)

    def check(self, tokens: Tensor) -> None:
        """Raise ShapeError for what are not token ids of this model, [B, T]."""
        if getattr(tokens, "dtype", None) not in (torch.int64, torch.int32) or tokens.ndim != 2:
            raise ShapeError(
                "tokens must be int64 or int32 of shape [batch, length], got "
                f"{_told(tokens)}. Wrap one sequence as torch.tensor([ids])."
            )
        if tokens.numel() == 0:
            raise ShapeError("There are no tokens to read: give at least one.")
        if torch.compiler.is_compiling():
            return  # a compiled graph cannot look at values
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ShapeError(
                f"Token ids run from {low} to {high}, but this model's vocabulary is 0 to "
                f"{self.config.vocab_size - 1}. Encode the text with this model's own tokenizer."
            )

    @property
    def device(self) -> torch.device:
        """Where the blocks are, and so where tokens must be."""
        return self.norm.weight.device


def _told(value: object) -> str:
    """Say in an error what was given in place of token ids."""
    is_tensor = isinstance(value, Tensor)
    return f"{value.dtype} {list(value.shape)}" if is_tensor else f"a {type(value).__name__}"
