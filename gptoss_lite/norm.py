"""LayerNorm and RMSNorm: keep the residual stream at one scale before each part reads it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis, then scale.

    Computed in float32 whatever comes in. gpt-oss multiplies by the scale in float32 too and
    casts last; Llama and Qwen cast first. The two differ in bfloat16 only.

    Source:
        Zhang and Sennrich 2019; gpt-oss `torch/model.py`.
    """

    def __init__(self, size: int, eps: float, cast_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.cast_first = cast_first

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Return x at root mean square 1, times the scale; same shape and dtype as x."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.cast_first:
            return wide.to(x.dtype) * self.weight
        return (wide * self.weight.float()).to(x.dtype)


NORMS = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": RMSNorm,
    "rmsnorm_cast_first": lambda size, eps: RMSNorm(size, eps, cast_first=True),
}
