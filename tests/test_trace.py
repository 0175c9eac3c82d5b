import timeit

import pytest
import torch

from gptoss_lite import KVCache, ModelConfig, trace
from gptoss_lite.errors import ShapeError
from gptoss_lite.trace import NAMES, tap, wants
from tests.hostile import GPT2, GPT_OSS, QWEN3, hostile, tokens

MODEL = hostile(GPT_OSS)
IDS = tokens(GPT_OSS, 2, 11)
# Shape of each name for B=2, T=S=11: N = 22 tokens, H=6, E=5, A=3, D=24.
SHAPES = {
    "probs": (2, 6, 11, 11),
    "sink_mass": (2, 6, 11),
    "router_logits": (22, 5),
    "expert_ids": (22, 3),
    "expert_weights": (22, 3),
    "resid": (2, 11, 24),
}
PLACES = {"probs": ".attn", "sink_mass": ".attn", "resid": ""}


def key(layer: int, name: str) -> str:
    return f"blocks.{layer}{PLACES.get(name, '.ffn')}.{name}"


@pytest.fixture(autouse=True)
def nothing_left(plain: None):
    """After every test here: no listener, no hook."""
    yield
    assert not any(wants(name) for name in NAMES)
    for module in MODEL.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_every_name_is_recorded_under_its_path_in_its_shape() -> None:
    with torch.no_grad(), trace(MODEL) as seen:
        MODEL(IDS)
    assert set(seen.keys()) == {key(layer, name) for layer in range(4) for name in NAMES}
    for name, shape in SHAPES.items():
        values = seen.per_layer(name)
        assert len(values) == 4
        for layer, value in enumerate(values):
            assert value.shape == shape
            assert value is seen[key(layer, name)]


@pytest.mark.parametrize("name", NAMES)
def test_only_what_was_asked_for_is_recorded(name: str) -> None:
    with torch.no_grad(), trace(MODEL, name) as seen:
        assert [n for n in NAMES if wants(n)] == [name]
        MODEL(IDS)
    assert seen.keys() == [key(layer, name) for layer in range(4)]


def test_keys_come_in_the_order_of_the_layers_past_the_tenth() -> None:
    config = GPT2.but(n_layers=12)
    model = hostile(config)
    with torch.no_grad(), trace(model, "resid") as seen:
        model(tokens(config, 1, 3))
    assert seen.keys() == [f"blocks.{layer}.resid" for layer in range(12)]


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (GPT2, {"sink_mass", "router_logits", "expert_ids", "expert_weights"}),
        (QWEN3, {"sink_mass"}),
    ],
    ids=["gpt2", "qwen3"],
)
def test_names_without_a_part_stay_empty(config: ModelConfig, missing: set[str]) -> None:
    model = hostile(config)
    with torch.no_grad(), trace(model) as seen:
        model(tokens(config, 1, 5))
    recorded = {k.rpartition(".")[2] for k in seen.keys()}  # noqa: SIM118 - not a dict
    assert recorded == set(NAMES) - missing
    assert seen.per_layer("sink_mass") == []


def test_the_recorded_stream_leads_to_the_logits() -> None:
    with torch.no_grad(), trace(MODEL, "resid") as seen:
        logits = MODEL(IDS)
        assert torch.equal(MODEL.unembed(MODEL.norm(seen["blocks.3.resid"])), logits)


def test_each_forward_pass_is_a_step_and_the_last_one_is_at_hand() -> None:
    cache = KVCache(GPT_OSS)
    with torch.no_grad(), trace(MODEL, "probs") as seen:
        for chunk in IDS.split([8, 1, 2], dim=1):
            MODEL(chunk, cache)
    full, sliding = seen.steps("blocks.1.attn.probs"), seen.steps("blocks.0.attn.probs")
    assert [x.shape[-2:] for x in full] == [(8, 8), (1, 9), (2, 11)]
    # A sliding layer holds the 6 tokens before the new ones.
    assert [x.shape[-2:] for x in sliding] == [(8, 8), (1, 7), (2, 8)]
    assert seen["blocks.1.attn.probs"] is full[-1]
    assert torch.equal(seen.per_layer("probs")[1], full[-1])


def test_recordings_outlive_the_block_and_share_no_memory() -> None:
    with trace(MODEL, "resid") as seen:
        MODEL(IDS)
    value = seen["blocks.0.resid"]
    assert not value.requires_grad
    assert value.device.type == "cpu"
    value.zero_()
    with torch.no_grad(), trace(MODEL, "resid") as again:
        MODEL(IDS)
    assert again["blocks.0.resid"].abs().max() > 0


def test_a_trace_does_not_change_the_logits() -> None:
    with torch.no_grad():
        before = MODEL(IDS)
        with trace(MODEL):
            during = MODEL(IDS)
        after = MODEL(IDS)
    assert torch.equal(before, during)
    assert torch.equal(before, after)


def test_nothing_is_recorded_after_the_block() -> None:
    with torch.no_grad():
        with trace(MODEL, "resid") as seen:
            MODEL(IDS)
        MODEL(IDS)
    assert len(seen.steps("blocks.0.resid")) == 1


@pytest.mark.parametrize("where", ["before the model", "in the model", "after the model"])
def test_an_exception_inside_leaves_nothing_behind(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("planned")

    if where == "in the model":
        monkeypatch.setattr(MODEL.blocks[2].ffn, "activation", fail)
    seen = trace(MODEL, "resid", "probs")

    @torch.no_grad()
    def run() -> None:
        with seen:
            if where == "before the model":
                fail()
            MODEL(IDS)
            fail()

    with pytest.raises(RuntimeError, match="planned"):
        run()
    monkeypatch.undo()
    assert ("blocks.1.resid" in seen.keys()) == (where != "before the model")  # noqa: SIM118
    assert ("blocks.2.attn.probs" in seen.keys()) == (where != "before the model")  # noqa: SIM118
    assert ("blocks.2.resid" in seen.keys()) == (where == "after the model")  # noqa: SIM118
    with torch.no_grad(), trace(MODEL, "resid") as again:
        MODEL(IDS)
    assert again.keys() == [f"blocks.{layer}.resid" for layer in range(4)]


def test_a_pass_after_a_failed_one_is_recorded_under_the_right_paths() -> None:
    with torch.no_grad(), trace(MODEL, "resid") as seen:
        with pytest.raises(ShapeError):
            MODEL(torch.tensor([[GPT_OSS.vocab_size]]))
        MODEL(IDS)
    assert seen.keys() == [f"blocks.{layer}.resid" for layer in range(4)]


def test_a_trace_can_be_opened_again() -> None:
    again = trace(MODEL, "resid")
    for _ in range(2):
        with torch.no_grad(), again:
            MODEL(IDS)
    assert len(again.steps("blocks.0.resid")) == 2


# --- mistakes ------------------------------------------------------------------------------------


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ShapeError) as problem:
        trace(MODEL, "probs", "attention", "logits")
    assert str(problem.value) == (
        "Nothing to trace under ['attention', 'logits']. Names: ['probs', 'sink_mass', "
        "'router_logits', 'expert_ids', 'expert_weights', 'resid']."
    )


def test_a_second_trace_at_a_time_is_refused_and_the_first_goes_on() -> None:
    with torch.no_grad(), trace(MODEL, "resid") as seen:
        with pytest.raises(ShapeError) as problem, trace(MODEL, "probs"):
            pass
        MODEL(IDS)
    assert str(problem.value) == ("A trace is already open. Close it, or ask it for more names.")
    assert seen.keys() == [f"blocks.{layer}.resid" for layer in range(4)]


def test_a_key_that_was_not_recorded_is_named_with_those_that_were() -> None:
    with torch.no_grad(), trace(MODEL, "resid") as seen:
        MODEL(IDS)
    for call in (seen.steps, seen.__getitem__):
        with pytest.raises(ShapeError) as problem:
            call("blocks.9.resid")
        assert str(problem.value) == (
            "Nothing recorded under 'blocks.9.resid'. Recorded: ['blocks.0.resid', "
            "'blocks.1.resid', 'blocks.2.resid', 'blocks.3.resid']."
        )


# --- cost ----------------------------------------------------------------------------------------


def test_a_tap_that_nobody_listens_to_costs_next_to_nothing() -> None:
    """About 0.1 us; the bound only catches work that does not belong there, such as a copy."""
    big = torch.zeros(4_000_000)
    best = min(timeit.repeat(lambda: tap("resid", big), number=1_000, repeat=5)) / 1_000
    assert best < 50e-6


def test_a_tensor_that_nobody_asked_for_is_not_kept() -> None:
    with trace(MODEL, "probs") as seen:
        tap("resid", torch.zeros(3))
    assert seen.keys() == []
