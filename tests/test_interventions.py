"""Changes of a loaded model: each does what it says, and leaves no trace, whatever happens."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from gptoss_lite import Transformer, trace
from gptoss_lite.errors import ShapeError
from gptoss_lite.interventions import PLAIN, SILENT, moved_sinks, rerouted, windowed
from tests import hostile

CHANGES: dict[str, Callable[[Transformer], AbstractContextManager[None]]] = {
    "all sinks moved": lambda model: moved_sinks(model, -3.7),
    "sinks of a layer off": lambda model: moved_sinks(model, PLAIN, layer=1),
    "one head silent": lambda model: moved_sinks(model, SILENT, layer=0, head=2),
    "one head of every layer": lambda model: moved_sinks(model, 1.1, head=1),
    "expert forbidden": lambda model: rerouted(model, 0, 3),
    "expert replaced": lambda model: rerouted(model, 1, 2, instead=4),
    "narrow window": lambda model: windowed(model, 2),
    "no window": lambda model: windowed(model, None),
}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return hostile.hostile(hostile.GPT_OSS).to(request.param)


@pytest.fixture(params=sorted(CHANGES))
def change(request: pytest.FixtureRequest) -> Any:
    return CHANGES[request.param]


@pytest.fixture
def tokens() -> Tensor:
    return hostile.tokens(hostile.GPT_OSS, 1, 41)


def fingerprint(model: Transformer) -> Iterator[object]:
    """Yield everything a change could leave behind, parameters as their bytes."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, id(tensor), tensor.detach().contiguous().view(torch.uint8).tolist()
    for module in model.modules():
        yield module._forward_hooks, module._forward_pre_hooks, getattr(module, "window", ...)


def test_a_change_is_felt_and_leaves_no_trace(model: Transformer, change: Any, tokens: Tensor):
    with torch.no_grad():
        model.blocks[0].attn.sinks[0] = -0.0  # equal to 0.0, and other bits
        before, bits = model(tokens), repr(list(fingerprint(model)))
        with change(model):
            changed = model(tokens)
        after = model(tokens)
    assert not torch.equal(changed, before)
    assert torch.equal(after.view(torch.uint8), before.view(torch.uint8))
    assert repr(list(fingerprint(model))) == bits


def test_an_exception_leaves_no_trace(model: Transformer, change: Any):
    model.blocks[1].attn.sinks.data[1] = math.nan  # must come back, too
    bits = repr(list(fingerprint(model)))
    with pytest.raises(KeyboardInterrupt), change(model):
        raise KeyboardInterrupt
    assert repr(list(fingerprint(model))) == bits


def test_changes_may_be_nested(model: Transformer):
    bits = repr(list(fingerprint(model)))
    with moved_sinks(model, 1.0), moved_sinks(model, PLAIN, layer=0), moved_sinks(model, SILENT):
        pass
    with windowed(model, 3), windowed(model, 5):
        assert model.blocks[0].attn.window == 5
    assert repr(list(fingerprint(model))) == bits


@pytest.mark.parametrize(("layer", "head"), [(None, None), (1, None), (None, 2), (1, 2)])
def test_a_shift_moves_the_sinks_it_names(layer: int | None, head: int | None, tokens: Tensor):
    model = hostile.hostile(hostile.GPT_OSS)
    before = torch.stack([block.attn.sinks.detach() for block in model.blocks])
    with moved_sinks(model, 2.0, layer, head):
        moved = torch.stack([block.attn.sinks.detach() for block in model.blocks]) - before
    expected = torch.zeros_like(moved)
    layers = slice(None) if layer is None else layer
    heads = slice(None) if head is None else head
    expected[layers, heads] = 2.0
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


def test_off_is_a_plain_softmax_and_silent_reads_nothing(tokens: Tensor):
    model = hostile.hostile(hostile.GPT_OSS)
    for by, total in ((PLAIN, 1.0), (SILENT, 0.0)):
        with moved_sinks(model, by), trace(model, "probs") as seen, torch.no_grad():
            model(tokens)
        for probs in seen.per_layer("probs"):
            sums = probs.sum(-1)
            assert (sums - total).abs().max() < 1e-6


def test_a_forbidden_expert_does_not_work(tokens: Tensor):
    model = hostile.hostile(hostile.GPT_OSS)
    with trace(model, "expert_ids", "router_logits") as plain, torch.no_grad():
        model(tokens)
    with rerouted(model, 1, 2), trace(model, "expert_ids") as seen, torch.no_grad():
        model(tokens)
    before, after = plain["blocks.1.ffn.expert_ids"], seen["blocks.1.ffn.expert_ids"]
    assert (before == 2).any()
    assert not (after == 2).any()
    unmoved = ~(before == 2).any(-1)
    assert torch.equal(before[unmoved], after[unmoved])  # nobody else's experts
    assert torch.equal(plain["blocks.0.ffn.expert_ids"], seen["blocks.0.ffn.expert_ids"])


def test_a_stand_in_gets_the_tokens_with_their_logits(tokens: Tensor):
    model = hostile.hostile(hostile.GPT_OSS)
    with trace(model, "expert_ids", "router_logits") as plain, torch.no_grad():
        model(tokens)
    with rerouted(model, 1, 2, instead=4), trace(model) as seen, torch.no_grad():
        model(tokens)
    before, after = plain["blocks.1.ffn.expert_ids"], seen["blocks.1.ffn.expert_ids"]
    had = (before == 2).any(-1)
    assert had.any()
    assert (after[had] == 4).any(-1).all()
    assert torch.equal(before[~had], after[~had])
    logits, swapped = plain["blocks.1.ffn.router_logits"], seen["blocks.1.ffn.router_logits"]
    assert torch.equal(swapped[:, 4], torch.maximum(logits[:, 4], logits[:, 2]))


def test_only_sliding_layers_get_the_window(tokens: Tensor):
    model = hostile.hostile(hostile.GPT_OSS)
    slides = [block.attn.window is not None for block in model.blocks]
    assert set(slides) == {True, False}
    with windowed(model, 3), trace(model, "probs") as seen, torch.no_grad():
        model(tokens)
    for slid, probs in zip(slides, seen.per_layer("probs"), strict=True):
        assert int((probs[0, 0, -1] > 0).sum()) == (3 if slid else tokens.shape[1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: moved_sinks(m, 1.0, layer=9), "no layer 9 in this model: 0 to"),
        (lambda m: moved_sinks(m, 1.0, layer=-1), "no layer -1"),
        (lambda m: moved_sinks(m, 1.0, head=99), "no head 99"),
        (lambda m: moved_sinks(m, math.nan), "cannot be moved by nan"),
        (lambda m: moved_sinks(m, math.inf), "cannot be moved by inf"),
        (lambda m: rerouted(m, 7, 0), "no layer 7"),
        (lambda m: rerouted(m, 0, 99), "no expert 99"),
        (lambda m: rerouted(m, 0, 1, instead=-2), "no expert -2"),
        (lambda m: rerouted(m, 0, 1, instead=1), "cannot stand in for itself"),
        (lambda m: windowed(m, 0), "window of 0 keys is empty"),
    ],
)
def test_what_cannot_be_changed_is_said(change: Any, says: str):
    model = hostile.hostile(hostile.GPT_OSS)
    bits = repr(list(fingerprint(model)))
    with pytest.raises(ShapeError, match=says), change(model):
        pass
    assert repr(list(fingerprint(model))) == bits


def test_a_model_without_the_part_is_refused():
    gpt2 = hostile.hostile(hostile.GPT2)
    for change, says in (
        (moved_sinks(gpt2, 1.0), "no sinks"),
        (rerouted(gpt2, 0, 0), "no experts"),
        (windowed(gpt2, 4), "No layer of this model slides"),
    ):
        with pytest.raises(ShapeError, match=says), change:
            pass
