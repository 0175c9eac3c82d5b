"""E2: is a gated MLP better than GELU's, and is it the gate or the size?"""

from functools import partial

import torch
from torch import Tensor

from experiments.small import Arm, Experiment
from gptoss_lite.config import ModelConfig
from gptoss_lite.model import Transformer
from gptoss_lite.train import build

WIDER = 4.0
EQUAL = 171  # 3 * 64 * 171 weights, 0.2 % more than GELU's 2 * 64 * 256


def bilinear(gate_up: Tensor) -> Tensor:
    """Multiply the two halves, with no activation at all (Shazeer 2020, equation 5)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * up


def start_bilinear(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Build a SwiGLU model and take the SiLU out; the package has no switch for this."""
    model = build(config, seed)
    for block in model.blocks:
        block.ffn.activation = bilinear
    return model


def start_wider(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Build a model whose blocks start with four times larger matrices."""
    model = build(config, seed)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim > 1:
                parameter.mul_(WIDER)
    return model


def glu(name: str, label: str, kind: str, width: int, expect: str, **more: object) -> Arm:
    """Describe an arm that is compared with GELU."""
    changes = {"ffn": kind, "d_ff": width}
    return Arm(name, label, changes, against="gelu", expect=expect, **more)  # type: ignore[arg-type]


def rates() -> tuple[Arm, ...]:
    """Repeat GELU and SwiGLU at half and at twice the learning rate, one seed each."""
    arms = []
    for rate in (1.5e-3, 6e-3):
        settings, one = {"peak_lr": rate}, (0,)
        base = Arm(f"gelu, lr {rate}", f"GELU, lr {rate}", {}, settings, seeds=one)
        wide = {"ffn": "swiglu", "d_ff": EQUAL}
        other = Arm(
            f"swiglu, lr {rate}",
            f"SwiGLU, lr {rate}",
            wide,
            settings,
            against=base.name,
            expect="lower",
            seeds=one,
        )
        arms += [base, other]
    return tuple(arms)


EXPERIMENT = Experiment(
    id="E2",
    chapter="05",
    title="GELU against gated MLPs",
    question="Is a gated MLP better at equal size, and does it save a quarter?",
    note="Equal parameters means a hidden width of 171 instead of 256. All arms share one "
    "learning rate, which is not each arm's best (see E2LR), and the package's small initial "
    "weights, with which a product of two halves starts small (see E2INIT).",
    arms=(
        Arm("gelu", "GELU, 256"),
        glu("swiglu, equal", "SwiGLU, equal parameters", "swiglu", EQUAL, "lower"),
        glu("swiglu, -25%", "SwiGLU, 25 % smaller", "swiglu", 128, "lower"),
        glu("gelu, -25%", "GELU, 25 % smaller", "gelu", 192, "none"),
        glu(
            "bilinear, equal",
            "bilinear, equal parameters",
            "swiglu",
            EQUAL,
            "lower",
            start=start_bilinear,
            note="activation replaced by gate * up",
        ),
        glu("clamped, equal", "gpt-oss form, equal parameters", "clamped_swiglu", EQUAL, "lower"),
        glu("swiglu, +50%", "SwiGLU, 50 % larger", "swiglu", 256, "lower"),
    ),
)

RATES = Experiment(
    id="E2LR",
    chapter="05",
    title="GELU against SwiGLU at other learning rates",
    question="Does the sign of E2 depend on the learning rate?",
    note="Half and twice the rate of E2, one seed.",
    arms=rates(),
)

wider = partial(Arm, start=start_wider, note="every matrix of the blocks starts 4 times larger")

INIT = Experiment(
    id="E2INIT",
    chapter="05",
    title="GELU against SwiGLU with larger initial weights",
    question="Does the sign of E2 depend on the initial weights?",
    note="Blocks start with a standard deviation of 0.08 instead of 0.02 (0.04 instead of 0.01 "
    "where they write to the stream). Added after the first seeds of E2, in which SwiGLU at equal "
    "parameters gained less than the other gated forms; the expected sign was written down after "
    "a first look at two seeds.",
    arms=(
        wider("gelu, wider", "GELU, 256, wider start"),
        wider(
            "swiglu, wider",
            "SwiGLU, equal parameters, wider start",
            {"ffn": "swiglu", "d_ff": EQUAL},
            against="gelu, wider",
            expect="lower",
        ),
    ),
)
