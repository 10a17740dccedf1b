"""Scores stay beside their simulations: rows, rounds, masks, devices."""

import warnings

import pytest
import torch
from registry import (
    DROP_INS,
    SIMULATOR,
    new_drop_in,
    new_trainer,
    simulations,
    train,
)
from sbi.utils import BoxUniform, RestrictedPrior

from sbi_scoreaug import ScoreAugmentedNPE, ScoreAugmentedNRE
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, ScoreWarning

WIDE = BoxUniform(-1e6 * torch.ones(2), 1e6 * torch.ones(2))


def coded(num_simulations, start=0.0):
    """Simulations whose theta, x and score all encode their row."""
    row = start + torch.arange(float(num_simulations)).unsqueeze(1)
    theta = torch.cat([row, -row], 1)
    return theta, torch.cat([row, row, row], 1), theta + 0.25


def append(trainer, theta, x, score=None, **kwargs):
    return trainer.append_simulations(
        theta, x, score=score, score_check=False, **kwargs
    )


def batches_of(trainer, **kwargs):
    """Every batch that the trainer's losses see, as (training, batch)."""
    seen = []
    original = trainer._get_losses

    def get_losses(batch, *args, **kwargs):
        seen.append((trainer._neural_net.training, [c.clone() for c in batch]))
        return original(batch, *args, **kwargs)

    trainer._get_losses = get_losses
    train(trainer, **{"max_num_epochs": 1, **kwargs})
    return seen


def assert_aligned(batches, unscored_below=-1.0):
    for _, (theta, _, _, score, mask, *_) in batches:
        scored = theta[:, 0] > unscored_below
        assert mask[scored].all() and not mask[~scored].any()
        assert torch.equal(score[scored], theta[scored] + 0.25)
        assert (score[~scored] == 0).all()


def test_without_scores_the_loaders_are_the_hosts():
    theta, x, _ = coded(60)
    for loader in (
        new_trainer(prior=WIDE).append_simulations(theta, x).get_dataloaders()
    ):
        assert len(loader.dataset.tensors) == 3


def test_every_batch_carries_the_scores_of_its_own_rows():
    trainer = append(new_trainer(prior=WIDE), *coded(100))
    batches = batches_of(trainer)
    assert_aligned(batches)
    assert {training for training, _ in batches} == {True, False}


def test_training_never_sees_a_validation_row():
    trainer = append(new_trainer(prior=WIDE), *coded(100))
    batches = batches_of(trainer, training_batch_size=20)
    rows = {
        mode: {int(v) for m, batch in batches if m == mode for v in batch[0][:, 0]}
        for mode in (True, False)
    }
    assert rows[False] == set(trainer.val_indices.tolist())
    assert rows[True] == set(trainer.train_indices.tolist())


@pytest.mark.parametrize("invalid", [torch.nan, torch.inf])
def test_rows_that_sbi_drops_are_dropped_from_the_scores(invalid):
    theta, x, score = coded(100)
    x[3:40:5, 1] = invalid
    trainer = new_trainer(prior=WIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        append(trainer, theta, x, score, exclude_invalid_x=True)
    assert len(trainer._score_roundwise[0]) == len(trainer._theta_roundwise[0]) == 92
    assert_aligned(batches_of(trainer))


def test_a_score_function_is_not_asked_about_rows_that_sbi_drops():
    theta, x, _ = simulations(60)
    x[7] = torch.nan
    trainer = new_trainer(score_fn=SIMULATOR.score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.append_simulations(theta, x, exclude_invalid_x=True)
    expected = SIMULATOR.score(*trainer.get_simulations()[:2])
    assert torch.allclose(trainer._score_roundwise[0], expected)


def test_rounds_with_and_without_scores_can_be_mixed():
    trainer = append(new_trainer(prior=WIDE), *coded(50)[:2])
    append(trainer, *coded(50, start=50.0), from_round=1)
    assert_aligned(batches_of(trainer), unscored_below=49.5)


def test_discarding_the_prior_samples_discards_their_scores():
    trainer = append(new_trainer(prior=WIDE), *coded(50))
    append(trainer, *coded(60, start=50.0), from_round=1)
    batches = batches_of(trainer, discard_prior_samples=True)
    assert_aligned(batches)
    assert min(batch[0][:, 0].min() for _, batch in batches) >= 50


def test_two_appends_in_one_round_keep_their_order():
    trainer = append(new_trainer(prior=WIDE), *coded(30))
    append(trainer, *coded(30, start=30.0))
    assert_aligned(batches_of(trainer))


def test_get_simulations_still_returns_three():
    trainer = append(new_trainer(prior=WIDE), *coded(30))
    assert len(trainer.get_simulations()) == 3


def test_unknown_components_are_masked_with_one_warning():
    theta, x, score = coded(100)
    score[::2, 1] = torch.nan
    trainer = new_trainer(prior=WIDE)
    with pytest.warns(ScoreWarning, match="50 of 200") as caught:
        append(trainer, theta, x, score)
    assert len(caught) == 1
    for _, (t, _, _, s, m) in batches_of(trainer):
        known = t[:, 0] % 2 == 1
        assert m[:, 0].all() and torch.equal(m[:, 1], known)
        assert torch.equal(s[:, 0], t[:, 0] + 0.25) and s.isfinite().all()


def test_the_callers_tensors_are_neither_kept_as_leaves_nor_changed():
    theta, x, score = coded(60)
    leaf = score.clone().requires_grad_()
    trainer = append(new_trainer(prior=WIDE), theta, x, leaf)
    train(trainer, max_num_epochs=1)
    assert not trainer._score_roundwise[0].requires_grad
    assert leaf.grad is None and not theta.requires_grad
    assert torch.equal(theta, coded(60)[0])


def test_double_precision_scores_become_single_as_sbis_data():
    theta, x, score = coded(60)
    trainer = append(new_trainer(prior=WIDE), theta, x, score.double())
    assert trainer._score_roundwise[0].dtype == torch.float32


def test_wrong_scores_raise_a_warning_by_default_and_can_be_silenced():
    theta, x, score = simulations(500)
    with pytest.warns(ScoreWarning, match="sign"):
        new_trainer().append_simulations(theta, x, score=-score)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new_trainer().append_simulations(theta, x, score=-score, score_check=False)
        new_trainer().append_simulations(theta, x, score=score)


def test_the_warning_points_at_the_caller():
    theta, x, score = simulations(500)
    with pytest.warns(ScoreWarning) as caught:
        new_trainer().append_simulations(theta, x, score=-score)
    assert caught[0].filename == __file__


def test_scores_of_later_rounds_are_not_checked_against_the_prior():
    theta, x, score = simulations(500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = new_trainer().append_simulations(theta, x, score=-score, from_round=1)
    assert torch.equal(trainer._score_roundwise[0], -score)
    with pytest.warns(ScoreWarning):  # control: the same in the first round
        new_trainer().append_simulations(theta, x, score=-score, from_round=0)


def said(append_all):
    """What `append_all()` warns of, in the name of this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        append_all()
    own = [w for w in caught if issubclass(w.category, ScoreWarning)]
    assert all(w.filename == __file__ for w in own)
    return [str(w.message) for w in own]


@pytest.mark.parametrize("name", DROP_INS)
def test_a_score_that_is_forgotten_later_is_missed(name):
    theta, x, score = simulations(60)
    trainer = new_drop_in(name)
    assert said(lambda: trainer.append_simulations(theta, x)) == []  # none so far
    assert said(lambda: trainer.append_simulations(theta, x, score=score)) == []
    (message,) = said(lambda: trainer.append_simulations(theta[:30], x[:30]))
    assert "90 of 150 simulations have no score" in message


def test_a_score_function_leaves_nothing_to_miss():
    theta, x, score = simulations(60)
    trainer = new_trainer(score_fn=SIMULATOR.score)
    trainer.append_simulations(theta, x, score=score)
    assert said(lambda: trainer.append_simulations(theta, x)) == []


@pytest.mark.parametrize("name", DROP_INS)
@pytest.mark.parametrize(
    ("prior", "word"),
    [
        (BoxUniform(-0.1 * torch.ones(2), 0.1 * torch.ones(2)), "outside"),
        (BoxUniform(-50 * torch.ones(2), 50 * torch.ones(2)), "does not look like"),
    ],
)
def test_a_prior_that_theta_does_not_come_from_is_named(name, prior, word):
    theta, x, score = simulations(300)
    messages = said(
        lambda: new_drop_in(name, prior=prior).append_simulations(theta, x, score=score)
    )
    assert len([m for m in messages if word in m and "score_check=False" in m]) == 1
    silent = said(
        lambda: new_drop_in(name, prior=prior).append_simulations(
            theta, x, score=score, score_check=False
        )
    )
    assert silent == []


def test_parameters_from_a_named_proposal_are_not_held_against_the_prior():
    theta = SIMULATOR.prior.sample((600,))
    theta = theta[theta[:, 0] > 0.5]
    x = SIMULATOR(theta)
    score = SIMULATOR.score(theta, x)
    proposal = RestrictedPrior(
        SIMULATOR.prior, lambda t: t[:, 0] > 0.5, sample_with="rejection"
    )

    def append_to(**kwargs):
        trainer = new_trainer(ScoreAugmentedNPE)
        return said(lambda: trainer.append_simulations(theta, x, score=score, **kwargs))

    assert append_to(proposal=proposal) == []
    assert len(append_to()) == 1  # control


@pytest.mark.parametrize("name", DROP_INS)
def test_training_before_any_simulation_says_what_to_do(name):
    with pytest.raises(InvalidStateError, match="Call append_simulations first"):
        new_drop_in(name).train()


@pytest.mark.parametrize("name", DROP_INS)
def test_theta_has_the_priors_dimension(name):
    theta, x, score = simulations(60)
    trainer = new_drop_in(name)
    random_state = torch.get_rng_state()
    with pytest.raises(InvalidInputError, match=r"prior's 2 parameters.*\(60, 1\)"):
        trainer.append_simulations(theta[:, :1], x)
    with pytest.raises(InvalidInputError, match=r"\(60, 3\)"):
        trainer.append_simulations(torch.cat([theta, theta[:, :1]], 1), x)
    assert torch.equal(random_state, torch.get_rng_state())
    assert trainer._theta_roundwise == [] == trainer._score_roundwise
    trainer.append_simulations(theta, x, score=score, score_check=False)


def test_a_score_function_fills_in_what_is_missing_and_only_that():
    theta, x, score = simulations(60)
    trainer = new_trainer(score_fn=SIMULATOR.score)
    trainer.append_simulations(theta, x)
    trainer.append_simulations(
        theta, x, score=torch.ones_like(score), score_check=False
    )
    assert torch.allclose(trainer._score_roundwise[0], score)
    assert (trainer._score_roundwise[1] == 1).all()


def test_a_refusal_of_the_hosts_leaves_no_score_behind():
    theta, x, score = coded(60)
    trainer = new_trainer(prior=WIDE)
    with pytest.raises(AssertionError):
        append(trainer, theta, x.double(), score)
    assert trainer._score_roundwise == [] and trainer._score_kinds == []
    assert trainer._theta_roundwise == []


def test_arguments_of_the_host_can_be_given_by_position():
    theta, x, score = coded(60)
    trainer = new_trainer(prior=WIDE)
    trainer.append_simulations(theta, x, False, 1, score=score)
    assert trainer._data_round_index == [1]


def test_help_lists_the_hosts_arguments_and_then_ours():
    import inspect

    names = list(inspect.signature(type(new_trainer()).append_simulations).parameters)
    assert names[:5] == ["self", "theta", "x", "exclude_invalid_x", "from_round"]
    assert names[-3:] == ["score", "score_kind", "score_check"]
    names = list(inspect.signature(type(new_trainer()).train).parameters)
    assert names[1] == "training_batch_size" and "score_weighting" in names
    shown = inspect.signature(ScoreAugmentedNRE).parameters
    assert list(shown)[:2] == ["prior", "classifier"] and "score_fn" in shown
    assert shown["classifier"].default == "smooth_resnet"


def test_a_subclass_with_arguments_of_its_own_shows_these():
    import inspect

    class WithName(ScoreAugmentedNRE):
        def __init__(self, name, **kwargs):
            super().__init__(**kwargs)

    assert list(inspect.signature(WithName).parameters) == ["name", "kwargs"]


def test_loaders_can_be_asked_for_before_training():
    trainer = append(new_trainer(prior=WIDE), *coded(60))
    for loader in trainer.get_dataloaders():
        assert len(next(iter(loader))) == 5


def test_a_collate_function_that_changes_the_number_of_columns_is_refused():
    def two_columns(rows):
        return torch.stack([row[0] for row in rows]), torch.stack([r[1] for r in rows])

    trainer = append(new_trainer(prior=WIDE), *coded(60))
    with pytest.raises(InvalidInputError, match="collate_fn"):
        train(trainer, max_num_epochs=1, dataloader_kwargs={"collate_fn": two_columns})
