"""What tests share: the tiny models in which every mistake shows, and a few tools.

The models are part of the package (`gptoss_lite.mutants.hostile`), because the book's bug museum
uses them, too.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import torch
from torch import Tensor

from gptoss_lite import Transformer, trace
from gptoss_lite.mutants.hostile import (
    GPT2,
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    TOLERANCE,
    VISIBLE,
    hostile,
    packed,
    randomise,
    seeded,
    tokens,
)

__all__ = [
    "GPT2",
    "GPT_OSS",
    "GPT_OSS_MXFP4",
    "QWEN3",
    "TOLERANCE",
    "VISIBLE",
    "hostile",
    "packed",
    "randomise",
    "router_margin",
    "seeded",
    "tokens",
    "without_type_checks",
]


def router_margin(model: Transformer, ids: Tensor) -> float:
    """Return the smallest gap between the last chosen expert and the first one left out.

    Where it is no larger than the rounding error, two correct programs choose different experts.
    """
    n_active = model.config.moe.n_active
    if n_active == model.config.moe.n_experts:
        return math.inf
    with torch.no_grad(), trace(model, "router_logits") as seen:
        model(ids)
    ordered = [logits.sort(descending=True).values for logits in seen.per_layer("router_logits")]
    return min((x[:, n_active - 1] - x[:, n_active]).min().item() for x in ordered)


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Let wrong arguments through to the code that must refuse them.

    The suite runs with annotations checked at every call, which would catch them before.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
