"""The score term against closed forms and finite differences."""

import pytest
import torch
from registry import SIMULATOR, simulations
from torch import nn

from sbi_scoreaug import smooth_classifier_nn
from sbi_scoreaug.score_augmented.loss import (
    huber,
    residuals,
    score_losses,
    square,
    standardised_error,
    whitening_matrix,
)

MIXING = torch.tensor([[30.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.05, 2.0]])


def correlated_scores(num_simulations=4000):
    score = torch.randn(num_simulations, 3) @ MIXING
    return score, torch.ones_like(score).bool(), torch.randn(num_simulations, 3)


def test_whitened_scores_have_the_identity_as_second_moment():
    score, mask, theta = correlated_scores()
    z = score @ whitening_matrix(score, mask, theta).T
    assert torch.allclose(z.T @ z / len(z), torch.eye(3), atol=1e-3)


def test_whitening_keeps_each_component_beside_its_parameter():
    score, mask, theta = correlated_scores()
    z = score @ whitening_matrix(score, mask, theta).T
    correlation = torch.corrcoef(torch.cat([z, score], 1).T)[:3, 3:]
    assert correlation.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rho", [square, huber])
def test_a_surrogate_without_theta_has_a_loss_of_order_one_everywhere(rho):
    score, mask, theta = correlated_scores()
    whitening = whitening_matrix(score, mask, theta)
    ell = score_losses(torch.zeros_like(score), score, mask, whitening, rho)
    assert ((ell > 0.5) & (ell < 1.1)).all()
    if rho is square:
        assert torch.allclose(ell, torch.ones(3), atol=1e-3)


def test_rescaling_the_parameters_leaves_the_losses_unchanged():
    score, mask, theta = correlated_scores()
    gradient = score + torch.randn_like(score)
    units = torch.tensor([1e-4, 1.0, 1e5])
    losses = []
    for unit in (torch.ones(3), units):
        s, g, t = score / unit, gradient / unit, theta * unit
        losses.append(score_losses(g, s, mask, whitening_matrix(s, mask, t)))
    assert torch.allclose(*losses, rtol=1e-4)


def test_a_component_whose_score_is_zero_is_measured_by_its_parameters_spread():
    score, mask, theta = correlated_scores()
    score[:, 1], theta[:, 1] = 0.0, 7.0 * theta[:, 1]
    whitening = whitening_matrix(score, mask, theta)
    assert whitening.isfinite().all()
    assert whitening[1, 1] == pytest.approx(7.0, rel=0.05)


def test_a_constant_score_of_a_constant_parameter_stays_finite():
    score, mask, theta = correlated_scores(50)
    score[:], theta[:] = 0.0, 1.0
    assert whitening_matrix(score, mask, theta).isfinite().all()


def test_scores_that_are_collinear_are_not_blown_up():
    score, mask, theta = correlated_scores()
    score[:, 2] = 2 * score[:, 0]
    whitening = whitening_matrix(score, mask, theta)
    noise = torch.randn_like(score) * score.square().mean(0).sqrt()
    assert (noise @ whitening.T).square().mean() < 1e3


def test_missing_components_make_the_whitening_diagonal_by_known_entries():
    score, mask, theta = correlated_scores()
    mask[::3, 0] = False
    whitening = whitening_matrix(score * mask, mask, theta)
    known = score[mask[:, 0], 0].square().mean().sqrt()
    assert torch.equal(whitening, torch.diag(whitening.diagonal()))
    assert whitening[0, 0] == pytest.approx(1 / float(known), rel=1e-4)


def test_unknown_components_add_nothing_to_the_loss_nor_to_its_gradient():
    score, mask, theta = correlated_scores(60)
    mask[:30, 0] = False
    whitening = whitening_matrix(score * mask, mask, theta)
    gradient = torch.randn(60, 3, requires_grad=True)
    ell = score_losses(gradient, score * mask, mask, whitening)
    rows = mask[:, 0]
    alone = (whitening[0, 0] * (gradient - score)[rows, 0]).square().mean()
    assert torch.allclose(ell[0], alone)
    (by_gradient,) = torch.autograd.grad(ell.sum(), gradient)
    assert (by_gradient[~mask] == 0).all() and (by_gradient[mask] != 0).all()


def test_a_batch_without_any_known_component_costs_nothing():
    score, mask, _ = correlated_scores(5)
    ell = score_losses(score, score, torch.zeros_like(mask), torch.eye(3))
    assert torch.equal(ell, torch.zeros(3))


def test_residuals_are_the_whitened_difference():
    score, mask, _ = correlated_scores(5)
    gradient = torch.randn(5, 3)
    r = residuals(gradient, score, mask, MIXING)
    assert torch.allclose(r[2], MIXING @ (gradient - score)[2], rtol=1e-4)


def test_huber_is_the_square_inside_and_linear_outside():
    r = torch.tensor([-3.0, -0.5, 0.0, 0.5, 1.0, 4.0])
    assert huber(r).tolist() == pytest.approx([5.0, 0.25, 0.0, 0.25, 1.0, 7.0])


def test_the_standardised_error_is_zero_for_the_score_and_one_for_nothing():
    score, mask, _ = correlated_scores(50)
    for gradient, expected in ((score, 0.0), (torch.zeros_like(score), 1.0)):
        wrong, all_ = standardised_error(gradient, score, mask)
        assert (wrong / all_).tolist() == pytest.approx([expected] * 3)


def test_the_terms_gradient_is_that_of_finite_differences():
    """d ell / d phi, through grad_theta f, for the parameters phi of a network."""
    theta, x, score = simulations(40)
    net = smooth_classifier_nn("mlp", hidden_features=6)(theta, x).double()
    theta, x, score = theta.double(), x.double(), score.double()
    mask = torch.ones_like(score).bool()
    whitening = whitening_matrix(score, mask, theta).double()

    def term():
        leaf = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf, x).sum(), leaf, create_graph=True)
        return score_losses(gradient, score, mask, whitening)[1]

    weight = net.net[0].weight
    (exact,) = torch.autograd.grad(term(), weight)
    step = 1e-6
    for i, j in ((0, 0), (2, 1), (5, 3)):
        values = []
        for sign in (1, -1):
            weight.data[i, j] += sign * step
            values.append(float(term().detach()))
            weight.data[i, j] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        assert float(exact[i, j]) == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def minimiser(rho, target, features, num_steps=60):
    """Fit b of g = features @ b to the target under rho, W = 1 / rms(target)."""
    b = nn.Parameter(torch.zeros(features.shape[1], 1))
    mask = torch.ones_like(target).bool()
    whitening = whitening_matrix(target, mask, target)
    optimiser = torch.optim.LBFGS(
        [b], max_iter=num_steps, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = score_losses(features @ b, target, mask, whitening, rho).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return b.detach().flatten()


def test_joint_scores_have_the_exact_score_as_minimiser_of_the_square_only():
    """t = s + skewed noise of mean zero, s = 3 or -3 by a feature of x.

    The square's minimiser is the mean s. Huber's is another centre of the skewed noise,
    and so must miss it.
    """
    num_simulations = 40_000
    side = torch.rand(num_simulations, 1) < 0.5
    mean = torch.where(side, 3.0, -3.0)
    skewed = torch.distributions.LogNormal(0.0, 1.2).sample(mean.shape)
    skewed = 2 * (skewed - torch.tensor(0.72).exp())
    joint = mean + skewed
    features = torch.cat([side, ~side], 1).float()
    # The noise has sd 7.2, a mean over 20000 rows a standard error of .05.
    squared = minimiser(square, joint, features)
    assert squared.tolist() == pytest.approx([3.0, -3.0], abs=0.25)
    robust = minimiser(huber, joint, features)
    assert (robust - torch.tensor([3.0, -3.0])).abs().min() > 0.5


def test_the_exact_score_of_the_linear_gaussian_is_recovered_by_regression():
    theta, x, score = simulations(2000)
    features = torch.cat([theta, x], 1)
    mask = torch.ones_like(score).bool()
    whitening = whitening_matrix(score, mask, theta)
    b = torch.linalg.lstsq(features, score).solution
    assert score_losses(features @ b, score, mask, whitening).max() < 1e-8
    expected = -SIMULATOR.score(torch.eye(2), torch.zeros(2, 2))
    assert torch.allclose(b[:2], -expected, atol=1e-3)
