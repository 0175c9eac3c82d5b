"""Multiply by a weight matrix: two thirds of what a decoded token costs."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gptoss_lite.dispatch import Op


@Op
def linear(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "out D"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*rows out"]:
    """Return x @ weight.T + bias, in x's dtype; weights may be stored in a narrower one."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Linear(nn.Module):
    """A matrix and a bias, like `nn.Linear`, but computed by whichever backend is fastest here."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.empty(n_out, n_in))  # another's, where tied
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias evenly from +-1 / sqrt(n_in), as `nn.Linear` does."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows out"]:
        """Return x @ weight.T + bias."""
        return linear(x, self.weight, self.bias)
