"""What sets, masks and priors ScoreNPE refuses, before any sampling."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MultivariateNormal, Poisson

from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, InvalidTypeError
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.samplers import require_sampler
from sbi_scoreaug.score_npe.sets import as_set, as_sets

SHAPE = torch.Size([2])
NAN_IN_ONE = torch.zeros(2, 3, 2).index_fill(1, torch.tensor([1]), torch.nan)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(0, 2), InvalidInputError, "at least one observation"),
        (torch.zeros(3, 3), InvalidInputError, r"expected a set \(n, 2\)"),
        (torch.zeros(3, 1, 2), InvalidInputError, "sample_batched"),
        (torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]), InvalidInputError, r"\[1\]"),
        ([[0.0, 1.0]], InvalidTypeError, "got list"),
        (None, InvalidTypeError, "got NoneType"),
    ],
)
def test_sets(x, error, message):
    with pytest.raises(error, match=message):
        as_set(x, SHAPE)


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        ([torch.zeros(1, 2), torch.zeros(2, 2)], None, InvalidTypeError, "give a mask"),
        (torch.zeros(2, 3, 3), None, InvalidInputError, r"got shape \(2, 3, 3\)"),
        (torch.zeros(1, 2, 3, 2), None, InvalidInputError, "expected observations"),
        (torch.zeros(0, 3, 2), None, InvalidInputError, "expected observations"),
        (torch.zeros(2, 0, 2), None, InvalidInputError, "at least one observation"),
        (NAN_IN_ONE, None, InvalidInputError, r"rows \[1\]"),
        (NAN_IN_ONE, torch.ones(2, 3).bool(), InvalidInputError, r"rows \[1\]"),
        (torch.zeros(2, 3, 2), torch.ones(3, 2), InvalidInputError, "mask: expected"),
        (torch.zeros(2, 2), torch.ones(2).bool(), InvalidInputError, "mask: expected"),
        (torch.zeros(2, 3, 2), torch.eye(3)[:2] * 0, InvalidInputError, r"\[0, 1\]"),
        (torch.zeros(2, 3, 2), torch.rand(2, 3), InvalidTypeError, "booleans"),
        (torch.zeros(2, 3, 2), [[True]], InvalidTypeError, "booleans, got list"),
    ],
)
def test_several_sets(x, mask, error, message):
    with pytest.raises(error, match=message):
        as_sets(x, mask, SHAPE)


def test_good_sets_are_taken_apart():
    assert [len(s) for s in as_sets(torch.zeros(3, 2), None, SHAPE)] == [1, 1, 1]
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    assert [len(s) for s in as_sets(NAN_IN_ONE, mask, SHAPE)] == [2, 1]
    assert as_set(torch.zeros(2), SHAPE).shape == (1, 2)


@pytest.mark.parametrize("name", ["nuts", None, 3])
def test_unknown_samplers(name):
    with pytest.raises(InvalidInputError, match="'auto', 'gauss', .*'sde', 'ode'"):
        require_sampler(name)


class WithoutDensity:
    def sample(self, shape=()):
        return torch.zeros(*shape, 2)


class OnASphere(WithoutDensity):
    support = None

    def log_prob(self, theta):
        return torch.zeros(theta.shape[:-1])


@pytest.mark.parametrize(
    ("prior", "error"),
    [
        (WithoutDensity(), InvalidTypeError),
        (None, InvalidTypeError),
        (Independent(Poisson(torch.ones(2)), 1), InvalidInputError),
        (Categorical(torch.ones(3)), InvalidInputError),
        (OnASphere(), InvalidInputError),
    ],
)
def test_priors_without_a_usable_transform(prior, error):
    with pytest.raises(error, match="prior"):
        ScoreNPE(prior, show_progress_bars=False)


def test_particles_are_replaced_and_counted_or_refused():
    diagnostics = SamplerDiagnostics("auto", 1)
    theta = torch.randn(10, 2)
    theta[:3, 0] = torch.nan
    found = diagnostics.replace_non_finite(theta)
    assert found.isfinite().all() and diagnostics.num_replaced == 3
    assert torch.equal(found[3:], theta[3:])
    assert torch.isin(found[:3], theta[3:]).all()
    theta[:6] = torch.inf
    with pytest.raises(InvalidStateError, match="6 of 10"):
        diagnostics.replace_non_finite(theta)


def test_nothing_is_stored_of_bad_sets():
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    trainer = ScoreNPE(prior, max_set_size=3, show_progress_bars=False)
    with pytest.raises(InvalidInputError, match="max_set_size=3"):
        trainer.append_simulations(torch.zeros(5, 2), torch.zeros(5, 2, 2))
    assert not trainer._theta_roundwise
