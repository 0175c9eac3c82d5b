"""Attention of many queries on the CPU through torch's own fused kernel, which knows no sinks.

The plain version writes a score for each query head, query and key down, three times over: for
20b and 512 tokens 64 MB each time. The fused kernel keeps a tile of them in cache. A sink becomes
one more key: queries get two more numbers, the head's sink and what rounding left of it, which
only this key multiplies, and its value is zero.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_lite.attention import attend, visible
from gptoss_lite.kernels.grouped import FEW_QUERIES, WIDE
from gptoss_lite.trace import wants

LANES = 8  # a head's width is padded to a multiple of it


def why_not(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> str | None:
    """Say why this call cannot be computed here, or None."""
    if dropout:
        return "it drops nothing"
    if wants("probs") or wants("sink_mass"):
        return "a trace asks for attention weights, which it never writes down"
    return None if q.device.type == "cpu" else f"q is on {q.device}, and this is for the CPU"


def too_small(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> str | None:
    """Say why another version is as fast, or None."""
    n_queries, width = q.shape[2], k.shape[1] * k.shape[3]
    if n_queries <= FEW_QUERIES:
        return f"{n_queries} queries leave nothing to fuse"
    return None if width >= WIDE else f"a key has {width} numbers, and below {WIDE} is no gain"


@attend.backend("sdpa", why_not, too_small=too_small)
def attend_sdpa(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, window: int | None, dropout: float = 0.0
) -> Tensor:
    """Mix the values that each query may see; see `attention.attend`, whose arguments these are."""
    width, scale = q.shape[-1], 1 / math.sqrt(q.shape[-1])
    mask = visible(q.shape[2], k.shape[2], window, q.device)
    if sinks is not None:
        q, k, v, mask = _with_sink_key(q, k, v, sinks / scale, mask)
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] > k.shape[1]
    )
    return mixed[..., :width]


def _with_sink_key(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put a key before the others whose score is the sink of each head."""
    width = q.shape[-1]
    spare = -(width + 2) % LANES
    first = sinks.to(q.dtype)
    rest = (sinks.double() - first.double()).to(q.dtype)
    both = torch.stack((first, rest), -1)[None, :, None].expand(*q.shape[:3], 2)
    q = F.pad(torch.cat((q, both), -1), (0, spare))
    k, v = (F.pad(held, (0, 2 + spare, 1, 0)) for held in (k, v))
    k[:, :, 0, width : width + 2] = 1
    return q, k, v, F.pad(mask, (1, 0), value=True)
