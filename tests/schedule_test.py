"""Long epochs, annealing to zero, and the same validation at every epoch."""

import math
from collections import Counter

import pytest
import torch
from registry import new_trainer, simulations, train

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.loaders import STEPS_PER_EPOCH


def scored(num_simulations=300, **kwargs):
    theta, x, score = simulations(num_simulations)
    return new_trainer(**kwargs).append_simulations(theta, x, score=score)


def record(trainer, **kwargs):
    """Train; return (epoch, rate) of every training step and all validation batches."""
    rates, validation = [], []
    original = trainer._get_losses

    def get_losses(batch, *args, **kwargs):
        if trainer._neural_net.training:
            rates.append((trainer.epoch, trainer.optimizer.param_groups[0]["lr"]))
        else:
            validation.append((trainer.epoch, batch[0].clone()))
        return original(batch, *args, **kwargs)

    trainer._get_losses = get_losses
    train(trainer, **kwargs)
    return rates, validation


@pytest.mark.parametrize("batch_size", [20, 100, 200])
def test_an_epoch_has_at_least_fifty_steps(batch_size):
    rates, _ = record(scored(), max_num_epochs=2, training_batch_size=batch_size)
    steps = Counter(epoch for epoch, _ in rates)
    assert set(steps) == {0, 1}
    assert all(STEPS_PER_EPOCH <= n <= 2 * STEPS_PER_EPOCH for n in steps.values())


def test_no_batch_shows_a_row_twice():
    """A repeated row could be its own contrasting parameter: a wrong label."""
    trainer = scored()
    batch_rows = []
    original = trainer._get_losses

    def get_losses(batch, *args, **kwargs):
        batch_rows.append(len(batch[0]) - len(batch[0].unique(dim=0)))
        return original(batch, *args, **kwargs)

    trainer._get_losses = get_losses
    train(trainer, max_num_epochs=1)
    assert sum(batch_rows) == 0


def test_without_scores_epochs_and_rate_are_the_hosts():
    theta, x, _ = simulations(300)
    trainer = new_trainer().append_simulations(theta, x)
    rates, _ = record(trainer, max_num_epochs=3)
    assert Counter(epoch for epoch, _ in rates) == {e: 1 for e in range(4)}
    assert {rate for _, rate in rates} == {5e-4}


def test_the_rate_stays_and_then_falls_linearly_towards_zero():
    rates, _ = record(scored(), max_num_epochs=10, learning_rate=1e-3)
    rate = dict(rates)
    assert len(rate) == 10
    assert [rate[e] for e in range(7)] == [1e-3] * 7
    assert [rate[e] for e in range(7, 10)] == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3])


def test_patience_that_ends_starts_the_annealing():
    trainer = scored()
    losses = iter([1.0] + [2.0] * 100)
    trainer._validate_epoch = lambda *args: next(losses)
    rates, _ = record(trainer, stop_after_epochs=5)
    rate = dict(rates)
    num_epochs = len(rate)
    assert num_epochs <= 1 + 2 * 5
    assert rate[num_epochs - 1] == pytest.approx(5e-4 / 5)
    assert sum(r < 5e-4 for r in rate.values()) == 4


def test_the_network_that_is_kept_is_that_of_the_best_sum():
    trainer = scored()
    states = []
    original = trainer._validate_epoch

    def validate(*args):
        loss = original(*args)
        copy = {k: v.clone() for k, v in trainer._neural_net.state_dict().items()}
        states.append((loss, copy))
        return loss

    trainer._validate_epoch = validate
    network = train(trainer, max_num_epochs=6, learning_rate=5e-3)
    best = min(states, key=lambda pair: pair[0])[1]
    for name, value in network.state_dict().items():
        assert torch.equal(value, best[name])


def test_the_budget_of_epochs_is_respected():
    trainer = scored()
    train(trainer, max_num_epochs=3)
    assert trainer.epoch <= 4


def test_validation_is_the_same_at_every_epoch_and_uses_all_rows():
    trainer = scored()
    _, validation = record(trainer, max_num_epochs=2, training_batch_size=16)
    by_epoch = [torch.cat([b for e, b in validation if e == n]) for n in (0, 1)]
    assert torch.equal(*by_epoch)
    sizes = {len(batch) for _, batch in validation}
    assert sizes == {15} and len(by_epoch[0]) == 30


def test_too_few_rows_are_refused_before_training():
    theta, x, score = simulations(8)
    trainer = new_trainer().append_simulations(theta, x, score=score)
    with pytest.raises(InvalidInputError, match="at least two"):
        train(trainer, max_num_epochs=1)
    assert trainer._neural_net is None


def test_resuming_goes_back_to_the_full_rate_and_on_with_the_same_rows():
    trainer = scored()
    train(trainer, max_num_epochs=5)
    rows, epoch = trainer.train_indices.clone(), trainer.epoch
    rates, _ = record(trainer, max_num_epochs=epoch + 10, resume_training=True)
    assert torch.equal(trainer.train_indices, rows)
    assert rates[0] == (epoch, 5e-4)
    assert rates[-1][1] < 5e-4 / 2


def test_annealing_uses_no_more_than_its_share_of_the_budget():
    rates, _ = record(scored(), max_num_epochs=10, stop_after_epochs=10)
    annealed = {epoch for epoch, rate in rates if rate < 5e-4}
    assert len(annealed) <= math.ceil(0.4 * 10)
