"""The feed-forward network and its activations: GELU, SwiGLU, and gpt-oss's clamped SwiGLU."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gptoss_lite.config import ModelConfig
from gptoss_lite.linear import Linear

Activation = Callable[[Tensor], Tensor]


def gelu(x: Float[Tensor, "*rows F"]) -> Float[Tensor, "*rows F"]:
    """GPT-2's GELU, the tanh form; the exact erf form moves logits by about 1e-3.

    Source:
        Hendrycks and Gimpel 2016, section 2.
    """
    return F.gelu(x, approximate="tanh")


def swiglu(gate_up: Float[Tensor, "*rows FF"]) -> Float[Tensor, "*rows F"]:
    """Let one half of the features gate the other: silu(gate) * up, with rows [gate | up].

    Source:
        Shazeer 2020, equation 6.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def clamped_swiglu(
    gate_up: Float[Tensor, "*rows FF"], alpha: float = 1.702, limit: float = 7.0
) -> Float[Tensor, "*rows F"]:
    """gpt-oss's SwiGLU: a gate close to GELU, both halves clamped, and up + 1.

    The gate is cut from above only, up on both sides. The + 1 lets the gate through when up is 0.

    Source:
        gpt-oss `torch/model.py`; model card, footnote 1.

    Example:
        >>> [round(x, 4) for x in clamped_swiglu(torch.tensor([1.0, 8.0, 1.0, -9.0])).tolist()]
        [1.6916, -41.9997]
    """
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def activation(config: ModelConfig) -> tuple[Activation, int]:
    """Return the activation, and how many input features it needs for one output feature."""
    clamped = partial(clamped_swiglu, alpha=config.swiglu_alpha, limit=config.swiglu_limit)
    choices = {"gelu": (gelu, 1), "swiglu": (swiglu, 2), "clamped_swiglu": (clamped, 2)}
    return choices[config.ffn]


class FeedForward(nn.Module):
    """One dense MLP: up (with the gate's rows first, if there is one), activation, down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation, n_in = activation(config)
        self.up = Linear(config.d_model, n_in * config.d_ff, bias=config.ffn_bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.ffn_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the MLP's contribution to the residual stream."""
        return self.down(self.activation(self.up(x)))
