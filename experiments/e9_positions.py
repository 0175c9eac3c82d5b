"""E9: what do positions buy, and what happens beyond the trained length?"""

from functools import partial

import torch

from experiments.small import Arm, Experiment, lengths
from gptoss_lite.config import ModelConfig
from gptoss_lite.model import Transformer
from gptoss_lite.train import build


def start_without(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Build a model that knows no positions: GPT-2's table, set to zero and never learned.

    The package has no switch for this. The causal mask still tells how much came before.
    """
    model = build(config, seed)
    with torch.no_grad():
        model.positions.weight.zero_()
    model.positions.weight.requires_grad_(False)
    return model


EXPERIMENT = Experiment(
    id="E9",
    chapter="03",
    title="Positions: rotated, learned, none",
    question="Which positions learn best, and which still work at a longer length?",
    note="Trained at 64 tokens; RoPE's base is gpt-oss's 150,000 unless said. The same held-out "
    "bytes at every length; a longer window gives each byte more context. A learned table ends at "
    "the trained length.",
    arms=(
        Arm("rope", "RoPE", measure=partial(lengths, of=(32, 64, 128, 256))),
        Arm(
            "rope, base 10000",
            "RoPE, base 10,000",
            {"rope_theta": 10_000.0},
            note="added after the first runs, in which RoPE failed at twice the trained length",
            against="rope",
            measure=partial(lengths, of=(32, 64, 128, 256)),
        ),
        Arm(
            "learned",
            "learned table",
            {"positions": "learned"},
            against="rope",
            expect="higher",
            measure=partial(lengths, of=(32, 64)),
        ),
        Arm(
            "none",
            "no positions",
            {"positions": "learned", "context": 256},
            note="the table is zero and frozen; its parameters do not count",
            frozen=256 * 64,
            against="rope",
            expect="higher",
            start=start_without,
            measure=partial(lengths, of=(32, 64, 128, 256)),
        ),
    ),
)
