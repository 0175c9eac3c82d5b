"""The text of the small experiments: ten plays as bytes, cut, shuffled once and split.

Whole blocks of 1 KiB are held out, not whole plays: a held-out play differs from the others in
its words and speakers, and that difference looks like overfitting before one pass is over.
"""

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Int
from torch import Tensor

from gptoss_lite.errors import ShapeError

BOS = 256  # stands before every block; the ids below it are bytes
VOCAB_SIZE = 257
BLOCK_BYTES = 1_024
N_VALIDATION = 64  # blocks
SPLIT_SEED = 0


@dataclass(frozen=True)
class Corpus:
    """The two halves of the split; each row is BOS and the 1,024 bytes after it."""

    train: Int[Tensor, "learned row"]
    validation: Int[Tensor, "held_out row"]


def text() -> bytes:
    """Return the ten plays, one after the other."""
    packed = files("gptoss_lite").joinpath("data", "corpus", "plays.txt.xz").read_bytes()
    return lzma.decompress(packed)


@cache
def load() -> Corpus:
    """Cut the text into blocks, shuffle them once and hold 64 of them out.

    Example:
        >>> load().validation.shape
        torch.Size([64, 1025])
    """
    raw = bytearray(text())
    n_blocks = len(raw) // BLOCK_BYTES
    blocks = torch.frombuffer(raw, dtype=torch.uint8)[: n_blocks * BLOCK_BYTES].long()
    rows = torch.cat((torch.full((n_blocks, 1), BOS), blocks.view(n_blocks, BLOCK_BYTES)), 1)
    rows = rows[torch.randperm(n_blocks, generator=torch.Generator().manual_seed(SPLIT_SEED))]
    return Corpus(train=rows[N_VALIDATION:], validation=rows[:N_VALIDATION])


def windows(blocks: Int[Tensor, "blocks row"], length: int) -> Int[Tensor, "windows row2"]:
    """Cut blocks into windows of `length` inputs that predict every byte exactly once.

    A window holds one token more than its length, because each input predicts the next token.

    Args:
        blocks: rows of a `Corpus`.
        length: a divisor of 1,024.

    Raises:
        ShapeError: a length that would leave bytes over.

    Example:
        >>> windows(load().validation, 64).shape
        torch.Size([1024, 65])
    """
    if length < 1 or BLOCK_BYTES % length:
        raise ShapeError(
            f"length={length} does not divide a block of {BLOCK_BYTES} bytes, so some bytes "
            "would never be predicted. Use a power of two up to 1024."
        )
    return blocks.unfold(1, length + 1, length).flatten(0, 1)


def batches(
    blocks: Int[Tensor, "blocks row"], length: int, batch_size: int, seed: int
) -> Iterator[Int[Tensor, "B row2"]]:
    """Yield batches for ever; the order is new in each pass, and depends on the seed alone.

    No window comes twice within a pass; those left over at its end (fewer than a batch) wait
    for the next.

    Args:
        blocks: what to learn from; all of `load().train`, or the first few rows of it.
        length: inputs per window.
        batch_size: windows per batch.
        seed: of the order.

    Raises:
        ShapeError: fewer windows than one batch needs.
    """
    rows = windows(blocks, length)
    if len(rows) < batch_size:
        raise ShapeError(
            f"{len(blocks)} blocks hold {len(rows)} windows of {length}, fewer than "
            f"batch_size={batch_size}. Give more blocks or a smaller batch."
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield rows[order[start : start + batch_size]]
