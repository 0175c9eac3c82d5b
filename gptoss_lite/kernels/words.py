"""Decode MXFP4 one byte at a time, by looking both of its weights up as one machine word.

The plain version looks up pairs of numbers, which copies them one by one. Two bfloat16 numbers
are as wide as one int32 and two float32 as one int64, so one word is copied instead.
"""

import torch
from torch import Tensor

from gptoss_lite.mxfp4 import BLOCK, byte_table, check_packed, dequantize, scale_table

WORD = {torch.bfloat16: torch.int32, torch.float32: torch.int64}


def why_not(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Say why pairs of this dtype cannot be looked up as words, or None."""
    return None if dtype in WORD else f"two {dtype} numbers are not one integer word"


@dequantize.backend("words", why_not)
def dequantize_words(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Decode packed weights exactly; see `mxfp4.dequantize`, whose arguments these are."""
    check_packed(blocks, scales)
    table = byte_table(dtype, blocks.device).view(WORD[dtype]).flatten()
    words = table.index_select(0, blocks.flatten().int())
    weights = words.view(dtype).view(*scales.shape, BLOCK)
    factors = scale_table(dtype, scales.device).index_select(0, scales.flatten().int())
    weights *= factors.view(*scales.shape, 1)
    return weights.flatten(-2)
