"""One model on several devices: every rank holds a share of each layer, and sums make it whole.

A rank is one of the processes that `torchrun` starts, one for each GPU. Attention is split by
heads, the mixture by experts, a dense MLP by hidden features, the vocabulary by tokens. Each rank
then computes one term of what attention, and of what the experts, add to the residual stream; two
sums over the ranks in each layer make the stream whole again, the same on every rank. Norms and
routers are small and stay whole.

    torchrun --nproc-per-node 2 -m gptoss_lite chat --model openai/gpt-oss-120b "What is a sink?"

The communication is written out, not left to DTensor: `ColwiseParallel` takes `nn.Linear` and
`nn.Embedding` only, and the fast versions of our operations read plain memory.

Source:
    Shoeybi et al. 2019 (Megatron-LM), section 3; Lepikhin et al. 2020 (GShard), section 3.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_lite import hub
from gptoss_lite.checkpoint import load_share, place
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import BackendError, GptOssLiteError
from gptoss_lite.ffn import activation
from gptoss_lite.model import Transformer
from gptoss_lite.moe import MixtureOfExperts, apply_experts, route
from gptoss_lite.ranks import check_ranks

TIMEOUT_S = 600  # how long a rank waits for the others; slow disks load at different speeds
Group = dist.ProcessGroup | None  # None: all processes
Result = TypeVar("Result")


# --- ranks ---------------------------------------------------------------------------------------


def is_launched() -> bool:
    """Say whether `torchrun` started this process."""
    return dist.is_torchelastic_launched()


def start(device: str | None = None, timeout_s: float = TIMEOUT_S) -> torch.device:
    """Join the other processes that `torchrun` started; a second call only returns the device.

    All ranks then draw the same random numbers, or they would sample different texts.

    Args:
        device: "cpu" or "cuda"; one GPU for each process if there are GPUs.
        timeout_s: a rank that waits longer than this for another one fails.

    Returns:
        The device of this process.

    Raises:
        BackendError: not started by `torchrun`, or more processes than GPUs.
    """
    if not is_launched():
        raise BackendError(
            "This is one process alone. Start several with `torchrun --nproc-per-node 2 "
            "-m gptoss_lite generate ...`, or use gptoss_lite.load."
        )
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    target = torch.device(kind)
    if kind == "cuda":
        n_processes, n_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if n_processes > n_gpus:
            raise BackendError(
                f"{n_processes} processes need a GPU each, and this machine has {n_gpus}. "
                f"Use --nproc-per-node {n_gpus}, or --device cpu."
            )
        target = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(target)
    if not dist.is_initialized():
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        seed = [torch.initial_seed()]
        dist.broadcast_object_list(seed)
        torch.manual_seed(seed[0])
    return target


def stop() -> None:
    """Leave the group that `start` joined, if it did."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Say whether this process is the one that prints: rank 0, or not one of several."""
    return int(os.environ["RANK"]) == 0 if is_launched() else True


def together(work: Callable[[], Result], group: Group = None) -> Result:
    """Do something on every rank; where it fails on one, fail on all.

    Without this, the others would wait for a rank that is gone until their time is over.

    Raises:
        BackendError: names the first rank that failed and its reason. If all failed for the same
            reason, each raises its own error.
    """
    result, problem = None, None
    try:
        result = work()
    except (GptOssLiteError, OSError, RuntimeError) as caught:  # out of memory is a RuntimeError
        problem = caught
    reasons: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reasons, problem and f"{problem}", group)
    failed = [rank for rank, reason in enumerate(reasons) if reason is not None]
    if problem and len(set(reasons)) == 1:
        raise problem
    if failed:
        raise BackendError(
            f"{len(failed)} of {len(reasons)} ranks failed; rank {failed[0]}: {reasons[failed[0]]}"
        )
    return result  # pyright: ignore[reportReturnType]


# --- who holds what ------------------------------------------------------------------------------

# Each takes a whole tensor, a rank and the number of ranks, and returns what the rank holds.
Cut = Callable[[Tensor, int, int], Tensor]


def _rows(tensor: Tensor, rank: int, n_ranks: int) -> Tensor:
    """Keep some of the first axis: heads, experts, tokens. The last rank may get fewer."""
    size = -(-len(tensor) // n_ranks)
    return tensor[rank * size : (rank + 1) * size]


def _columns(weight: Tensor, rank: int, n_ranks: int) -> Tensor:
    """Keep the columns that meet the features this rank has; copied, to lie together."""
    return weight.chunk(n_ranks, dim=1)[rank].contiguous()


def _once(bias: Tensor, rank: int, n_ranks: int) -> Tensor:
    """Keep a bias on the first rank only: the sum over the ranks must hold it once."""
    return bias if rank == 0 else torch.zeros_like(bias)


def _features(stacked: Tensor, rank: int, n_ranks: int, n_in: int) -> Tensor:
    """Keep some hidden features of [gate | up] rows: the same ones of both halves."""
    parts = stacked.unflatten(0, (n_in, -1))  # [n_in F ...]
    return parts.chunk(n_ranks, dim=1)[rank].flatten(0, 1)


def _cuts(config: ModelConfig) -> dict[str, Cut]:
    """Return how each tensor is cut, by its name inside the model or inside a block."""
    cuts: dict[str, Cut] = dict.fromkeys(("embed.weight", "unembed.weight", "attn.sinks"), _rows)
    cuts |= {f"attn.{x}.{leaf}": _rows for x in "qkv" for leaf in ("weight", "bias")}
    cuts |= {"attn.o.weight": _columns, "attn.o.bias": _once}
    if config.moe:
        leaves = ("weight", "blocks", "scales", "bias")
        return cuts | {f"ffn.{x}.{leaf}": _rows for x in ("up", "down") for leaf in leaves}
    features = partial(_features, n_in=activation(config)[1])
    cuts |= {"ffn.up.weight": features, "ffn.up.bias": features}
    return cuts | {"ffn.down.weight": _columns, "ffn.down.bias": _once}


def share(config: ModelConfig, rank: int, n_ranks: int) -> Callable[[str, Tensor], Tensor]:
    """Return the function that cuts a rank's share out of a whole tensor, given its name.

    Raises:
        ConfigError: heads, experts or features that cannot be dealt out evenly.
    """
    check_ranks(config, n_ranks)
    cuts = _cuts(config)

    def cut(name: str, tensor: Tensor) -> Tensor:
        inside = name.split(".", 2)[2] if name.startswith("blocks.") else name
        return cuts[inside](tensor, rank, n_ranks) if inside in cuts else tensor

    return cut


# --- load ----------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    experts: str = "packed",
    progress: bool = True,
    group: Group = None,
) -> Transformer:
    """Load this rank's share of a published model; every rank calls it, with the same arguments.

    Of each tensor only the share is read and held. Calling the model, and so `generate`, then
    needs all ranks: each gives the same tokens and gets the same logits.

    A trace sees `probs` and `sink_mass` of this rank's heads only, H / P of them beginning at head
    rank * H / P, and everything else whole. `save_checkpoint` refuses.

    Args:
        source: as for `gptoss_lite.load`, as are `dtype` and `experts`.
        device: "cpu" or "cuda"; a GPU for each process if there are GPUs.
        dtype: dtype to compute in.
        experts: "packed" or "dense".
        progress: draw a bar, on the first rank.
        group: the ranks that share the model, all on one kind of device; None joins all that
            `torchrun` started.

    Raises:
        ConfigError: heads, experts or features that cannot be dealt out evenly.
        CheckpointError, BackendError: as for `gptoss_lite.load`, on whichever rank it happened.

    Example:
        Two GPUs, `torchrun --nproc-per-node 2 answer.py`, with answer.py::

            import gptoss_lite as gl
            from gptoss_lite import parallel

            model = parallel.load("openai/gpt-oss-120b")
            tok = gl.load_tokenizer("openai/gpt-oss-120b")
            prompt = tok.render([{"role": "user", "content": "What is a sink?"}])
            answer = list(gl.generate(model, prompt, max_new_tokens=256, stop=tok.stop_ids))
            if parallel.is_first():
                print(tok.decode(answer))
            parallel.stop()
    """
    by_hand = dist.is_initialized() and not is_launched()
    target = device if by_hand else start(device and str(device))
    rank, n_ranks = dist.get_rank(group), dist.get_world_size(group)

    def own_share() -> Transformer:
        folder = hub.find(source, want="weights", progress=progress and rank == 0)
        cut = share(ModelConfig.from_hf(folder), rank, n_ranks)
        options = {"dtype": dtype, "experts": experts, "progress": progress and rank == 0}
        return load_share(folder, cut, device=target, **options)

    return _connect(together(own_share, group), group)


def parallelize(model: Transformer, group: Group = None) -> Transformer:
    """Cut a whole model down to this rank's share, in place; every rank gives the same model.

    `load` does the same without ever holding the whole. The parameters need no gradient then.

    Raises:
        ConfigError: heads, experts or features that cannot be dealt out evenly.
    """
    cut = share(model.config, dist.get_rank(group), dist.get_world_size(group))
    for name, tensor in model.state_dict().items():
        place(model, name, cut(name, tensor).clone())  # a view would keep the whole alive
    if model.config.tied:
        model.unembed.weight = model.embed.weight  # pyright: ignore[reportAttributeAccessIssue]
    return _connect(model, group)


def held_bytes(model: Transformer) -> int:
    """Count the bytes of all weights that this process holds; equals `ranks.rank_weight_bytes`."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


# --- compute -------------------------------------------------------------------------------------


def _connect(model: Transformer, group: Group) -> Transformer:
    """Make a model that holds a share give whole answers: the places where ranks talk."""
    rank, model.n_ranks = dist.get_rank(group), dist.get_world_size(group)
    add_up = partial(_add_up, group=group)
    first = rank * _share_of_vocabulary(model)
    model.embed = SharedEmbedding(model.embed.weight, first, group)  # pyright: ignore[reportAttributeAccessIssue]
    for block in model.blocks:
        if isinstance(block.ffn, MixtureOfExperts):
            experts = LocalExperts(block.ffn, rank, model.n_ranks)
            block.ffn = experts  # pyright: ignore[reportAttributeAccessIssue]
        block.attn.register_forward_hook(add_up)
        block.ffn.register_forward_hook(add_up)
    model.unembed.register_forward_hook(partial(_gather, model=model, group=group))
    return model


def _share_of_vocabulary(model: Transformer) -> int:
    return -(-model.config.vocab_size // model.n_ranks)


def _add_up(module: nn.Module, args: Any, term: Tensor, group: Group) -> Tensor:
    """Replace a rank's term by the sum of all ranks' terms."""
    total = term.contiguous()
    dist.all_reduce(total, group=group)
    return total


def _gather(module: nn.Module, args: Any, own: Tensor, model: Transformer, group: Group) -> Tensor:
    """Replace the logits of a rank's own tokens by those of the vocabulary."""
    own = F.pad(own, (0, _share_of_vocabulary(model) - own.shape[-1])).contiguous()
    parts = [torch.empty_like(own) for _ in range(model.n_ranks)]
    dist.all_gather(parts, own, group)
    return torch.cat(parts, -1)[..., : model.config.vocab_size]


class SharedEmbedding(nn.Module):
    """An embedding table of which each rank holds some rows, beginning with token `first`."""

    def __init__(self, weight: Tensor, first: int, group: Group) -> None:
        super().__init__()
        self.weight = weight
        self.first = first
        self.group = group

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Look up the rows held here, zero for others, and add up over the ranks."""
        row = tokens - self.first
        is_here = (row >= 0) & (row < len(self.weight))
        found = torch.zeros(
            *tokens.shape, self.weight.shape[1], dtype=self.weight.dtype, device=tokens.device
        )
        found[is_here] = self.weight[row[is_here]]
        dist.all_reduce(found, group=self.group)
        return found


class LocalExperts(nn.Module):
    """The whole router and this rank's experts: it answers only for those."""

    def __init__(self, whole: MixtureOfExperts, rank: int, n_ranks: int) -> None:
        super().__init__()
        self.n_active, self.activation = whole.n_active, whole.activation
        self.router, self.up, self.down = whole.router, whole.up, whole.down
        self.n_here = whole.router.weight.shape[0] // n_ranks
        self.first = rank * self.n_here

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return this rank's term of the experts' contribution to the residual stream.

        Each choice of one of our experts becomes a row of its own, so that nothing is computed
        for the others' experts, whichever backend computes.
        """
        tokens = x.flatten(0, 1)  # [N D]
        weights, ids = route(self.router(tokens), self.n_active)
        expert = ids - self.first  # [N A]
        token, slot = ((expert >= 0) & (expert < self.n_here)).nonzero(as_tuple=True)  # [M] each
        total = torch.zeros(tokens.shape, dtype=torch.float32, device=x.device)
        if len(token):  # else no kernel can be started: it would have nothing to do
            rows, shares = tokens[token], weights[token, slot, None]
            own = expert[token, slot, None]
            answers = apply_experts(rows, shares, own, self.up, self.down, self.activation)
            total.index_add_(0, token, answers.float())
        return total.to(x.dtype).view_as(x)
