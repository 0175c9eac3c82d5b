"""The views of what fits and of masks: their sums are those of `account` and of the caches."""

import random
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt
from traitlets import TraitError

from gptoss_lite import account, viz
from gptoss_lite.attention import visible
from gptoss_lite.cache import FullCache, SlidingCache
from gptoss_lite.config import ModelConfig
from gptoss_lite.errors import ConfigError
from gptoss_lite.ladder import LADDER
from gptoss_lite.presets import PRESETS
from gptoss_lite.widgets import fit, mask
from gptoss_lite.widgets.fit_view import FORMATS, MEMORIES
from gptoss_lite.widgets.mask_view import CACHE_BITS, N_FIRST, PATTERNS

CONFIGS = {**PRESETS, **{f"rung {i}": rung.config for i, rung in enumerate(LADDER)}}


def choices(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw settings of the view of what fits."""
    draw = random.Random(seed)
    return [
        {
            "memory": draw.choice(MEMORIES),
            "unit": draw.choice(("GB", "GiB")),
            "context": draw.choice(
                (1, 127, 128, 129, 1_024, 40_961, 131_072, draw.randint(1, 2**17))
            ),
            "batch": draw.choice((1, 2, 8, 128)),
            "dense": draw.choice(FORMATS),
            "experts": draw.choice(FORMATS),
        }
        for _ in range(n)
    ]


def masks(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw settings of the view of masks, for gpt-oss-20b."""
    draw = random.Random(seed)
    return [
        {
            "query": draw.choice((0, 1, 7, 8, 15, 127, 128, 500, draw.randrange(131_072))),
            "window": draw.choice((1, 4, 7, 128, 4_096)),
            "pattern": draw.choice([*PATTERNS, "SSF"]),
            "sinks": draw.choice(("none", "learned", "first")),
            "kv_heads": draw.choice((1, 8, 64)),
            "dtype": draw.choice(list(CACHE_BITS)),
        }
        for _ in range(n)
    ]


# --- what fits ----------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_coefficients_give_account_s_sums(name: str):
    config = CONFIGS[name]
    (c,) = fit({name: config}).models
    assert c["parameters"] == account.parameters(config) == c["n_experts"] + c["n_dense"]
    assert c["active"] == account.parameters(config, active=True)
    for dense in account.BITS:
        for experts in account.BITS:
            sizes = ((c["n_dense"], dense), (c["n_experts"], experts))
            total = sum(int(n * account.BITS[dtype] / 8) for n, dtype in sizes)
            assert total == account.weight_bytes(config, dense=dense, experts=experts)
    assert c["cached"] == {dense: account.cache_dtype(config, dense) for dense in account.BITS}
    for n in (1, 2, 100, 128, 129, 5_000, 131_072):
        held = sum(count * min(n, window or n) for window, count in c["layers"])
        for cached in c["cached"].values():
            n_bytes = 3 * held * c["kv"] * account.BITS[cached] / 8
            assert n_bytes == account.kv_bytes(config, n, batch=3, dtype=cached)
        assert c["matmul_flops"] + c["attention_flops"] * held == account.flops(config, n)


def test_published_numbers_are_shown():
    by_name = {row["model"]: row for row in fit(context=131_072).table()}
    small, large = by_name["gpt-oss-20b"], by_name["gpt-oss-120b"]
    assert (small["parameters"], small["active per token"]) == ("20,914,757,184", "3,608,307,264")
    assert small["weights"] == "13.76 GB = 12.82 GiB"
    assert large["weights"] == "65.25 GB = 60.77 GiB"
    assert small["KV cache at 131,072 tokens"] == "3.22 GB = 3.00 GiB"
    assert (small["fits 16 GB"], small["longest context"]) == ("no", "47,275")
    assert by_name["gpt2-xl"]["longest context"] == "1,024"


def test_fits_are_read_back():
    for chosen in choices(40):
        view = fit(**chosen)
        memory = chosen["memory"] * (account.GIB if chosen["unit"] == "GiB" else 10**9)
        formats = {k: None if chosen[k] == "published" else chosen[k] for k in ("dense", "experts")}
        for name, found in view.fits().items():
            assert found == account.fit(
                PRESETS[name],
                memory,
                context_tokens=chosen["context"],
                batch=chosen["batch"],
                **formats,
            )


def test_models_of_one_s_own_are_compared():
    wide = PRESETS["gpt-oss-20b"].but(sliding_window=None, layer_pattern="F")
    view = fit({"as it is": PRESETS["gpt-oss-20b"], "no window": wide}, memory=17)
    assert view.model == "no window"
    assert 17 in view.memories
    found = view.fits()
    assert found["no window"].kv_bytes > found["as it is"].kv_bytes
    assert len(view.html()) < 5_000
    with pytest.raises(
        TraitError, match=r"model='gpt2' is not shown here. Use one of \['as it is'"
    ):
        view.model = "gpt2"
    with pytest.raises(TraitError, match="dense"):
        view.dense = "int3"
    with pytest.raises(ConfigError, match="no model to fit"):
        fit({})


# --- masks and caches ---------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 5, 40])
@pytest.mark.parametrize("window", [1, 7, 16, 128])
def test_bytes_are_those_of_the_caches(window: int, pieces: int):
    config = LADDER[8].config.but(context=256)
    for query in (0, 6, 15, 16, 39, 199):
        view = mask(config, query=query, window=window, sinks="learned")
        caches = [FullCache() if w is None else SlidingCache(w) for w in view.windows()]
        for cache in caches:
            for part in torch.zeros(1, config.n_kv_heads, query + 1, config.head_dim).split(
                pieces, dim=2
            ):
                cache.append(part.bfloat16(), part.bfloat16())
        assert view.n_bytes() == sum(cache.n_bytes for cache in caches)
        per_token = caches[0].n_bytes // view.held()[0]
        assert [cache.n_bytes // per_token for cache in caches] == view.held()


@pytest.mark.parametrize("name", ["gpt2", "gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b"])
def test_bytes_are_those_of_account(name: str):
    config = PRESETS[name]
    for n in (1, 128, 129, 1_000, config.context):
        if n <= config.context:
            assert mask(name, query=n - 1).n_bytes() == account.kv_bytes(config, n)
            full = {
                "tokens": f"{n:,}",
                "all layers full": account.kv_bytes(config, n, rolling=False),
            }
            rows = {row["tokens"]: row for row in mask(name, query=n - 1).table()}
            assert rows[full["tokens"]]["all layers full"] == f"{full['all layers full']:,}"


def test_keys_seen_are_those_of_the_mask():
    for query in (0, 3, 7, 60):
        for window in (1, 4, 7, 100):
            view = mask("gpt-oss-20b", query=query, window=window)
            for layer, limit in ((0, window), (1, None)):
                row = visible(query + 1, query + 1, limit)[-1]
                assert view.seen(layer) == row.nonzero().flatten().tolist()
                assert len(view.seen(layer)) == view.held()[layer]


def test_first_tokens_take_places_and_learned_sinks_do_not():
    plain, learned, first = (
        mask("gpt-oss-20b", query=999, sinks=kind) for kind in ("none", "learned", "first")
    )
    assert plain.n_bytes() == learned.n_bytes()
    assert first.n_bytes() - plain.n_bytes() == 12 * N_FIRST * 2 * 8 * 64 * 2
    assert first.seen(0) == [0, 1, 2, 3, *range(872, 1_000)]
    assert mask("gpt-oss-20b", query=129, sinks="first").seen(0) == list(range(130))


def test_the_mask_s_settings_are_checked():
    view = mask()
    for name, value, message in (
        ("query", 131_072, "query=131072 is beyond this model: 0 to 131071"),
        ("pattern", "SX", "pattern='SX' must be made of S"),
        ("kv_heads", 7, "kv_heads=7 cannot serve 64 query heads evenly"),
        ("sinks", "many", "sinks"),
        ("window", 0, "window"),
    ):
        with pytest.raises(TraitError, match=message):
            setattr(view, name, value)
    assert mask(pattern="SSF").patterns["SSF"] == "SSF"
    assert mask(LADDER[0].config).title == "Masks and caches"


def test_roofline_marks_where_arithmetic_takes_over() -> None:
    config = PRESETS["gpt-oss-20b"]
    machines = {"slow arithmetic": (1e12, 1e13), "slow memory": (1e9, 1e18)}
    ax = viz.roofline(config, machines, batches=(1, 4, 64))
    slow, mark, fast = ax.lines
    ceiling = 1e13 / account.flops(config, 1_024)
    assert list(slow.get_ydata())[-1] == pytest.approx(ceiling)
    assert list(mark.get_ydata()) == pytest.approx([ceiling])
    assert list(fast.get_ydata()) == sorted(fast.get_ydata())
    plt.close(ax.figure)


def test_static_figures_show_the_same():
    models = {name: PRESETS[name] for name in ("gpt-oss-20b", "gpt2")}
    ax = viz.fit(models, 16e9, context_tokens=1_000, experts="bfloat16")
    found = account.fit(PRESETS["gpt-oss-20b"], 16e9, context_tokens=1_000, experts="bfloat16")
    width = sum(bar.get_width() for bar in ax.patches[:4])
    assert width == pytest.approx(found.needed_bytes / 1e9)
    plt.close(ax.figure)
    ax = viz.mask(11, 5, n_tokens=16)
    assert ax.get_title() == "query 11 sees 5 keys"
    shades = ax.images[0].get_array()
    assert (shades == 2).sum() == 5
    assert ((shades > 0) == visible(16, 16, 5).numpy()).all()
    plt.close(ax.figure)


def test_a_config_of_any_shape_is_taken():
    tiny = ModelConfig(
        vocab_size=64, d_model=16, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=4, d_ff=64,
        context=1,
    )  # fmt: skip
    assert mask(tiny).query == 0
    assert fit({"tiny": tiny}).fits()["tiny"].longest_context_tokens == 1
