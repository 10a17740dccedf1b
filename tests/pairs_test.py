"""Pairs beyond the simulated ones: where they lie, and whose score they carry."""

import pytest
import torch
from registry import SIMULATOR, simulations
from sbi.utils import BoxUniform

from sbi_scoreaug.score_augmented.loss import whitening_matrix
from sbi_scoreaug.score_augmented.pairs import NUM_PAIRS, supervised_pairs


def table(kind, num_simulations=2000, score_fn=SIMULATOR.score, prior=SIMULATOR.prior):
    theta, x, score = simulations(num_simulations)
    whitening = whitening_matrix(score, torch.ones_like(score).bool(), theta)
    pairs = supervised_pairs(kind, score_fn, theta, x, whitening, prior)
    return theta, x, score, pairs


@pytest.mark.parametrize("kind", ["local", "both"])
def test_every_pair_carries_the_exact_score_at_its_own_theta_and_x(kind):
    _, x, _, pairs = table(kind, 100)
    assert pairs.theta.shape == (100, NUM_PAIRS, 2)
    for pair in range(NUM_PAIRS):
        expected = SIMULATOR.score(pairs.theta[:, pair], x)
        assert torch.allclose(pairs.score[:, pair], expected)
    assert pairs.mask.all()


def test_the_jitter_has_the_covariance_of_the_inverse_fisher_information():
    theta, _, score, pairs = table("local", 4000)
    jitter = (pairs.theta - theta.unsqueeze(1)).flatten(0, 1)
    fisher = score.T @ score / len(score)
    expected = torch.linalg.inv(fisher)
    # 32000 draws: relative error of a covariance .01.
    found = jitter.T @ jitter / len(jitter)
    assert torch.allclose(found, expected, atol=0.05 * float(expected.diagonal().min()))


def test_marginal_pairs_are_other_rows_of_the_data():
    theta, _, _, pairs = table("both", 50)
    stored = {tuple(row) for row in theta.tolist()}
    marginal = pairs.theta[:, 1::2].flatten(0, 1).tolist()
    assert all(tuple(row) in stored for row in marginal)
    local = pairs.theta[:, ::2].flatten(0, 1).tolist()
    assert not any(tuple(row) in stored for row in local)


def test_parameters_never_leave_the_support_of_the_prior():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((500,))
    x = SIMULATOR(theta)
    pairs = supervised_pairs("local", SIMULATOR.score, theta, x, torch.eye(2), prior)
    assert (pairs.theta.abs() <= 1).all()
    assert (pairs.theta != theta.unsqueeze(1)).any(-1).float().mean() > 0.2


def test_scores_that_are_not_finite_are_masked():
    def score_fn(theta, x):
        score = SIMULATOR.score(theta, x)
        score[0, 0], score[1, 1] = torch.nan, torch.inf
        return score

    *_, pairs = table("local", 20, score_fn)
    assert not pairs.mask[0, :, 0].any() and not pairs.mask[1, :, 1].any()
    assert pairs.mask[2:].all() and pairs.score.isfinite().all()


def test_a_draw_is_one_pair_of_each_row():
    theta, x, _, pairs = table("local", 200)
    rows = torch.tensor([5, 3, 199])
    drawn, score, mask = pairs.draw(rows)
    assert drawn.shape == score.shape == mask.shape == (3, 2)
    assert torch.allclose(score, SIMULATOR.score(drawn, x[rows]))
    spread = whitening_matrix(score, mask, theta)
    assert spread.isfinite().all()
    draws = torch.stack([pairs.draw(rows)[0] for _ in range(200)])
    assert len(draws[:, 0].unique(dim=0)) == NUM_PAIRS
