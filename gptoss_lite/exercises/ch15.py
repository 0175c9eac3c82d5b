"""Exercises of chapter 15, speed: a limit, a batch, and a guess that must not change the answer."""

from gptoss_lite.exercises.exercise import Exercise


def decode_limit(held: dict[str, int], n_experts: int, n_active: int, bandwidth: float) -> float:
    """Return how many tokens a second memory allows at most, one token at a time.

    `held` has the bytes of each kind of weight: "experts" of all experts together, "embedding", of
    which a token reads one row and you count nothing, and others, which a token reads whole. A
    token uses `n_active` of the `n_experts` experts. `bandwidth` is in bytes a second.
    """
    read = sum(size for kind, size in held.items() if kind not in ("experts", "embedding"))
    read += held.get("experts", 0) * n_active / n_experts
    return bandwidth / read


def _all_weights(held: dict[str, int], n_experts: int, n_active: int, bandwidth: float) -> float:
    return bandwidth / sum(held.values())


def _with_embedding(held: dict[str, int], n_experts: int, n_active: int, bandwidth: float) -> float:
    read = sum(size for kind, size in held.items() if kind != "experts")
    return bandwidth / (read + held.get("experts", 0) * n_active / n_experts)


def _seconds(held: dict[str, int], n_experts: int, n_active: int, bandwidth: float) -> float:
    return 1 / decode_limit(held, n_experts, n_active, bandwidth)


def experts_read(n_experts: int, n_active: int, batch: int) -> float:
    """Return how many different experts a batch of tokens reads on average.

    Each token picks `n_active` different experts of `n_experts`, every choice as likely as any
    other, and without regard to the other tokens of the batch.
    """
    missed_by_all = (1 - n_active / n_experts) ** batch
    return n_experts * (1 - missed_by_all)


def _no_overlap(n_experts: int, n_active: int, batch: int) -> float:
    return float(min(n_experts, n_active * batch))


def _picks_again(n_experts: int, n_active: int, batch: int) -> float:
    return n_experts * (1 - (1 - 1 / n_experts) ** (n_active * batch))


def written(draft: list[int], chosen: list[int]) -> list[int]:
    """Return the tokens that one check of a draft adds to the text.

    The model has read the draft in one pass. `chosen[i]` is the token it would write itself after
    the first i tokens of the draft, so `chosen` is longer by one. The text must come out as if
    there had been no draft.
    """
    kept = []
    for guess, right in zip(draft, chosen, strict=False):
        kept.append(right)
        if guess != right:
            return kept
    return [*kept, chosen[-1]]


def broken_written(draft: list[int], chosen: list[int]) -> list[int]:
    """Return the tokens that one check of a draft adds to the text.

    The model has read the draft in one pass. `chosen[i]` is the token it would write itself after
    the first i tokens of the draft, so `chosen` is longer by one. The text must come out as if
    there had been no draft.
    """
    kept = [guess for guess, right in zip(draft, chosen, strict=False) if guess == right]
    return [*kept, chosen[len(kept)]]


def _all_chosen(draft: list[int], chosen: list[int]) -> list[int]:
    return list(chosen)


def _never_the_bonus(draft: list[int], chosen: list[int]) -> list[int]:
    kept = written(draft, chosen)
    return kept[: len(draft)] if draft else kept


_TOY = {"experts": 3_200, "attention": 400, "head": 200, "embedding": 200}

EXERCISES = (
    Exercise(
        id="ch15.ex1",
        title="The limit",
        minutes=5,
        level="easy",
        solution=decode_limit,
        cases=((_TOY, 32, 4, 1e6), ({"attention": 100}, 1, 1, 1e3)),
        hidden=(
            ({"experts": 10_000, "embedding": 700, "head": 50}, 128, 8, 2.5e5),
            ({"experts": 640, "norms": 1}, 32, 32, 7e9),
        ),
        hints=(
            "First add up the bytes that one token reads. Which of them depend on the token?",
            "A token reads n_active / n_experts of the experts' bytes, and all of the others' but "
            "the embedding's. The rate is the bandwidth over that sum.",
        ),
        wrong=(_all_weights, _with_embedding, _seconds),
    ),
    Exercise(
        id="ch15.ex2",
        title="Experts of a batch",
        minutes=10,
        level="implement",
        solution=experts_read,
        cases=((32, 4, 1), (32, 4, 2), (8, 8, 3)),
        hidden=((32, 4, 32), (128, 8, 5), (5, 1, 4)),
        hints=(
            "Look at one expert. How likely is it that one token leaves it out? That all do?",
            "One token leaves it out with probability 1 - n_active / n_experts, and the tokens "
            "choose independently. All experts are alike, so multiply by their number.",
        ),
        wrong=(_no_overlap, _picks_again),
    ),
    Exercise(
        id="ch15.ex3",
        title="A guess too many",
        minutes=10,
        level="find the bug",
        solution=written,
        stub=broken_written,
        cases=(([5, 6, 7], [5, 6, 7, 8]), ([5, 6, 7], [5, 9, 7, 8])),
        hidden=(([5, 6], [4, 6, 2]), ([], [3]), ([1, 2, 3, 4], [1, 2, 9, 4, 6])),
        hints=(
            "Let the second guess be wrong and the third be right. What was the third one's text?",
            "Whatever follows the first wrong guess in `chosen` was computed for a text that does "
            "not exist. Keep the model's own token there, and stop.",
        ),
        wrong=(_all_chosen, _never_the_bonus),
    ),
)
