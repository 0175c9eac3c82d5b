"""Where a token stands: a learned table (GPT-2), or a rotation of q and k (RoPE, YaRN)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_lite.config import ModelConfig, YarnConfig
from gptoss_lite.errors import ShapeError


def rope_frequencies(head_dim: int, theta: float) -> Float[Tensor, " half"]:
    """Return the angle per position of each of the head_dim / 2 pairs: theta ** (-2i / head_dim).

    Float32 in this order of operations, because the published models were run so: at position
    131,071 a float64 table differs by 2.5e-3 in the cosine.

    Source:
        Su et al. 2021, section 3.2.2.

    Example:
        >>> rope_frequencies(4, 100.0).tolist()
        [1.0, 0.10000000149011612]
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    return 1.0 / (theta**exponents)


def yarn_ramp(head_dim: int, theta: float, yarn: YarnConfig) -> Float[Tensor, " half"]:
    """Return for each pair how far it is slowed down: 0 keeps it, 1 divides it by the factor.

    Pairs that turn more than beta_fast times within the original context are kept, pairs that
    turn less than beta_slow times are slowed, those between are blended.

    Source:
        Peng et al. 2023, section 3.2 ("NTK-by-parts").
    """

    def pair_that_turns(times: float) -> float:
        return (
            head_dim / 2 * math.log(yarn.original_context / (times * 2 * math.pi)) / math.log(theta)
        )

    low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as the reference does: a step instead of a division by zero
    pairs = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    return ((pairs - low) / (high - low)).clamp(0, 1)


def frequencies(config: ModelConfig) -> tuple[Float[Tensor, " half"], float]:
    """Return the angle per position of each pair, and the factor on cosine and sine.

    A model with a learned table gets angle 0: its rotation stands still.
    """
    if config.positions == "learned":
        return torch.zeros(config.head_dim // 2, device="cpu"), 1.0
    plain = rope_frequencies(config.head_dim, config.rope_theta)
    if config.yarn is None:
        return plain, 1.0
    ramp = yarn_ramp(config.head_dim, config.rope_theta, config.yarn)
    attention_factor = 0.1 * math.log(config.yarn.factor) + 1.0
    return plain / config.yarn.factor * ramp + plain * (1 - ramp), attention_factor


def rotate(
    x: Float[Tensor, "*B heads T hd"],
    cos: Float[Tensor, "T half"],
    sin: Float[Tensor, "T half"],
) -> Float[Tensor, "*B heads T hd"]:
    """Turn each pair (i, i + hd/2) of x by its position's angle.

    Source:
        gpt-oss `torch/model.py`; "half-split" pairs, as in GPT-NeoX.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Rotation(nn.Module):
    """Cosines and sines for the positions of one forward pass, shared by all layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Plain attributes, not buffers: `model.to(bfloat16)` must not round the frequencies.
        self.inv_freq, self.attention_factor = frequencies(config)

    def forward(
        self, positions: Int[Tensor, " T"]
    ) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
        """Return (cos, sin), float32, each times YaRN's attention factor."""
        angles = positions.float()[:, None] * self.inv_freq.to(positions.device)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


class LearnedPositions(nn.Module):
    """GPT-2's table: one learned vector per position, added to the token's embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context, config.d_model))

    def forward(self, positions: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Look the positions up.

        Raises:
            ShapeError: a position past the end of the table.
        """
        rows = len(self.weight)
        if torch.compiler.is_compiling():
            return self.weight[positions]  # a compiled graph cannot look at values
        if len(positions) and (last := int(positions[-1])) >= rows:
            raise ShapeError(
                f"Position {last} is past the learned table's {rows} rows. This model cannot read "
                f"more than {rows} tokens: shorten the prompt or generate fewer."
            )
        return self.weight[positions]


class NoPositions(nn.Module):
    """The embedding half of a model whose positions are rotations: adds nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(self, positions: Int[Tensor, " T"]) -> float:
        """Return the zero that is added to every embedding."""
        return 0.0


POSITIONS = {"learned": LearnedPositions, "rope": NoPositions}
