"""Scores by autodiff: closed forms, finite differences, pickling, typed errors."""

import math
import pickle

import pytest
import torch
from sbi.utils import BoxUniform, mcmc_transform
from torch.distributions import MultivariateNormal, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    PowerTransform,
    Transform,
)

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.scores.autodiff import score_from_log_prob, transform_score


def location_scale_log_prob(theta, x):
    """log N(x; theta_0, exp(2 theta_1)), summed over the dimensions of x."""
    noise = (x - theta[:, :1]) / theta[:, 1:].exp()
    return (-0.5 * noise.square() - theta[:, 1:] - 0.5 * math.log(2 * math.pi)).sum(1)


def location_scale_score(theta, x):
    sigma = theta[:, 1:].exp()
    noise = (x - theta[:, :1]) / sigma
    return torch.cat(
        [(noise / sigma).sum(1, keepdim=True), (noise**2 - 1).sum(1, keepdim=True)], 1
    )


class Linear(Transform):
    """phi = A theta with a full matrix: a Jacobian that is not diagonal."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def _call(self, x):
        return x @ self.matrix.T

    def _inverse(self, y):
        return torch.linalg.solve(self.matrix, y.T).T


MATRIX = torch.tensor([[2.0, 0.5, 0.0], [0.3, 1.0, -0.4], [0.0, 0.7, 1.5]]).double()
BOX = BoxUniform(torch.zeros(3).double(), 3 * torch.ones(3).double())
TRANSFORMS = {
    "identity": ComposeTransform([]),
    "affine": AffineTransform(torch.tensor([1.0, 0.0, 2.0]), torch.tensor(-0.5)),
    "exp": ExpTransform(),
    "log": ExpTransform().inv,
    "cached": ExpTransform(cache_size=1),
    "composed": ComposeTransform([PowerTransform(torch.tensor(2.0)), ExpTransform()]),
    "independent": IndependentTransform(ExpTransform(), 1),
    "box of sbi": mcmc_transform(BOX),
    "z-score of sbi": mcmc_transform(
        MultivariateNormal(torch.ones(3).double(), 4 * torch.eye(3).double())
    ),
    "linear": Linear(MATRIX),
    "linear then exp": ComposeTransform([Linear(MATRIX), ExpTransform()]),
}


def test_score_matches_the_closed_form():
    theta, x = torch.randn(20, 2).double(), torch.randn(20, 5).double()
    score = score_from_log_prob(location_scale_log_prob)(theta, x)
    assert score.dtype == torch.float64 and not score.requires_grad
    torch.testing.assert_close(score, location_scale_score(theta, x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_score_works_where_gradients_are_off(mode):
    score_function = score_from_log_prob(location_scale_log_prob)
    with mode():
        theta, x = torch.randn(4, 2), torch.randn(4, 5)
        score = score_function(theta, x)
    torch.testing.assert_close(score, location_scale_score(theta, x))


def test_score_leaves_theta_alone_and_can_be_pickled():
    theta, x = torch.randn(4, 2, requires_grad=True), torch.randn(4, 5)
    score_function = pickle.loads(
        pickle.dumps(score_from_log_prob(location_scale_log_prob))
    )
    expected = location_scale_score(theta, x).detach()
    torch.testing.assert_close(score_function(theta, x), expected)
    assert theta.grad is None


@pytest.mark.parametrize(
    ("log_prob", "error", "message"),
    [
        (3.0, InvalidTypeError, "function of"),
        (lambda theta, x: 1.0, InvalidTypeError, "torch Tensor"),
        (lambda theta, x: (x - theta) ** 2, InvalidInputError, r"\(4,\), got \(4, 2\)"),
        (lambda theta, x: (x - theta).sum(), InvalidInputError, "one value per row"),
        (lambda theta, x: (x - theta.detach()).sum(1), InvalidInputError, "gradient"),
        (
            lambda theta, x: x.requires_grad_().sum(1),
            InvalidInputError,
            "gradient with respect to theta",
        ),
    ],
)
def test_unusable_log_prob_is_refused(log_prob, error, message):
    with pytest.raises(error, match=message):
        score_from_log_prob(log_prob)(torch.randn(4, 2), torch.randn(4, 2))


def test_integer_theta_is_refused():
    with pytest.raises(InvalidTypeError, match="floating point"):
        score_from_log_prob(location_scale_log_prob)(
            torch.ones(4, 2, dtype=torch.long), torch.randn(4, 5)
        )


def log_prob_of_three(theta, x):
    return -0.5 * ((x - theta.prod(1, keepdim=True)) ** 2).sum(1) + theta.sin().sum(1)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformed_score_matches_finite_differences(name):
    """Against central differences of log p(x | T^-1(phi)) in phi."""
    transform = TRANSFORMS[name]
    theta, x = BOX.sample((6,)).double() * 0.8 + 0.3, torch.randn(6, 2).double()
    score = score_from_log_prob(log_prob_of_three)(theta, x)
    transformed = transform_score(score, theta, transform)
    phi = transform(theta)
    for k in range(3):
        step = 1e-6 * phi[:, k].abs().clamp_min(1e-3)
        shift = torch.zeros_like(phi)
        shift[:, k] = step
        up = log_prob_of_three(transform.inv(phi + shift), x)
        down = log_prob_of_three(transform.inv(phi - shift), x)
        torch.testing.assert_close(
            transformed[:, k], (up - down) / (2 * step), rtol=1e-4, atol=1e-6
        )


def test_transformed_score_is_the_inverse_transposed_jacobian():
    score, theta = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    transformed = transform_score(score, theta, Linear(MATRIX))
    torch.testing.assert_close(transformed, score @ torch.linalg.inv(MATRIX))
    # Negative control: without the transpose it is another vector.
    assert not torch.allclose(transformed, score @ torch.linalg.inv(MATRIX).T)


def test_unknown_components_stay_or_spread():
    score = torch.ones(2, 3).double()
    score[0, 1] = torch.nan
    theta = torch.ones(2, 3).double()
    elementwise = transform_score(score, theta, TRANSFORMS["box of sbi"])
    assert torch.equal(elementwise.isnan(), score.isnan())
    full = transform_score(score, theta, Linear(MATRIX))
    assert full[0].isnan().all() and full[1].isfinite().all()


def test_transform_score_refuses_what_does_not_fit():
    with pytest.raises(InvalidInputError, match="one score row"):
        transform_score(torch.ones(2, 3), torch.ones(3, 3), ExpTransform())
    from torch.distributions.transforms import AbsTransform, StickBreakingTransform

    for transform in (AbsTransform(), StickBreakingTransform()):
        with pytest.raises(InvalidInputError, match="bijection"):
            transform_score(torch.ones(2, 3), torch.ones(2, 3), transform)
