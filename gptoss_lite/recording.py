"""Record one run of a model as a file: where attention went and which experts worked.

The schema keeps the log-sum-exp of the scores instead of the dense attention: from it and the
sink logits follows every sink mass, at T values a head instead of T * T.
"""

import datetime
import importlib.resources
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from gptoss_lite import account
from gptoss_lite.errors import CheckpointError, ShapeError
from gptoss_lite.model import Transformer
from gptoss_lite.tokenizer import Tokenizer
from gptoss_lite.trace import trace

SCHEMA = 1
EXAMPLES = ("add", "recall", "story", "long")
LENS_TOP = 5  # decoded tokens that a logit lens keeps
LENS_CHUNK = 32  # tokens whose logits are held at a time: 26 MB a copy with gpt-oss's vocabulary

_TRACES = importlib.resources.files("gptoss_lite") / "data" / "traces"


@dataclass(frozen=True)
class Recording:
    """One recorded run.

    `arrays`: sink_mass f32 [L H T], lse f32 [L H T], sink f32 [L H], expert_idx u8 [L T A],
    expert_w f32 [L T A], router_logits f32 [L T E], token_ids i64 [T]. With a logit lens, read
    after each block: lens_id u32 and lens_p f16 [L T 5], the most probable next tokens;
    lens_rank u32 [L T], the rank of the token that the text goes on with (of the last layer's
    first choice where the text ends); lens_kl f32 [L T], nats from the last layer's probabilities.
    `about`: schema, model sizes, windows, tokens as text, where the prompt ends, bytes of one
    expert, dtype, date, and whether the weights are synthetic.
    """

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, `about` as JSON in its metadata; atomic.

        Raises:
            CheckpointError: a path that cannot be written; nothing is left there.
        """
        path = Path(path)
        check_path(path)
        part = path.with_name(path.name + ".part")
        try:
            save_file(self.arrays, part, metadata={"about": json.dumps(self.about)})
            return part.replace(path)
        except (OSError, SafetensorError) as problem:
            with suppress(OSError):
                part.unlink()
            raise CheckpointError(f"{path} cannot be written: {problem}.") from None

    def lean(self) -> "Recording":
        """Leave out what takes much room: the router's logits, and masses that follow from lse."""
        arrays = {k: a for k, a in self.arrays.items() if k not in ("router_logits", "sink_mass")}
        arrays["expert_w"] = arrays["expert_w"].astype(np.float16)
        return replace(self, arrays=arrays)

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


def check_path(path: Path, *, devices: bool = False) -> None:
    """Refuse a file that cannot be written, before the work that is to fill it.

    Args:
        path: of the file; an old one may be there.
        devices: let such as /dev/stdout pass. They can be written to, but not replaced.

    Raises:
        CheckpointError: a folder, a device, or a folder around it that is absent or read-only.
    """
    try:
        if path.exists() and not path.is_file():
            if devices and not path.is_dir():
                return
            kind = "a folder" if path.is_dir() else "no plain file"
            raise CheckpointError(f"{path} is {kind}: name a file to write.")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as problem:
        raise CheckpointError(
            f"{path} cannot be written: {problem.strerror}. Name a file in a folder that exists "
            "and can be written to."
        ) from None


def example(name: str = "add") -> Recording:
    """Read a conversation with gpt-oss-nano that comes with the package; it has a logit lens.

    Args:
        name: one of `EXAMPLES`: "add", "recall", "story", or "long", three questions in a row.

    Returns:
        A recording without `router_logits`. `about` has besides: `messages` and `effort`, and
        `weights_sha256` of the weights that made it.

    Raises:
        CheckpointError: no such conversation.

    Example:
        >>> example("recall").about["model"]
        'gpt-oss-nano'
    """
    if name not in EXAMPLES:
        raise CheckpointError(f"No conversation {name!r} is stored. Stored: {list(EXAMPLES)}.")
    lean = Recording.load(Path(str(_TRACES / f"{name}.safetensors")))
    arrays = dict(lean.arrays)
    margin = arrays["sink"].astype(np.float64)[..., None] - arrays["lse"]
    arrays["sink_mass"] = (1 / (1 + np.exp(-margin))).astype(np.float32)
    arrays["expert_w"] = arrays["expert_w"].astype(np.float32)
    return replace(lean, arrays=arrays)


def record(
    model: Transformer,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    n_prompt: int = 0,
    lens: bool = False,
) -> Recording:
    """Run the model over a whole text once and keep its sinks and its routing.

    Args:
        model: a model with sinks and experts.
        tokenizer: to show the tokens as text.
        ids: prompt and answer together.
        n_prompt: how many of the ids are the prompt; 0 if there is no such border.
        lens: also read the residual stream after each block as the output head would.

    Raises:
        ShapeError: a model without sinks or without experts, or shared by several processes; no
            tokens, or a prompt longer than the text; numbers that are not finite.
    """
    if not 0 <= n_prompt <= len(ids):
        raise ShapeError(f"n_prompt={n_prompt} is not within this text of {len(ids)} tokens.")
    if not model.config.sinks or model.config.moe is None:
        raise ShapeError("Only a model with sinks and experts, such as gpt-oss, can be recorded.")
    if model.n_ranks > 1:
        raise ShapeError(
            f"This process holds one of {model.n_ranks} shares of the model, and so only some of "
            "its heads. Load it whole, with gptoss_lite.load, to record it."
        )
    tokens = torch.tensor([list(ids)], device=model.device)
    names = ["sink_mass", "router_logits", "expert_ids", "expert_weights", *["resid"] * lens]
    with torch.no_grad(), trace(model, *names) as t:
        hidden = model.hidden(tokens)
    with torch.no_grad():
        last = model.unembed(hidden[:, -1:])
    if not (torch.isfinite(hidden).all() and torch.isfinite(last).all()):
        raise ShapeError(
            "The model's numbers are not finite: its weights are damaged, or float16 overflowed. "
            "Run `gptoss-lite verify` on the checkpoint, or load it with dtype=torch.float32."
        )
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
    about = {**_about(model, tokenizer, ids), "n_prompt": n_prompt}
    found = {name: _numpy(tensor) for name, tensor in arrays.items()}
    if lens:
        found |= _lens(model, t.per_layer("resid"), tokens[0])
        seen = np.unique(found["lens_id"]).tolist()
        about["lens_text"] = {str(i): tokenizer.token(i) for i in seen}
    return Recording(found, about)


def _lens(
    model: Transformer, resid: list[Float[Tensor, "1 T D"]], tokens: Int[Tensor, " T"]
) -> dict[str, np.ndarray]:
    """Read the stream after each block through the last norm and the output head."""
    pieces = [
        _lens_piece(model, [layer[0, i : i + LENS_CHUNK] for layer in resid], tokens[i + 1 :])
        for i in range(0, len(tokens), LENS_CHUNK)
    ]
    dtypes = {"lens_id": "u4", "lens_p": "f2", "lens_rank": "u4", "lens_kl": "f4"}
    return {
        name: np.concatenate([_numpy(piece[name]) for piece in pieces], axis=1).astype(dtype)
        for name, dtype in dtypes.items()
    }


def _lens_piece(
    model: Transformer, resid: list[Float[Tensor, "t D"]], following: Int[Tensor, " rest"]
) -> dict[str, Tensor]:
    """Read some positions; `following` are the tokens after the first of them."""
    last = _lens_logits(model, resid[-1])
    target = last.argmax(-1)
    target[: len(following)] = following[: len(last)]  # shorter only where the text ends
    last = last.log_softmax(-1)
    found: dict[str, list[Tensor]] = {}
    for x in resid:
        layer = _lens_logits(model, x)
        p, ids = layer.softmax(-1).topk(min(LENS_TOP, layer.shape[-1]))
        rank = 1 + (layer > layer.gather(1, target[:, None])).sum(-1)
        kl = (last.exp() * (last - layer.log_softmax(-1))).sum(-1).clamp(min=0)
        for name, value in zip(
            ("lens_p", "lens_id", "lens_rank", "lens_kl"), (p, ids, rank, kl), strict=True
        ):
            found.setdefault(name, []).append(value.cpu())
    return {name: torch.stack(layers) for name, layers in found.items()}


def _lens_logits(model: Transformer, x: Float[Tensor, "t D"]) -> Float[Tensor, "t V"]:
    with torch.no_grad():
        return model.unembed(model.norm(x.to(model.device)[None]))[0].float()


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
        "expert_bytes": account.expert_bytes(config),
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "date": datetime.date.today().isoformat(),
    }
