"""When only some experts are in fast memory: how often the chosen ones are, and what must move.

Each layer keeps the experts that it used last (LRU). The experts of a token are looked up together:
those that are held are hits, the others are fetched, and what was used longest ago makes room. How
far back an expert was used decides at once for every number of slots, so one pass suffices (Mattson
et al. 1970, "Evaluation techniques for storage hierarchies").
"""

import numpy as np
from jaxtyping import Float, Integer

SHUFFLES = 8  # orders of the tokens that the control is averaged over

# Hit rates of gpt-oss-20b by slots a layer, LRU over 25 answers to benchmark questions, computed
# from the expert lists of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0).
# With few slots they are a little low: those traces keep 1.77 of 4 experts of the token before, so
# looked up together 4 slots would hit 44 %. Apparently that count went expert by expert.
PUBLISHED_20B = {4: 0.36, 8: 0.64, 12: 0.80, 16: 0.89, 20: 0.94, 24: 0.97}
PUBLISHED_20B_SHUFFLED = {8: 0.51, 16: 0.84}

# Bytes per second that cross the link at best, in GB of 10 ** 9 bytes.
LINKS = {
    "nvme": ("NVMe, 3 GB/s", 3.0),
    "pcie3": ("PCIe 3.0 x16, 16 GB/s", 16.0),
    "pcie4": ("PCIe 4.0 x16, 32 GB/s", 32.0),
}


def distances(ids: Integer[np.ndarray, "L T A"], n_experts: int) -> Integer[np.ndarray, "L T A"]:
    """Count the experts that a layer used more recently than each chosen one, before that token.

    Within a token those named first count as the more recent. An expert that was never used is
    `n_experts` away. With n slots an expert is held if its distance is below n.

    Args:
        ids: the chosen experts of each layer and token, the largest weight first.
        n_experts: experts of a layer.

    Example:
        >>> distances(np.array([[[0, 1], [2, 0], [1, 2]]]), 4).tolist()
        [[[4, 4], [4, 0], [2, 0]]]
    """
    found = np.empty(ids.shape, dtype=np.int64)
    stamp = np.full((len(ids), n_experts), -1)  # when each expert of each layer was used last
    for t, chosen in enumerate(ids.astype(np.int64).swapaxes(0, 1)):
        last = np.take_along_axis(stamp, chosen, 1)
        found[:, t] = (stamp[:, None] > last[..., None]).sum(-1)
        found[:, t][last < 0] = n_experts
        np.put_along_axis(stamp, chosen, np.arange(chosen.shape[1], 0, -1) + t * n_experts, 1)
    return found


def hit_rates(
    away: Integer[np.ndarray, "L T A"], n_experts: int, first: int = 0
) -> Float[np.ndarray, "L N"]:
    """Return the share of lookups that find their expert, for A, A + 1, ... E slots a layer.

    Args:
        away: what `distances` returned.
        n_experts: experts of a layer, E.
        first: only lookups from this token on count; those before fill the cache.
    """
    counted = away[:, first:]
    slots = range(away.shape[-1], n_experts + 1)
    return np.stack([(counted < n).mean((1, 2)) for n in slots], axis=-1)


def shuffled_hit_rates(
    ids: Integer[np.ndarray, "L T A"], n_experts: int, first: int = 0, seed: int = 0
) -> Float[np.ndarray, "L N"]:
    """Return the same with the tokens from `first` on in random orders, on average.

    What is lost against the true order is what neighboring tokens have in common; what is left is
    that some experts are popular.
    """
    draw = np.random.default_rng(seed)
    rates = []
    for _ in range(SHUFFLES):
        order = np.concatenate((np.arange(first), first + draw.permutation(ids.shape[1] - first)))
        rates.append(hit_rates(distances(ids[:, order], n_experts), n_experts, first))
    return np.mean(rates, axis=0)
