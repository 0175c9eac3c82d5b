"""E4: many small experts or few large ones, at the same total and active size?"""

from typing import Any

import torch
from torch import nn

from experiments.small import Arm, Experiment
from gptoss_lite import corpus
from gptoss_lite.config import ModelConfig, MoEConfig
from gptoss_lite.model import Transformer
from gptoss_lite.train import Result, build, one_thread

TOTAL, ACTIVE = 512, 128  # hidden width of all experts together, and of those a token uses
BALANCE = {"balance": 0.02}
LOAD_BLOCKS = 16


def start_rescaled(config: ModelConfig, seed: int, steps: int) -> Transformer:
    """Build a model whose gates sum to A instead of 1, so that the output keeps its scale.

    A hook multiplies the block's output by A. The output matrices need nothing more: the
    package draws them with one standard deviation whatever the width.
    """
    model = build(config, seed)
    assert config.moe is not None
    for block in model.blocks:
        block.ffn.register_forward_hook(_times(config.moe.n_active))
    return model


def _times(factor: int) -> Any:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * factor

    return hook


@torch.no_grad()
def load(result: Result) -> dict[str, Any]:
    """Measure how unevenly the experts are used on held-out text, worst layer."""
    model, moe = result.model.eval(), result.model.config.moe
    assert moe is not None
    shares: list[torch.Tensor] = []

    def count(module: nn.Module, args: Any, logits: torch.Tensor) -> None:
        chosen = logits.topk(moe.n_active, -1).indices.flatten()
        shares.append(chosen.bincount(minlength=moe.n_experts) / len(chosen) * moe.n_experts)

    hooks = [block.ffn.router.register_forward_hook(count) for block in model.blocks]
    n_blocks = min(LOAD_BLOCKS, result.recipe.n_validation)
    with one_thread():
        model(corpus.windows(corpus.load().validation[:n_blocks], result.recipe.length)[:, :-1])
    for hook in hooks:
        hook.remove()
    busiest = max(float(share.max()) for share in shares)
    return {"busiest_expert": busiest, "dead_experts": sum(int((s == 0).sum()) for s in shares)}


def experts(n_experts: int, n_active: int, *, rescaled: bool, **more: Any) -> Arm:
    """Describe an arm with n_experts experts that share the total width."""
    width = TOTAL // n_experts
    assert width * n_active == ACTIVE
    changes = {"ffn": "swiglu", "moe": MoEConfig(n_experts, n_active), "d_ff": width}
    size = f"{n_experts} experts of {width}, top-{n_active}"
    return Arm(
        f"{'rescaled' if rescaled else 'plain'} {n_experts}x{width} top-{n_active}",
        f"{size}{'' if rescaled else ', gates sum to 1'}",
        changes,
        BALANCE,
        note="output times the number of active experts" if rescaled else "",
        start=start_rescaled if rescaled else None,
        measure=load,
        **more,
    )


COARSE = "rescaled 8x64 top-2"

EXPERIMENT = Experiment(
    id="E4",
    chapter="06",
    title="Expert granularity",
    question="At equal total and active size, are many small experts better than few large ones?",
    note="Hidden width 512 in all, 128 active. Routers and output biases grow with the number of "
    "experts (2 %). gpt-oss's gates average the experts' answers, so the output shrinks as more "
    "are active; the rescaled arms undo that. With one active expert the router gets no gradient "
    "but the balance loss's.",
    arms=(
        experts(8, 2, rescaled=True),
        experts(16, 4, rescaled=True, against=COARSE, expect="lower"),
        experts(32, 8, rescaled=True, against=COARSE, expect="lower"),
        Arm(
            "dense",
            "dense, the active size",
            {"ffn": "swiglu", "d_ff": ACTIVE},
            against="rescaled 32x16 top-8",
            expect="higher",
        ),
        experts(32, 8, rescaled=False, against="rescaled 32x16 top-8", expect="higher"),
        experts(4, 1, rescaled=False, against=COARSE, expect="higher"),
    ),
)
