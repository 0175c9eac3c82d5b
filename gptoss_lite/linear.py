"""Multiply by a weight matrix: two thirds of what a decoded token costs."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gptoss_lite.dispatch import Op

WIDENED = 2**25  # weights that are held in x's wider dtype at a time: 134 MB as float32


@Op
def linear(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "out D"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*rows out"]:
    """Return x @ weight.T + bias, in x's dtype; weights may be stored in a narrower one."""
    if weight.dtype == x.dtype or weight.numel() <= WIDENED:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    # A float16 model computes in float32: the whole output head would be a copy of 2.3 GB.
    rows = weight.split(max(1, WIDENED // weight.shape[1]))
    out = torch.cat([F.linear(x, some.to(x.dtype)) for some in rows], -1)
    return out if bias is None else out + bias.to(x.dtype)


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
