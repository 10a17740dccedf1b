"""What ScoreNPE's network is before training, and what it cannot become."""

import pytest
import torch

from sbi_scoreaug.score_npe.layers import LARGEST, bounded
from sbi_scoreaug.score_npe.network import PosteriorScoreNet

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
