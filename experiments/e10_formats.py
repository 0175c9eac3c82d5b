"""E10: what does each number format cost, when a trained model's matrices are rounded to it?"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiments.small import BASE, STEPS, Arm, Experiment, train_once
from gptoss_lite import mxfp4
from gptoss_lite.config import ModelConfig
from gptoss_lite.linear import Linear
from gptoss_lite.model import Transformer
from gptoss_lite.train import Result, train

READING = {"steps": 0}  # nothing is learned
TUNING = {"steps": 100, "peak_lr": 1e-3}
WIDTH = 192  # a multiple of 32, so that MXFP4's blocks fill every row
KINDS = {
    "MLP": ("ffn",),
    "attention": ("attn",),
    "embedding": ("embed",),  # and the output head, which is the same matrix
    "all": ("ffn", "attn", "embed"),
}


def round_bf16(rows: Tensor) -> Tensor:
    """Keep 8 of float32's 24 significant bits."""
    return rows.bfloat16().float()


def round_mxfp4(rows: Tensor) -> Tensor:
    """Quantize and decode; rows that no block fills (smoke runs only) are padded with zeros."""
    padded = F.pad(rows, (0, -rows.shape[-1] % mxfp4.BLOCK))
    decoded = mxfp4.dequantize(*mxfp4.quantize(padded), torch.float32)
    return decoded[..., : rows.shape[-1]]


def round_int4(rows: Tensor, block: int | None) -> Tensor:
    """Round to whole multiples, -7 to 7, of a float16 scale: one a block, or one a row."""
    width = rows.shape[-1]
    block = block or width
    blocked = F.pad(rows, (0, -width % block)).unflatten(-1, (-1, block))
    scale = (blocked.abs().amax(-1, keepdim=True) / 7).half().float().clamp(min=2.0**-24)
    codes = (blocked / scale).round().clamp(-7, 7)
    return (codes * scale).flatten(-2)[..., :width]


ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "bf16": round_bf16,
    "MXFP4": round_mxfp4,
    "int4, block 32": partial(round_int4, block=mxfp4.BLOCK),
    "int4, row": partial(round_int4, block=None),
}


# --- models --------------------------------------------------------------------------------------


def matrices(model: nn.Module, kind: str) -> Iterator[Tensor]:
    """Yield the matrices of a kind, [out, in]; a tied head is yielded once, as the embedding."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and any(part in KINDS[kind] for part in name.split(".")):
            yield parameter


def start_trained(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Return a copy of the trained model that all arms share."""
    smoke = {} if steps == STEPS else {"batch_size": 2, "n_validation": 2}
    return copy.deepcopy(train_once(config, seed, {"steps": steps, **smoke}).model)


def start_rounded(
    config: ModelConfig, seed: int, steps: int, of: str, to: str, tuned: bool = False
) -> Transformer:
    """Round the trained model's matrices of one kind; `tuned`: after it has learned on."""
    model = start_trained(config, seed, steps)
    if tuned:
        smoke = {} if steps == STEPS else {"steps": steps, "batch_size": 2, "n_validation": 2}
        model = train(model, seed=seed, **{**TUNING, **smoke}).model
    return rounded(model, of, to)


@torch.no_grad()
def rounded(model: Transformer, of: str, to: str) -> Transformer:
    """Round in place, and note the share of the parameters and the relative RMS error."""
    n_weights, error, size = 0, 0.0, 0.0
    for weight in matrices(model, of):
        decoded = ROUND[to](weight)
        n_weights += weight.numel()
        error += (decoded - weight).double().square().sum().item()
        size += weight.double().square().sum().item()
        weight.copy_(decoded)
    everything = sum(parameter.numel() for parameter in model.parameters())
    model.rounding = {"rounded": n_weights / everything, "error": (error / size) ** 0.5}
    return model


def rounding(result: Result) -> dict[str, Any]:
    """Return what `rounded` noted."""
    return dict(result.model.rounding)  # type: ignore[arg-type]


class StraightThrough(nn.Module):
    """Compute with the rounded matrix, and pass the gradient on as if nothing were rounded."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded matrix."""
        return weight + (round_mxfp4(weight) - weight).detach()


def start_straight_through(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Return the trained model, which from now on computes with all matrices in MXFP4."""
    model = start_trained(config, seed, steps)
    for module in model.modules():
        if isinstance(module, Linear | nn.Embedding):
            parametrize.register_parametrization(module, "weight", StraightThrough())
    return model


# --- arms ----------------------------------------------------------------------------------------


def post(of: str, to: str, expect: str | None = "higher") -> Arm:
    """Describe an arm that is rounded after training."""
    what = {"MLP": "MLP only", "attention": "attention only", "embedding": "embedding only"}
    return Arm(
        f"{to}: {of}",
        f"{to}, {what.get(of, 'all matrices')}",
        {},
        READING,
        note="the trained model, rounded",
        against="trained",
        expect=expect,
        start=partial(start_rounded, of=of, to=to),
        measure=rounding,
    )


TRAINED_ON = "trained 100 steps more at a third of the rate"

EXPERIMENT = Experiment(
    id="E10",
    chapter="11",
    title="Number formats after training",
    question="What does it cost to round a trained model to four bits, and where does it cost?",
    note="Every arm starts from the same trained model of its seed. `error` is the relative RMS "
    "error of the rounded matrices, `rounded` their share of the parameters. The last arm learns "
    "while it computes in MXFP4, with a straight-through gradient.",
    base=BASE.but(ffn="clamped_swiglu", d_ff=WIDTH),
    arms=(
        Arm("trained", "float32, as trained", {}, READING, start=start_trained),
        post("all", "bf16", None),
        *(post("MLP", to) for to in ("MXFP4", "int4, block 32", "int4, row")),
        *(post("all", to) for to in ("MXFP4", "int4, block 32", "int4, row")),
        post("attention", "MXFP4"),
        post("embedding", "MXFP4"),
        Arm(
            "on, float32",
            "100 steps more, float32",
            {},
            TUNING,
            note=TRAINED_ON,
            start=start_trained,
            against="trained",
        ),
        Arm(
            "on, then MXFP4",
            "100 steps more, then MXFP4, all",
            {},
            READING,
            note=f"{TRAINED_ON}, then rounded",
            start=partial(start_rounded, of="all", to="MXFP4", tuned=True),
            against="on, float32",
            expect="higher",
            measure=rounding,
        ),
        Arm(
            "on, in MXFP4",
            "100 steps more in MXFP4, all",
            {},
            TUNING,
            note=f"{TRAINED_ON}, with all matrices rounded in every step",
            start=start_straight_through,
            against="on, then MXFP4",
            expect="lower",
        ),
    ),
)
