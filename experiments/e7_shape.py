"""E7: wide or deep, with as many weights in the blocks? A trap, and it is meant to be one."""

from typing import Any

from experiments.small import Arm, Experiment

SHAPES = ((8, 40), (4, 56), (2, 80), (1, 112))  # layers x width: 12 * layers * width ** 2 weights
TWICE: dict[str, Any] = {"peak_lr": 6e-3}


def shape(n_layers: int, d_model: int) -> dict[str, int]:
    """Return the fields of a model with four heads and GPT-2's MLP, four times as wide."""
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "head_dim": d_model // 4,
        "d_ff": 4 * d_model,
    }


def arms(
    shapes: tuple[tuple[int, int], ...],
    suffix: str = "",
    label: str = "",
    settings: dict[str, Any] | None = None,
) -> list[Arm]:
    """Describe the shapes at one learning rate, each compared with the deepest."""
    deepest = "x".join(map(str, shapes[0])) + suffix
    found = []
    for n_layers, d_model in shapes:
        name = f"{n_layers}x{d_model}{suffix}"
        layers = "layer" if n_layers == 1 else "layers"
        against, expect = (None, None) if name == deepest else (deepest, "lower")
        text = f"{n_layers} {layers}, {d_model} wide{label}"
        arm = Arm(
            name,
            text,
            shape(n_layers, d_model),
            settings or {},
            against=against,
            expect=expect,
        )
        found.append(arm)
    return found


EXPERIMENT = Experiment(
    id="E7",
    chapter="12",
    title="Layers against width at equal weights",
    question="Which shape learns most in 400 steps, if the blocks hold as many weights?",
    note="The matrices of the blocks hold 150,528 or 153,600 weights; the embedding grows with the "
    "width. The expected sign is that of a first try with one seed: the shallow ones win, because "
    "400 steps do not train eight layers. Nothing here says which shape is better at scale.",
    arms=(
        *arms(SHAPES),
        *arms((SHAPES[0], SHAPES[-1]), ", lr 0.006", ", twice the rate", TWICE),
    ),
)
