"""The made-up language and the model with one head: does the language keep its rules?"""

import math

import pytest
import torch

from gptoss_lite import backcopy
from gptoss_lite.backcopy import BOS, CONFIG, LENGTH, N_TRIGGERS


@pytest.mark.parametrize("bos", [True, False])
def test_rows_keep_the_rules(bos):
    text = backcopy.rows(300, seed=5, bos=bos)
    assert text.shape == (300, LENGTH + 1)
    assert (text[:, 0] == BOS).all() == bos
    assert (text[:, 1:] < BOS).all()
    language = text[:, 1:] if bos else text
    before, now, after = language[:, :-2], language[:, 1:-1], language[:, 2:]
    trigger = now < N_TRIGGERS
    assert trigger.any()
    assert torch.equal(after[trigger], before[trigger])
    assert not (trigger & (before < N_TRIGGERS)).any()  # no endless echo
    assert (after[~trigger] != before[~trigger]).any()


def test_other_tokens_follow_the_table():
    text = backcopy.rows(4_000, seed=5)[:, 1:]
    now, after = text[:, :-1].flatten(), text[:, 1:].flatten()
    token = 17
    counts = after[now == token].bincount(minlength=BOS).double()
    share = counts / counts.sum()
    torch.testing.assert_close(share, backcopy.bigrams()[token].double(), atol=0.02, rtol=0)


def test_rows_depend_on_the_seed_alone():
    torch.manual_seed(3)
    first = backcopy.rows(5, seed=1)
    torch.manual_seed(4)
    assert torch.equal(first, backcopy.rows(5, seed=1))
    assert not torch.equal(first, backcopy.rows(5, seed=2))
    assert torch.equal(first[:, 1:], backcopy.rows(5, seed=1, bos=False)[:, :-1])


def test_the_sink_learns_at_its_own_rate():
    learned = backcopy.rows(3 * 32, seed=0)
    with_sink = CONFIG.but(sinks=True)
    sinks = {}
    for rate in (0.0, 1.0, 20.0):
        model = backcopy.train(with_sink, learned, steps=3, sink_rate=rate).model
        sinks[rate] = abs(model.state_dict()["blocks.0.attn.sinks"].item())
    assert sinks[0.0] == 0 < sinks[1.0] < sinks[20.0]


def test_measures_of_a_head_that_looks_at_everything():
    """With queries of zero each key gets the same, and so does a sink at 0."""
    text = backcopy.rows(20, seed=0)
    for sinks in (False, True):
        model = backcopy.build(CONFIG.but(sinks=sinks), seed=0).eval()
        with torch.no_grad():
            model.blocks[0].attn.q.weight.zero_()
        found = backcopy.measure(model, text)
        seen = torch.arange(1, LENGTH + 1).expand(20, -1)
        idle = (text[:, :-1] >= N_TRIGGERS) & (seen > backcopy.FROM)
        assert found["first_mass"] == pytest.approx((1 / (seen + sinks))[idle].mean().item())
        assert found["row_sum"] == pytest.approx((seen / (seen + sinks))[idle].mean().item())


def test_eviction_is_a_mask_on_the_first_key():
    """What the empty cache does equals a forward pass whose first value and weight are gone."""
    model = backcopy.build(CONFIG.but(sinks=True), seed=0).eval()
    with torch.no_grad():
        model.state_dict()["blocks.0.attn.sinks"].fill_(0.5)
        model.blocks[0].attn.k.weight.mul_(20)
        model.blocks[0].attn.q.weight.mul_(20)
        model.blocks[0].attn.v.weight.mul_(20)
    text = backcopy.rows(20, seed=0)
    found = backcopy.measure(model, text)
    assert abs(found["evicted"]) > 1e-6
    block, inputs = model.blocks[0], text[:, :-1]
    with torch.no_grad():
        x = model.embed(inputs)
        y = block.attn_norm(x)
        cos, sin = model.rotation(torch.arange(LENGTH))
        q, k = (backcopy_rotate(part(y), cos, sin) for part in (block.attn.q, block.attn.k))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        seen = torch.ones(LENGTH, LENGTH).tril().bool()
        seen[:, 0] = False
        weights = scores.masked_fill(~seen, -torch.inf).exp()
        weights = weights / (weights.sum(-1, keepdim=True) + math.exp(0.5))
        x = x + block.attn.o(weights @ block.attn.v(y))
        x = x + block.ffn(block.ffn_norm(x))
        losses = backcopy._losses(model.unembed(model.norm(x)), text)
    idle = (inputs >= N_TRIGGERS) & (torch.arange(LENGTH) >= backcopy.FROM)
    assert losses[idle].mean().item() - found["loss_elsewhere"] == pytest.approx(
        found["evicted"], abs=1e-6
    )


def backcopy_rotate(x, cos, sin):
    from gptoss_lite.positions import rotate

    return rotate(x[:, None], cos, sin)[:, 0]
