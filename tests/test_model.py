import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_lite import KVCache, ModelConfig, Transformer, mxfp4
from gptoss_lite.errors import ConfigError, ShapeError
from gptoss_lite.model import INIT_STD
from tests.hostile import (
    GPT2,
    GPT_OSS,
    GPT_OSS_MXFP4,
    QWEN3,
    TOLERANCE,
    hostile,
    packed,
    router_margin,
    tokens,
    without_type_checks,
)

CONFIGS = {"gpt2": GPT2, "gpt_oss": GPT_OSS, "qwen3": QWEN3}
MODELS = {name: hostile(config) for name, config in CONFIGS.items()}
SLIDING = GPT_OSS.but(layer_pattern="S", sliding_window=4, n_layers=3)
ALL_SLIDE = hostile(SLIDING)


def moved(model: Transformer, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return how far the logits of each position differ between two inputs, [T]."""
    with torch.no_grad():
        return (model(a) - model(b)).abs().amax((0, 2))


# --- laws ----------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(CONFIGS)), at=st.integers(0, 19), seed=st.integers(0, 99))
def test_future_tokens_change_nothing(name: str, at: int, seed: int) -> None:
    config = CONFIGS[name]
    ids = tokens(config, 2, 20, seed)
    other = ids.clone()
    other[:, at] = (ids[:, at] + 1 + seed) % config.vocab_size
    change = moved(MODELS[name], ids, other)
    assert (change[:at] <= TOLERANCE).all()
    assert change[at] > 100 * TOLERANCE


@pytest.mark.parametrize("at", [0, 3, 11])
def test_a_stack_of_sliding_layers_reaches_its_windows_and_no_further(at: int) -> None:
    """Three layers of window 4 read at most 3 * 3 = 9 tokens back."""
    ids = tokens(SLIDING, 1, 30)
    other = ids.clone()
    other[0, at] = (ids[0, at] + 1) % SLIDING.vocab_size
    change = moved(ALL_SLIDE, ids, other)
    reach = SLIDING.n_layers * (SLIDING.sliding_window - 1)
    assert (change[:at] <= TOLERANCE).all()
    assert (change[at + reach + 1 :] <= TOLERANCE).all()
    assert change[at] > 100 * TOLERANCE
    assert change[at + reach] > TOLERANCE


def test_full_layers_reach_everything_before() -> None:
    ids = tokens(GPT_OSS, 1, 45)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % GPT_OSS.vocab_size
    assert (moved(MODELS["gpt_oss"], ids, other) > TOLERANCE).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_of_a_batch_do_not_see_each_other(name: str) -> None:
    config, model = CONFIGS[name], MODELS[name]
    ids = tokens(config, 3, 20)
    with torch.no_grad():
        together = model(ids)
        for row, expected in zip(ids, together, strict=True):
            assert (model(row[None])[0] - expected).abs().max() <= TOLERANCE


def test_rotations_do_not_care_where_a_text_starts() -> None:
    """Logits depend on distances; a learned table does care."""
    for name, matters in (("gpt_oss", False), ("gpt2", True)):
        config, model = CONFIGS[name], MODELS[name]
        ids, cache = tokens(config, 1, 20), KVCache(config)
        cache.n_seen = 30
        with torch.no_grad():
            change = (model(ids, cache) - model(ids)).abs().max()
        assert (change > 0.1) == matters
        assert matters or change < 1e-4  # float32 angles round differently further out


def test_packed_weights_give_the_logits_of_the_decoded_ones(plain: None) -> None:
    model = hostile(GPT_OSS_MXFP4)
    for block in model.blocks:
        for layer in (block.ffn.up, block.ffn.down):
            blocks, scales = mxfp4.quantize(layer.weight.detach())
            layer.weight.data = mxfp4.dequantize(blocks, scales, torch.float32)
    ids = tokens(GPT_OSS_MXFP4, 2, 30)
    with torch.no_grad():
        dense = model(ids)
        assert torch.equal(packed(model)(ids), dense)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bfloat16_model_stays_near_its_float32_self(name: str) -> None:
    """On average: where the router is undecided, single tokens may well change experts."""
    config = CONFIGS[name]
    ids = tokens(config, 2, 30)
    with torch.no_grad():
        low = hostile(config).bfloat16()(ids)
        assert low.dtype == torch.bfloat16
        assert low.isfinite().all()
        assert (low.float() - MODELS[name](ids)).abs().mean() < 0.1


def test_hostile_models_choose_their_experts_clearly() -> None:
    for name in ("gpt_oss", "qwen3"):
        assert router_margin(MODELS[name], tokens(CONFIGS[name], 2, 45)) > 1e-4


# --- construction --------------------------------------------------------------------------------


def test_a_tied_head_is_the_embedding_and_stays_it() -> None:
    model = Transformer(GPT2)
    assert model.unembed.weight is model.embed.weight
    model.bfloat16()
    assert model.unembed.weight is model.embed.weight
    assert "unembed.weight" not in dict(model.named_parameters())
    untied = Transformer(GPT_OSS)
    assert untied.unembed.weight is not untied.embed.weight


def test_weights_start_as_gpt2s() -> None:
    """Normal with deviation 0.02, smaller where a block writes; biases 0, scales 1, sinks 0."""
    config = GPT_OSS.but(d_model=96, d_ff=80, vocab_size=300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name.endswith("sinks"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            writes = name.endswith(("attn.o.weight", "ffn.down.weight"))
            expected = INIT_STD / math.sqrt(2 * config.n_layers) if writes else INIT_STD
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


def test_the_same_seed_gives_the_same_model_and_the_same_logits() -> None:
    models = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            models.append(Transformer(GPT_OSS).eval())
    ids = tokens(GPT_OSS, 2, 20)
    with torch.no_grad():
        assert torch.equal(models[0](ids), models[1](ids))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fresh_model_is_undecided(name: str) -> None:
    config = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(config).eval()
    ids = tokens(config, 4, 30)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        )
    assert loss.item() == pytest.approx(math.log(config.vocab_size), abs=0.05)


def test_model_parts_hold_no_data_but_their_parameters() -> None:
    """So a checkpoint is exactly the parameters."""
    for config in CONFIGS.values():
        model = Transformer(config)
        assert not list(model.buffers())
        tied = {"unembed.weight"} if config.tied else set()
        assert set(model.state_dict()) - tied == {name for name, _ in model.named_parameters()}


def test_each_step_of_training_lowers_the_loss_on_what_it_saw() -> None:
    """Gradients point the right way through every part at once."""
    for config in CONFIGS.values():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Transformer(config)
        ids = tokens(config, 2, 20)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for _ in range(4):
            loss = torch.nn.functional.cross_entropy(
                model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            )
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert all(later < earlier for earlier, later in pairwise(losses))


# --- mistakes ------------------------------------------------------------------------------------

NO_IDS = (
    "tokens must be int64 or int32 of shape [batch, length], got {}. Wrap one sequence as "
    "torch.tensor([ids])."
)
MISTAKES = {
    "one sequence without a batch": (
        torch.zeros(5, dtype=torch.long),
        NO_IDS.format("torch.int64 [5]"),
    ),
    "one axis too many": (
        torch.zeros(1, 2, 3, dtype=torch.long),
        NO_IDS.format("torch.int64 [1, 2, 3]"),
    ),
    "embeddings instead of ids": (
        torch.zeros(2, 3),
        NO_IDS.format("torch.float32 [2, 3]"),
    ),
    "a list": (
        [[1, 2]],
        NO_IDS.format("a list"),
    ),
    "no numbers": (
        torch.zeros(2, 3, dtype=torch.bool),
        NO_IDS.format("torch.bool [2, 3]"),
    ),
    "bytes": (
        torch.zeros(2, 3, dtype=torch.uint8),
        NO_IDS.format("torch.uint8 [2, 3]"),
    ),
    "complex numbers": (
        torch.zeros(2, 3, dtype=torch.complex64),
        NO_IDS.format("torch.complex64 [2, 3]"),
    ),
    "no tokens": (
        torch.zeros(2, 0, dtype=torch.long),
        "There are no tokens to read: give at least one.",
    ),
    "no sequences": (
        torch.zeros(0, 4, dtype=torch.long),
        "There are no tokens to read: give at least one.",
    ),
    "an id past the vocabulary": (
        torch.tensor([[3, 97, 5]]),
        "Token ids run from 3 to 97, but this model's vocabulary is 0 to 96. "
        "Encode the text with this model's own tokenizer.",
    ),
    "a negative id": (
        torch.tensor([[3, -1, 5]]),
        "Token ids run from -1 to 5, but this model's vocabulary is 0 to 96. "
        "Encode the text with this model's own tokenizer.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tokens_that_cannot_be_read_are_refused(mistake: str) -> None:
    ids, message = MISTAKES[mistake]
    with without_type_checks(), pytest.raises(ShapeError) as problem:
        MODELS["gpt_oss"].check(ids)
    assert str(problem.value) == message
    if isinstance(ids, torch.Tensor):
        with without_type_checks(), pytest.raises(ShapeError, match=re.escape(message)):
            MODELS["gpt_oss"](ids)


@pytest.mark.parametrize(
    ("value", "got"),
    [("gpt2", "'gpt2' of type str"), (None, "'None' of type NoneType"), ({}, "'{}' of type dict")],
)
def test_what_is_no_config_is_refused(value: object, got: str) -> None:
    with without_type_checks(), pytest.raises(ConfigError) as problem:
        Transformer(value)
    assert str(problem.value) == (
        f"A ModelConfig is needed, got {got}. Give one of gptoss_lite.PRESETS, a rung's `.config` "
        "or a model's `.config`."
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_both_kinds_of_ids_are_read(dtype: torch.dtype) -> None:
    ids = tokens(GPT_OSS, 1, 9)
    with torch.no_grad():
        assert torch.equal(MODELS["gpt_oss"](ids.to(dtype)), MODELS["gpt_oss"](ids))


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [GPT2, GPT_OSS.but(moe=None, d_ff=20)], ids=["gpt2", "gpt_oss without experts"]
)
def test_a_model_compiles_into_one_graph(config: ModelConfig, plain: None) -> None:
    """Taps and dispatch must not break the graph; no compiler is needed to see that.

    The plain experts loop over those that were chosen, so their graph depends on the data.
    """
    model, ids = hostile(config), tokens(config, 2, 20)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), without_type_checks():
        assert (compiled(ids) - model(ids)).abs().max() <= TOLERANCE
