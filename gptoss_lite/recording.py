"""Record one run of a model as a file: where attention went and which experts worked.

The schema keeps the log-sum-exp of the scores instead of the dense attention: from it and the
sink logits follows every sink mass, at T values a head instead of T * T.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from gptoss_lite.errors import CheckpointError, ShapeError
from gptoss_lite.model import Transformer
from gptoss_lite.tokenizer import Tokenizer
from gptoss_lite.trace import trace

SCHEMA = 1


@dataclass(frozen=True)
class Recording:
    """One recorded run.

    `arrays`: sink_mass f32 [L H T], lse f32 [L H T], sink f32 [L H], expert_idx u8 [L T A],
    expert_w f32 [L T A], router_logits f32 [L T E], token_ids i64 [T]. `about`: schema, model
    sizes, windows, tokens as text, dtype, date, and whether the weights are synthetic.
    """

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, `about` as JSON in its metadata; atomic."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        save_file(self.arrays, part, metadata={"about": json.dumps(self.about)})
        return part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Read a file that `save` or the `trace` command wrote.

        Raises:
            CheckpointError: no such file, or one that is no recording of this schema.
        """
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {})["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise CheckpointError(f"There is no recording at {path}.") from None
        except (SafetensorError, KeyError, ValueError):
            raise CheckpointError(
                f"{path} is no recording. `gptoss-lite trace` makes one."
            ) from None
        if about.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {about.get('schema')}, not {SCHEMA}. Record it again."
            )
        return cls(arrays, about)


def record(model: Transformer, tokenizer: Tokenizer, ids: Sequence[int]) -> Recording:
    """Run the model over a whole text once and keep its sinks and its routing.

    Args:
        model: a model with sinks and experts.
        tokenizer: to show the tokens as text.
        ids: prompt and answer together.

    Raises:
        ShapeError: a model without sinks or without experts, or no tokens.
    """
    if not model.config.sinks or model.config.moe is None:
        raise ShapeError("Only a model with sinks and experts, such as gpt-oss, can be recorded.")
    tokens = torch.tensor([list(ids)], device=model.device)
    with (
        torch.no_grad(),
        trace(model, "sink_mass", "router_logits", "expert_ids", "expert_weights") as t,
    ):
        model.hidden(tokens)
    learned = [block.attn.sinks for block in model.blocks if block.attn.sinks is not None]
    sink = torch.stack([sinks.detach().float().cpu() for sinks in learned])
    sink_mass = torch.cat(t.per_layer("sink_mass"))  # [L H T]
    arrays = {
        "sink": sink,
        "sink_mass": sink_mass,
        # sink mass = sigmoid(sink - lse), so the scores' log-sum-exp comes back from it
        "lse": sink[:, :, None] - sink_mass.double().logit().float(),
        "router_logits": torch.stack(t.per_layer("router_logits")).float(),
        "expert_idx": torch.stack(t.per_layer("expert_ids")).to(torch.uint8),
        "expert_w": torch.stack(t.per_layer("expert_weights")),
        "token_ids": tokens[0].cpu(),
    }
    return Recording(
        {name: _numpy(tensor) for name, tensor in arrays.items()}, _about(model, tokenizer, ids)
    )


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()


def _about(model: Transformer, tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    config, moe = model.config, model.config.moe
    assert moe is not None
    return {
        "schema": SCHEMA,
        "model": model.source.name if model.source else "random weights",
        "synthetic": model.source is None,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "n_experts": moe.n_experts,
        "n_active": moe.n_active,
        "window": [config.window(layer) for layer in range(config.n_layers)],
        "tokens": [tokenizer.token(i) for i in ids],
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "date": datetime.date.today().isoformat(),
    }
