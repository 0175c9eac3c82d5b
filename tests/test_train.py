"""The trainer: repeatable, learns, and leaves torch as it found it."""

import pytest
import torch

import gptoss_lite as gl
from gptoss_lite import corpus, train
from gptoss_lite.config import MoEConfig

TINY = gl.LADDER[2].config.but(n_layers=1, d_model=24, n_heads=3, n_kv_heads=1, head_dim=6, d_ff=40)
EXPERTS = TINY.but(moe=MoEConfig(5, 3), d_ff=16)
SHORT = {"batch_size": 5, "n_validation": 2}


def test_same_seed_same_losses_and_weights():
    first, second = (train.train(TINY.but(dropout=0.1), 6, seed=3, **SHORT) for _ in range(2))
    assert first.losses == second.losses
    assert first.validation == second.validation
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_global_random_numbers_and_threads_are_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train.train(TINY.but(dropout=0.1), 2, **SHORT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(4), expected)


def test_another_seed_is_another_run():
    one, other = (train.train(TINY, 2, seed=seed, **SHORT) for seed in (0, 1))
    assert one.losses != other.losses


def test_arms_of_one_seed_see_the_same_batches(monkeypatch):
    seen = []
    original = train._step

    def spy(model, optimizer, routers, batch, recipe, step):
        seen.append(batch)
        return original(model, optimizer, routers, batch, recipe, step)

    monkeypatch.setattr(train, "_step", spy)
    train.train(TINY, 3, seed=1, **SHORT)
    train.train(EXPERTS.but(dropout=0.1), 3, seed=1, **SHORT)
    torch.testing.assert_close(seen[:3], seen[3:])


def test_loss_falls():
    result = train.train(TINY, 40, batch_size=8, n_validation=4, peak_lr=1e-2)
    assert result.losses[0] == pytest.approx(5.55, abs=0.1)  # ln 257: nothing known yet
    assert result.loss < 4.0


def test_a_model_is_trained_further_in_place():
    model = train.build(TINY, seed=0)
    before = train.evaluate(model, blocks=corpus.load().validation[:2])
    result = train.train(model, 10, peak_lr=1e-2, **SHORT)
    assert result.model is model
    assert result.loss < before


def test_no_steps_only_measure():
    model = train.build(TINY, seed=0)
    result = train.train(model, 0, length=128, n_validation=2)
    assert result.losses == []
    assert result.loss == train.evaluate(model, 128, corpus.load().validation[:2])


def test_checkpoints_and_best():
    result = train.train(TINY, 5, validate_every=2, **SHORT)
    assert list(result.validation) == [2, 4, 5]
    assert result.best == min(result.validation.values())


def test_passes_count_the_learned_text_only():
    recipe = train.Recipe(steps=400, n_blocks=16)
    assert train.Result(train.build(TINY, 0), recipe, []).passes == 50


def test_the_rate_rises_then_falls_to_the_floor():
    recipe = train.Recipe(steps=100, peak_lr=1.0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates.index(max(rates)) in (4, 5)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_evaluation_ignores_dropout_and_keeps_the_mode():
    model = train.build(TINY.but(dropout=0.5), seed=0).train()
    blocks = corpus.load().validation[:2]
    assert train.evaluate(model, 64, blocks) == train.evaluate(model, 64, blocks)
    assert model.training


def test_evaluation_by_position_averages_to_the_loss():
    model = train.build(TINY, seed=0)
    blocks = corpus.load().validation[:3]
    losses = train.evaluate_by_position(model, 128, blocks)
    assert losses.shape == (128,)
    assert losses.mean().item() == train.evaluate(model, 128, blocks)


def test_balance_loss_is_one_when_even_and_more_when_not():
    model = train.build(EXPERTS, seed=0)
    even = torch.eye(5).repeat(3, 1) * 1e-3  # each expert is first equally often, by a hair
    uneven = torch.tensor([9.0, 8.0, 7.0, 0.0, 0.0]).repeat(15, 1)
    assert train.balance_loss([even], model).item() == pytest.approx(1.0, abs=1e-3)
    assert train.balance_loss([uneven], model).item() > 1.6


def test_the_balance_loss_reaches_the_router():
    one, other = (train.train(EXPERTS, 4, balance=b, **SHORT).model for b in (0.0, 5.0))
    routers = [model.blocks[0].ffn.router.weight for model in (one, other)]
    assert not torch.equal(*routers)


def test_frozen_parameters_stay():
    model = train.build(TINY.but(positions="learned"), seed=0)
    model.positions.weight.requires_grad_(False)
    before = model.positions.weight.clone()
    train.train(model, 3, **SHORT)
    assert torch.equal(model.positions.weight, before)
