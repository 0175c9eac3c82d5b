"""Exercises of chapter 08, the sliding window: how far it reaches, another convention, a cache."""

import torch
from torch import Tensor

from gptoss_lite.config import ModelConfig
from gptoss_lite.exercises.exercise import Exercise
from gptoss_lite.presets import PRESETS


def reach(config: ModelConfig, n_tokens: int) -> list[int]:
    """Return, after each layer, how many input tokens the last token may depend on.

    Itself included. `config.window(layer)` is the number of keys a query of that layer sees, or
    None for all. The text has n_tokens tokens, so no entry is larger than that.
    """
    reached, tokens = [], 1
    for layer in range(config.n_layers):
        window = config.window(layer)
        tokens = n_tokens if window is None else min(n_tokens, tokens + window - 1)
        reached.append(tokens)
    return reached


def _one_too_many(config: ModelConfig, n_tokens: int) -> list[int]:
    reached, tokens = [], 0
    for layer in range(config.n_layers):
        window = config.window(layer)
        tokens = n_tokens if window is None else min(n_tokens, tokens + window)
        reached.append(tokens)
    return reached


def _own_window_only(config: ModelConfig, n_tokens: int) -> list[int]:
    windows = [config.window(layer) for layer in range(config.n_layers)]
    return [min(n_tokens, window or n_tokens) for window in windows]


def _beyond_the_text(config: ModelConfig, n_tokens: int) -> list[int]:
    reached, tokens = [], 1
    for layer in range(config.n_layers):
        window = config.window(layer)
        tokens = n_tokens if window is None else tokens + window - 1
        reached.append(tokens)
    return reached


def seen(n_queries: int, n_keys: int, left: int, right: int) -> Tensor:
    """Return a bool mask [n_queries, n_keys] for a window written as FlashAttention writes it.

    Position i may read positions i - left to i + right, both included; -1 means without a limit.
    The newest query stands at the newest key, as in `visible`.
    """
    queries = torch.arange(n_keys - n_queries, n_keys)[:, None]
    keys = torch.arange(n_keys)[None, :]
    after_start = (keys >= queries - left) if left >= 0 else torch.ones_like(keys).bool()
    before_end = (keys <= queries + right) if right >= 0 else torch.ones_like(keys).bool()
    return (after_start & before_end).expand(n_queries, n_keys).clone()


def _counted(n_queries: int, n_keys: int, left: int, right: int) -> Tensor:
    return seen(n_queries, n_keys, left - 1 if left > 0 else left, right)


def _from_the_start(n_queries: int, n_keys: int, left: int, right: int) -> Tensor:
    return seen(n_keys, n_keys, left, right)[:n_queries].clone()


def _no_limit_is_a_number(n_queries: int, n_keys: int, left: int, right: int) -> Tensor:
    queries = torch.arange(n_keys - n_queries, n_keys)[:, None]
    keys = torch.arange(n_keys)[None, :]
    return (keys >= queries - left) & (keys <= queries + right)


def roll(kept: Tensor, new: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return (the keys that the new tokens' attention is given, the keys to keep afterwards).

    kept is [n, hd] from earlier calls, oldest first; new is [T, hd], one token or many. A query
    sees `window` keys, itself included, and the mask hides from it what it may not see. Give no
    key that none of the new tokens can see; keep the last `window` keys, or fewer while there
    are fewer.
    """
    past = kept[max(0, len(kept) - (window - 1)) :]
    given = torch.cat((past, new))
    return given, given[-window:]


def broken_roll(kept: Tensor, new: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return (the keys that the new tokens' attention is given, the keys to keep afterwards).

    kept is [n, hd] from earlier calls, oldest first; new is [T, hd], one token or many. A query
    sees `window` keys, itself included, and the mask hides from it what it may not see. Give no
    key that none of the new tokens can see; keep the last `window` keys, or fewer while there
    are fewer.
    """
    given = torch.cat((kept, new))[-window:]
    return given, given


def _one_more(kept: Tensor, new: Tensor, window: int) -> tuple[Tensor, Tensor]:
    given = torch.cat((kept[-window:], new))
    return given, given[-window:]


def _keeps_all(kept: Tensor, new: Tensor, window: int) -> tuple[Tensor, Tensor]:
    given, _ = roll(kept, new, window)
    return given, given


def _keys(n: int, first: int = 0) -> Tensor:
    """Make n keys of width 2 that say their positions."""
    positions = torch.arange(first, first + n, dtype=torch.float32)
    return torch.stack((positions, -positions), dim=-1)


_SMALL = PRESETS["gpt-oss-nano"].but(n_layers=4, sliding_window=4)

EXERCISES = (
    Exercise(
        id="ch08.ex1",
        title="How far back",
        minutes=8,
        level="easy",
        solution=reach,
        cases=(
            (_SMALL.but(layer_pattern="S"), 64),
            (_SMALL, 64),
            (PRESETS["gpt-oss-20b"].but(n_layers=3), 100),
        ),
        hidden=(
            (_SMALL.but(layer_pattern="S"), 9),
            (_SMALL.but(layer_pattern="SSSF"), 1_000),
            (_SMALL.but(layer_pattern="S", sliding_window=1), 7),
            (PRESETS["gpt-oss-20b"], 131_072),
        ),
        hints=(
            "Before any layer a token depends on itself: 1. How many more does a window of W add?",
            "W - 1 more: the oldest key in the window carries what it has reached. Start with 1, "
            "add W - 1 in a sliding layer, go to n_tokens in a full one, never past n_tokens.",
        ),
        wrong=(_one_too_many, _own_window_only, _beyond_the_text),
    ),
    Exercise(
        id="ch08.ex2",
        title="The other convention",
        minutes=10,
        level="implement",
        solution=seen,
        cases=((4, 4, 1, 0), (3, 3, -1, 0), (1, 5, 2, 0)),
        hidden=((2, 6, 3, 0), (4, 4, 0, 0), (5, 5, 1, 1), (3, 7, -1, -1), (3, 6, 2, -1)),
        hints=(
            "Write down the positions of the queries first. The last one is n_keys - 1.",
            "queries = torch.arange(n_keys - n_queries, n_keys)[:, None], keys = "
            "torch.arange(n_keys)[None, :]; then two comparisons, each only where its bound "
            "is not -1.",
        ),
        wrong=(_counted, _from_the_start, _no_limit_is_a_number),
    ),
    Exercise(
        id="ch08.ex3",
        title="A cache that forgets too early",
        minutes=10,
        level="find the bug",
        solution=roll,
        stub=broken_roll,
        cases=(
            (_keys(0), _keys(1), 4),
            (_keys(4), _keys(1, 4), 4),
            (_keys(4), _keys(3, 4), 4),
        ),
        hidden=((_keys(0), _keys(9), 4), (_keys(2), _keys(7, 2), 4), (_keys(1), _keys(1, 1), 1)),
        hints=(
            "One token at a time it is right. Which keys does the first of three new tokens need?",
            "The first new token needs window - 1 keys before it. Trim the past to that, join, and "
            "trim to `window` only what is kept for next time.",
        ),
        wrong=(_one_more, _keeps_all),
    ),
)
