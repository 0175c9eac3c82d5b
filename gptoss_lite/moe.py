"""Mixture of experts: a router picks a few feed-forward networks for each token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_lite.config import ModelConfig
from gptoss_lite.dispatch import Op
from gptoss_lite.ffn import Activation, activation
from gptoss_lite.linear import Linear
from gptoss_lite.trace import tap


def route(
    logits: Float[Tensor, "N E"], n_active: int
) -> tuple[Float[Tensor, "N A"], Int[Tensor, "N A"]]:
    """Choose the A experts of each token and how much each counts.

    The A largest logits, then a softmax over those alone. Softmax over all E, keep A, divide by
    their sum (Qwen3) is the same function.

    Args:
        logits: the router's output for N tokens and E experts.
        n_active: A, experts per token.

    Returns:
        (weights, ids): weights are float32 and sum to 1 for each token; the largest comes first.

    Source:
        gpt-oss model card, section 2.2; Shazeer et al. 2017, section 2.1.

    Example:
        >>> weights, ids = route(torch.tensor([[0.0, 3.0, 1.0, 3.0 + 1e-3]]), n_active=2)
        >>> ids.tolist(), round(weights.sum().item(), 6)
        ([[3, 1]], 1.0)
    """
    chosen, ids = logits.float().topk(n_active, dim=-1)
    weights = chosen.softmax(-1)
    tap("router_logits", logits)
    tap("expert_ids", ids)
    tap("expert_weights", weights)
    return weights, ids


@runtime_checkable
class Experts(Protocol):
    """What an expert layer offers, whether its matrices are dense or packed."""

    if TYPE_CHECKING:  # isinstance does not see a module's parameters from Python 3.12 on
        bias: nn.Parameter | None

    def matrices(self, dtype: torch.dtype) -> Sequence[Tensor]:
        """Return the [out, in] matrix of each expert."""
        ...


class ExpertLinear(nn.Module):
    """The same linear layer for E experts: one [out, in] matrix each, rows [gate | up]."""

    def __init__(self, n_experts: int, n_in: int, n_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_experts, n_out)) if bias else None

    def matrices(self, dtype: torch.dtype) -> Sequence[Tensor]:
        """Return the [out, in] matrix of each expert, as views."""
        # unbind, not indexing: its backward writes one gradient, not one full tensor an expert
        return self.weight.to(dtype).unbind(0)


@Op
def apply_experts(
    x: Float[Tensor, "N D"],
    weights: Float[Tensor, "N A"],
    ids: Int[Tensor, "N A"],
    up: Experts,
    down: Experts,
    act: Activation,
) -> Float[Tensor, "N D"]:
    """Send each token through its A experts and add up their answers, weighted.

    Goes expert by expert, so that one decoded matrix is held at a time. Each expert's output
    bias is weighted with it.
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    up_matrices, down_matrices = up.matrices(x.dtype), down.matrices(x.dtype)
    up_biases, down_biases = _biases(up, len(up_matrices)), _biases(down, len(down_matrices))
    for expert in ids.unique().tolist():
        token, slot = (ids == expert).nonzero(as_tuple=True)
        hidden = act(F.linear(x[token], up_matrices[expert], up_biases[expert]))
        answer = F.linear(hidden, down_matrices[expert], down_biases[expert])
        total.index_add_(0, token, weights[token, slot, None] * answer.float())
    return total.to(x.dtype)


def _biases(linear: Experts, n_experts: int) -> Sequence[Tensor | None]:
    return [None] * n_experts if linear.bias is None else linear.bias.unbind(0)


class MixtureOfExperts(nn.Module):
    """A router and E experts in place of one MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        n_experts, bias = config.moe.n_experts, config.ffn_bias
        self.n_active = config.moe.n_active
        self.activation, n_in = activation(config)
        self.router = Linear(config.d_model, n_experts, bias=config.moe.router_bias)
        # Loading may put packed layers here.
        self.up: Experts = ExpertLinear(n_experts, config.d_model, n_in * config.d_ff, bias)
        self.down: Experts = ExpertLinear(n_experts, config.d_ff, config.d_model, bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the experts' contribution to the residual stream."""
        tokens = x.flatten(0, 1)  # [N D]
        weights, ids = route(self.router(tokens), self.n_active)
        mixed = apply_experts(tokens, weights, ids, self.up, self.down, self.activation)
        return mixed.view_as(x)
