"""What ScoreNPE's network is before training, and what it cannot become."""

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import Normal

from sbi_scoreaug.score_npe.coordinates import normal_coordinates
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.layers import LARGEST, bent, blurred_slope, bounded
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.simulators import BoundedLinearGaussian

LEVELS = [(0.9995, 0.03), (0.6, 0.8), (0.08, 0.9968)]
DEVIATION = 0.2  # of x from theta


def levels(m, s):
    return torch.tensor([[m]]), torch.tensor([[s]])


def untrained(deviation=DEVIATION, dim=2):
    z = torch.randn(20_000, dim)
    x = z + deviation * torch.randn_like(z)
    return PosteriorScoreNet(z, x, num_hidden=16), z, x


@pytest.mark.parametrize("level", LEVELS)
def test_training_starts_at_the_linear_gaussian_posterior(level):
    net, z, x = untrained()
    (m, s), precision = levels(*level), 1 + DEVIATION**-2
    z_t = m * z[:200] + s * torch.randn(200, 2)
    mean = x[:200] * DEVIATION**-2 / precision
    expected = (m * mean - z_t) / (m**2 / precision + s**2)
    with torch.no_grad():
        score = net.pairs(z_t, net.embed(x[:200]), m, s) - z_t
    error = (score - expected).square().mean() / (expected + z_t).square().mean()
    assert error < 1e-3
    assert (score - 1.1 * expected).square().mean() > 1e-3  # control


@pytest.mark.parametrize("level", LEVELS)
def test_no_weights_make_the_score_steeper_than_diffusion_allows(level):
    """Far away, where c and the factors have stopped to change."""
    net, *_ = untrained()
    (m, s), steepest = levels(*level), []
    for _ in range(20):
        torch.nn.init.normal_(net.output[1].weight, std=30.0)
        with torch.no_grad():
            net.output[1].weight[4:6] = 0  # c
        z = 1000 * torch.randn(200, 2)
        features = net.embed(torch.randn(200, 2))
        further = net.pairs(1.001 * z, features, m, s)
        slope = ((further - net.pairs(z, features, m, s)) / (0.001 * z) - 1).detach()
        steepest.append(-float(slope.quantile(0.02)))
    assert max(steepest) < 1.01 / float(s) ** 2
    assert max(steepest) > 0.2 / float(s) ** 2  # the bound is come close to


def test_certain_parameters_have_finite_scores_and_gradients():
    net, z, x = untrained(1e-5, dim=3)
    for level in LEVELS:
        m, s = levels(*level)
        excess = net.pairs(z[:9], net.embed(x[:9]), m, s)
        excess.sum().backward()
        assert excess.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_bounded_is_the_identity_for_small_values():
    values = torch.linspace(-0.01, 0.01, 5)
    torch.testing.assert_close(bounded(values), values, rtol=1e-4, atol=0)
    assert bounded(torch.tensor(1e9)) == LARGEST
    assert bounded(torch.tensor(-1e9), 0.5) == -0.5


@pytest.mark.parametrize("level", LEVELS)
def test_the_blurred_slope_is_the_mean_slope_given_z_t(level):
    """Relative to that at 0, where theta(z) = Phi(z) and z ~ N(m z_t, s^2)."""
    m, s = level
    z_t = torch.tensor([0.0, 0.7, 1.5, 3.0])
    z = m * z_t[:, None] + s * torch.randn(4, 200_000)
    slopes = Normal(0.0, 1.0).log_prob(z).exp().mean(1)
    found = blurred_slope(z_t[:, None], *levels(m, s))[:, 0]
    torch.testing.assert_close(found, slopes / slopes[0], rtol=0.03, atol=1e-3)
    assert not torch.allclose(found, (-(z_t**2) / 2).exp() ** 2, atol=1e-2)  # control


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_bent_has_the_blurred_slope(level):
    m, s = levels(*level)
    z = torch.linspace(-4, 4, 41)[:, None].double().requires_grad_()
    values = bent(z, m.double(), s.double())
    (slope,) = torch.autograd.grad(values.sum(), z)
    torch.testing.assert_close(
        slope, blurred_slope(z, m, s).double(), rtol=1e-5, atol=1e-7
    )
    assert abs(values[20].item()) < 1e-6


def test_training_starts_near_a_linear_gaussian_likelihood_between_walls():
    """Against quadrature; what is right for a free parameter is not near."""
    torch.manual_seed(0)
    simulator = BoundedLinearGaussian(1, noise_std=0.5)
    theta = simulator.prior.sample((20_000,))
    z, x = normal_coordinates(simulator.prior).to_normal(theta), simulator(theta)
    m, s = levels(0.9995, 0.03)
    z_t, x_o = torch.linspace(-3, 3, 31)[:, None], torch.tensor([[0.3], [-0.8]])
    exact = simulator.diffused_score(z_t, 0.9995, x_o) + z_t[:, None]
    errors = []
    for walls in (torch.ones(1), None):
        net = PosteriorScoreNet(z, x, num_hidden=16, walls=walls)
        with torch.no_grad():
            found = net.all_pairs(z_t, net.embed(x_o), m, s)
        errors.append(float((found - exact).square().mean() / exact.square().mean()))
    assert errors[0] < 0.25 < 1 < errors[1], errors


def test_coordinates_know_which_parameters_are_between_walls():
    box, one = BoxUniform(torch.zeros(2), torch.ones(2)), torch.ones(1)
    assert normal_coordinates(box).walls(2).tolist() == [1, 1]
    mixed = MultipleIndependent([Normal(0 * one, one), box, Normal(0 * one, one)])
    assert normal_coordinates(mixed).walls(4).tolist() == [0, 1, 1, 0]


def between_walls(walls):
    """A network of random weights that does or does not know of the box."""
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((500,))
    x, coordinates = theta + 0.5 * torch.randn(500, 2), normal_coordinates(prior)
    z = coordinates.to_normal(theta)
    net = PosteriorScoreNet(z, x, num_hidden=16, walls=walls)
    torch.nn.init.normal_(net.output[1].weight, std=0.3)
    estimator = FactorizedScoreEstimator(net, coordinates, x.shape[1:], 2)
    estimator.set_anchors(theta, x)
    return estimator, x


def test_no_observation_says_anything_beyond_walls():
    """Nor does the centre; in the other parameter both do."""
    estimator, x = between_walls(torch.tensor([1.0, 0.0]))
    embedded, z = estimator.embed(x[:8]), torch.tensor([[8.0, 8.0], [-8.0, -8.0]])
    for t in (0.01, 0.3):
        of_x = estimator.set_score(z, t, embedded) + z[:, None]
        assert of_x[..., 0].abs().max() < 1e-3 < 0.1 < of_x[..., 1].abs().min()
    z = torch.tensor([[8.0, 0.5]], requires_grad=True)  # nor is there a slope
    m, s = levels(0.9995, 0.03)
    of_x = estimator.net.pairs(z, embedded[:1], m, s)
    slopes = [torch.autograd.grad(of_x[0, k], z, retain_graph=True)[0] for k in (0, 1)]
    assert slopes[0].abs().max() < 1e-3 < 0.1 < slopes[1].abs().max()


@pytest.mark.parametrize("walls", [None, torch.tensor([1.0, 0.0]), torch.ones(2)])
def test_the_centre_is_taken_off_in_the_shape_of_the_error(walls):
    """Over the anchors it explains what can be explained: nothing is left."""
    estimator, x = between_walls(walls)
    z, t = estimator.anchor_z, torch.tensor([0.3])
    m, s = estimator.mean_t_fn(t), estimator.std_fn(t)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    z_t = m * z + s * noise
    excess = estimator.net.pairs(z_t, estimator.anchor_features, m, s)
    centre = estimator.centre(0.3)
    fitted = estimator.net.gate(z_t, m, s) * (centre[0] + z_t @ centre[1:])
    again = torch.linalg.lstsq(fitted[:, :1], (excess - fitted)[:, :1]).solution
    assert fitted.square().mean() > 1e-3 and again.abs().item() < 0.02
