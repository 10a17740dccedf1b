"""Simulations that are not all that the prior gave: failed ones, or few scores."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_scoreaug.score_npe import ScoreNPE, centring
from sbi_scoreaug.score_npe.mixture import ConditionalMixture

PRIOR = MultivariateNormal(torch.zeros(1), torch.eye(1))
QUIET = {"show_progress_bars": False}


def failing(num_simulations):
    """x = theta + noise, that fails below 0: likelier at small theta."""
    theta = PRIOR.sample((num_simulations,))
    x = theta + torch.randn_like(theta)
    return theta, torch.where(x < 0, torch.nan, x)


def test_failed_simulations_do_not_move_the_posterior():
    """p(theta|x) is the same for the simulations that succeed; the average is not."""
    theta, x = failing(4000)
    trainer = ScoreNPE(PRIOR, num_hidden=32, **QUIET).append_simulations(theta, x)
    trainer.train(num_steps=1000)
    x_o = torch.tensor([[0.2], [1.1], [0.4], [1.5], [0.7]])
    mean, std = x_o.sum() / 6, 6**-0.5

    def shift():
        posterior = trainer.build_posterior()
        return float(posterior.sample((1000,), x=x_o, **QUIET).mean() - mean) / std

    assert abs(shift()) < 0.5
    # Centred as if nothing had failed, it is off by about 1.5 standard deviations.
    kept, x_kept, _ = trainer.get_simulations()
    trainer._neural_net.set_anchors(kept, x_kept)
    assert shift() < -0.9


@pytest.mark.parametrize("case", ["all", "failed", "left out by the user"])
def test_networks_are_centred_on_all_simulations_or_not_at_all(case):
    theta, x = failing(500)
    if case == "all":
        x = x.nan_to_num(0.0)
    if case == "left out by the user":
        kept = x.isfinite().all(1)
        theta, x = theta[kept], x[kept]
    trainer = ScoreNPE(PRIOR, num_hidden=8, **QUIET).append_simulations(theta, x)
    estimator = trainer.train(num_steps=4)
    assert (estimator.anchor_z is not None) == (case == "all")


@pytest.mark.parametrize(
    ("num_scored", "enough"), [(0, False), (20, False), (90, True)]
)
def test_a_handful_of_scores_is_not_centred_on(num_scored, enough):
    theta = PRIOR.sample((300,))
    x = theta + torch.randn_like(theta)
    score = x - theta
    score[num_scored:] = torch.nan
    trainer = ScoreNPE(PRIOR, num_hidden=8, **QUIET)
    given = {"score": score, "score_check": False} if num_scored else {}
    estimator = trainer.append_simulations(theta, x, **given).train(num_steps=4)
    assert (estimator.anchor_g is not None) == enough
    assert bool(estimator.trained_with_scores) == enough
    assert estimator.anchor_z is not None


def test_the_centre_is_of_all_rows_that_the_mixture_is_fitted_to(monkeypatch):
    """On a part of them its noise would be added to sets in place of cancelling."""
    fitted = []
    fit = ConditionalMixture.fit
    monkeypatch.setattr(
        ConditionalMixture, "fit", lambda *a: fitted.append(a[1]) or fit(*a)
    )
    theta = PRIOR.sample((12_000,))
    trainer = ScoreNPE(PRIOR, num_hidden=8, **QUIET)
    trainer.append_simulations(theta, theta + torch.randn_like(theta))
    estimator = trainer.train(num_steps=4, training_batch_size=1000)
    assert len(trainer.train_indices) > centring.ROWS
    torch.testing.assert_close(estimator.anchor_z, fitted[0])
    in_parts = estimator.centre(0.3)
    estimator._centres.clear()
    monkeypatch.setattr(centring, "ROWS", 10**6)
    torch.testing.assert_close(estimator.centre(0.3), in_parts)
