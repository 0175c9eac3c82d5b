"""How far a mistake moves the logits, under a strict test and under lazier ones."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from unittest import mock

import torch
from torch import Tensor

from gptoss_lite import dispatch
from gptoss_lite.cache import KVCache
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import GptOssLiteError
from gptoss_lite.model import Transformer
from gptoss_lite.mutants.catalog import EXHIBITS, MUTANTS, Mutant
from gptoss_lite.mutants.hostile import GPT_OSS, VISIBLE, hostile, packed, randomise, tokens

LAZY_TOLERANCE = 1e-4  # of a test that compares logits with `allclose`

# The exhibits that one forward pass of one model can show.
ONE_PASS = tuple(m for m in EXHIBITS if m.config == GPT_OSS and not m.needs_cache)


@dataclass(frozen=True)
class Regime:
    """What a test runs: which weights, how long a prompt, and whether it decodes with a cache."""

    name: str
    random: bool  # weights where nothing hides, or as they are drawn at first
    length: int  # tokens of the prompt
    pieces: tuple[int, ...] = ()  # of the same prompt once more, with a cache
    batch: int = 2

    @property
    def tolerance(self) -> float:
        """What this test takes for rounding."""
        return VISIBLE if self.random else LAZY_TOLERANCE


STRICT = Regime("strict", random=True, length=45, pieces=(11, 3, 28, 1, 1, 1))
LAZY = Regime("lazy", random=False, length=6, batch=1)


def _specification() -> AbstractContextManager[object]:
    """Compute with the plain operations for a while, whatever was forced before."""
    return mock.patch.object(dispatch, "_FORCED", "plain")


@contextmanager
def planted(mutant: Mutant) -> Iterator[ModelConfig]:
    """Put the mutant's functions in place of the package's; give the config it wants.

    Everything is as before when the block ends. The mistakes are planted in the specification, so
    fast backends are off meanwhile.

    Example:
        >>> from gptoss_lite.mutants import mutant
        >>> with planted(mutant("window one too wide")) as config:
        ...     config.sliding_window
        8
    """
    with ExitStack() as stack:
        stack.enter_context(_specification())
        for owner, name, wrong in mutant.plant.swaps:
            stack.enter_context(mock.patch.object(owner, name, wrong))
        yield mutant.config.but(**mutant.plant.fields)


def missed(weights: Mapping[str, Tensor], ids: Tensor) -> list[str]:
    """Run one forward pass with the given weights and tokens; name the mistakes it cannot see.

    Tried are the exhibits that one pass of the model `GPT_OSS` can show. A mistake is seen if it
    moves a logit by a thousandth of the logits' own spread.

    Args:
        weights: by the names of `Transformer.state_dict()`.
        ids: tokens, [B, T].
    """
    before = _run(GPT_OSS, weights, ids)
    visible = VISIBLE * before.std().item()
    found = []
    for mutant in ONE_PASS:
        with planted(mutant) as config:
            # `not >`, so that a pass whose logits are all equal, or NaN, sees nothing
            if not (_run(config, weights, ids) - before).abs().max().item() > visible:
                found.append(mutant.name)
    return found


def _run(config: ModelConfig, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    network = Transformer(config).eval()
    network.load_state_dict(weights, strict=False)
    with torch.no_grad(), _specification():
        return network(ids)


@cache
def damage(mutant: Mutant, regime: Regime = STRICT) -> float:
    """Return how far a mistake moves the logits: the largest difference.

    Example:
        >>> from gptoss_lite.mutants import mutant
        >>> damage(mutant("no window")) > 1, damage(mutant("no window"), LAZY)
        (True, 0.0)
    """
    weights, before = _right(mutant.config, regime)
    loaded = weights if mutant.plant.load is None else mutant.plant.load(weights)
    with planted(mutant) as config:
        network = _build(config)
        if network.load_state_dict(loaded, strict=False).missing_keys:
            raise GptOssLiteError(f"Mutant {mutant.name!r} has parameters that got no weights.")
        after = _logits(network, regime)
    if not after.isfinite().all():
        raise GptOssLiteError(f"Mutant {mutant.name!r} gives logits that are not finite.")
    return (after - before).abs().max().item()


def caught(mutant: Mutant, regime: Regime = STRICT) -> bool:
    """Say whether a test in this regime sees the mistake."""
    tolerance = mutant.visible if regime.random else regime.tolerance
    return damage(mutant, regime) >= tolerance


@cache
def _right(config: ModelConfig, regime: Regime) -> tuple[dict[str, Tensor], Tensor]:
    """Return the weights of the model without a mistake, and its logits."""
    with _specification():
        if regime.random:
            network = hostile(config)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = Transformer(config).eval()
        network = packed(network) if config.expert_dtype == "mxfp4" else network
        return network.state_dict(), _logits(network, regime)


def _build(config: ModelConfig) -> Transformer:
    network = Transformer(config).eval()
    return packed(randomise(network)) if config.expert_dtype == "mxfp4" else network


def _logits(network: Transformer, regime: Regime) -> Tensor:
    """Run the prompt in one call and, if there are pieces, once more with a cache."""
    ids = tokens(network.config, regime.batch, regime.length)
    kv = KVCache(network.config)
    pieces = ids.split(list(regime.pieces), dim=1) if regime.pieces else ()
    with torch.no_grad():
        return torch.cat((network(ids), *(network(piece, kv) for piece in pieces)), dim=1)


def table() -> str:
    """Return one line a mutant: its damage, and whether the lazy test misses it."""
    lines = [f"{'mutant':<45} {'damage':>8}  {'lazy test':>9}"]
    n_caught = n_missed = 0
    for one in MUTANTS:
        lazily = damage(one, LAZY)
        n_caught += caught(one)
        n_missed += lazily < LAZY_TOLERANCE
        seen = "missed" if lazily < LAZY_TOLERANCE else "seen"
        lines.append(f"{one.name:<45} {damage(one):>8.1e}  {lazily:>9.1e}  {seen}")
    lines.append(f"{n_caught} of {len(MUTANTS)} caught; {n_missed} missed by the lazy test")
    return "\n".join(lines)
