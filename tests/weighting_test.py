"""Weights of the score terms against ratios worked out by hand."""

import pytest
import torch
from torch import nn

from sbi_scoreaug import FixedWeights, GradientNormWeights, UncertaintyWeights
from sbi_scoreaug.score_augmented.weighting import ScoreWeighting


def losses(host=1.0, terms=(1.0, 2.0)):
    """Losses that are linear in phi: gradient norms 5 host, and 5 per term."""
    phi = nn.Parameter(torch.tensor([1.0, 1.0]))
    direction = torch.tensor([3.0, 4.0])
    host_loss = host * (direction @ phi)
    ell = torch.stack([a * (direction @ phi) for a in terms])
    return host_loss, ell, [phi]


def test_gradient_norm_weights_are_the_ratio_of_the_norms():
    w = GradientNormWeights().weights(*losses(host=2.0, terms=(1.0, 8.0)))
    assert w.tolist() == pytest.approx([2.0, 0.25])
    assert not w.requires_grad


def test_gradient_norms_run_over_all_parameters_also_unused_ones():
    host_loss, ell, parameters = losses()
    unused = nn.Parameter(torch.zeros(3))
    w = GradientNormWeights().weights(host_loss, ell, [*parameters, unused])
    assert w.tolist() == pytest.approx([1.0, 0.5])


def test_gradient_norms_are_measured_every_so_many_calls_and_smoothed():
    rule = GradientNormWeights(every=3, decay=0.5)
    first = rule.weights(*losses(host=1.0, terms=(1.0,)))
    kept = [rule.weights(*losses(host=4.0, terms=(1.0,))) for _ in range(2)]
    smoothed = rule.weights(*losses(host=4.0, terms=(1.0,)))
    assert first.item() == pytest.approx(1.0)
    assert [w.item() for w in kept] == pytest.approx([1.0, 1.0])
    assert smoothed.item() == pytest.approx(2.0)  # geometric mean of 1 and 4


def test_weights_stay_within_their_bounds():
    rule = GradientNormWeights(bounds=(0.1, 10.0))
    w = rule.weights(*losses(host=1.0, terms=(1e-6, 1e6)))
    assert w.tolist() == pytest.approx([10.0, 0.1])


def test_the_graph_survives_the_measurement():
    host_loss, ell, (phi,) = losses()
    GradientNormWeights().weights(host_loss, ell, [phi])
    (host_loss + ell.sum()).backward()
    assert phi.grad.tolist() == pytest.approx([12.0, 16.0])


def test_uncertainty_weights_are_half_the_inverse_loss():
    w = UncertaintyWeights().weights(torch.tensor(1.0), torch.tensor([1.0, 0.2]), [])
    assert w.tolist() == pytest.approx([0.5, 2.5])


def test_uncertainty_weights_forget_slowly_and_are_bounded():
    rule = UncertaintyWeights(decay=0.9)
    rule.weights(torch.tensor(1.0), torch.tensor([0.5]), [])
    w = rule.weights(torch.tensor(1.0), torch.tensor([0.05]), [])
    assert w.item() == pytest.approx(10**0.1, rel=1e-4)
    fresh = UncertaintyWeights()
    w = fresh.weights(torch.tensor(1.0), torch.tensor([1e-9]), [])
    assert w.item() == pytest.approx(10.0)


@pytest.mark.parametrize(
    "rule", [GradientNormWeights(every=1, decay=0.0), UncertaintyWeights(decay=0.0)]
)
def test_a_batch_without_known_component_does_not_move_its_weight(rule):
    host_loss, ell, parameters = losses(terms=(1.0, 1.0))
    before = rule.weights(host_loss, ell, parameters)
    host_loss, ell, parameters = losses(terms=(1.0, 0.0))
    after = rule.weights(host_loss, ell, parameters)
    assert after[1].item() == pytest.approx(before[1].item())


def test_fixed_weights_are_one_number_or_one_a_parameter():
    ell = torch.ones(3)
    assert FixedWeights(0.5).weights(ell.sum(), ell, []).tolist() == [0.5] * 3
    per_parameter = FixedWeights(torch.tensor([1.0, 2.0, 0.0]))
    assert per_parameter.weights(ell.sum(), ell, []).tolist() == [1.0, 2.0, 0.0]


def test_the_protocol_is_the_method_weights():
    class Own:
        def weights(self, host_loss, score_losses, parameters):
            return torch.ones_like(score_losses)

    assert isinstance(Own(), ScoreWeighting)
    assert not isinstance(object(), ScoreWeighting)
