r"""Are these the scores of these simulations? A z-test from an exact identity.

Under the joint density p(theta) p(x|theta), for the score s = grad_theta
log p(x|theta) and any g(theta, x) that is smooth in theta,

    (g s_k + d_k g + g d_k log p(theta)) p(theta) p(x|theta)
        = d_k [ g p(theta) p(x|theta) ].

Integrated over theta_k, the right side is the boundary value of g p(theta), zero if
g vanishes where the prior is cut off. With g = phi(theta, x) w(theta), then,

    E[ phi (w s_k + d_k w + w d_k log p(theta)) + w d_k phi ] = 0,

and the mean over its standard error is a z-test of component k. g = 1 is the usual
E[s] = 0, which sees neither sign nor scale nor row order: E[phi w s_k] does.

*Functions* w and phi, and the statistic, are in `check_statistics`; what is made of an
alarm in `check_diagnosis`, what is shown in `check_report`.

*Assumptions.* theta is drawn from the prior: not from a posterior, not selected. x may
be selected (failed simulations dropped), since 1[x is valid] is a function of x; NaN
components of a score may not depend on the other factors. p(x|theta) is
differentiable, and its support does not move with theta. Joint scores pass, and so do
all unbiased noisy ones: E[t|theta, x] = s is enough.

Reference: Stein, Diaconis, Holmes & Reinert, 2004, Use of exchangeable pairs in the
analysis of simulations.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.check_diagnosis import likely_cause
from sbi_scoreaug.scores.check_prior import log_prior_gradient, prior_support
from sbi_scoreaug.scores.check_report import ScoreCheck
from sbi_scoreaug.scores.check_statistics import (
    MIN_ROWS,
    NAMES,
    TestFunctions,
    WeightFunctions,
    alarm_threshold,
    centre_and_scale,
    z_statistic,
)

MAX_ROWS = 20_000  # Above, more rows only cost time.


def check_score(theta: Tensor, x: Tensor, score: Tensor, prior: Any) -> ScoreCheck:
    """Test whether score is grad_theta log p(x|theta), up to unbiased noise.

    Sees wrong signs, scales, row orders, column orders and parametrisations. Draws no
    random numbers, so a training run is the same with and without it.

    Args:
        theta: Parameters, `(num_simulations, dim_theta)`, drawn from the prior.
        x: Simulations, `(num_simulations, *shape_x)`. Rows with NaN or infinities are
            left out.
        score: Scores, `(num_simulations, dim_theta)`. Components that are not finite
            are left out.
        prior: The prior of theta, with a `log_prob` that is differentiable (or
            constant, as in a box) and a `support`. Without one (None, or one whose
            edge or gradient is unknown) nothing is tested, and a note says why.

    Returns:
        A `ScoreCheck`. Its `passed` is True also where nothing could be tested: fewer
        than 50 usable simulations, no usable prior, theta not from the prior (then
        `theta_fits_prior` is False).

    Raises:
        InvalidInputError: If theta, x and score do not fit each other.

    Example:
        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> _ = torch.manual_seed(0)
        >>> theta = prior.sample((1000,))
        >>> noise = torch.randn(1000, 2)
        >>> check_score(theta, theta + noise, noise, prior).passed
        True
        >>> print(check_score(theta, theta + noise, -noise, prior).cause)
        the sign is flipped (components 0, 1)
    """
    _require_shapes(theta, x, score)
    rows = _usable_rows(theta)
    theta, x, score = (v.detach().cpu()[rows] for v in (theta, x, score))
    valid = x.reshape(len(x), -1).isfinite().all(1)
    num_rows = int(valid.sum())

    def untested(note: str, fits: bool = True) -> ScoreCheck:
        z = torch.full((len(NAMES), theta.shape[1]), torch.nan)
        threshold = alarm_threshold(z.isnan())
        return ScoreCheck(z, NAMES, threshold, num_rows, None, (note,), fits)

    if prior is None:
        return untested("no prior was given")
    if num_rows < MIN_ROWS:
        return untested(f"{num_rows} usable simulations, {MIN_ROWS} are needed")
    try:
        bounds = prior_support(prior, theta.shape[1])
        if not ((theta >= bounds[0]) & (theta <= bounds[1])).all():
            return untested(
                "theta lies outside the prior's support: not drawn from it", fits=False
            )
        gradient = log_prior_gradient(prior, theta)
    except Exception as error:  # A prior is foreign code: whatever it raises.
        return untested(f"no use of the prior ({type(error).__name__}: {error})")

    theta, score = theta.double(), score.double()
    centre, scale = centre_and_scale(theta)
    known = gradient.isfinite() & (theta.std(0) > 0)
    # phi = 1, s = 0: a statement on theta and the prior alone, x valid or not.
    weights = WeightFunctions(theta, centre, scale, bounds, gradient)
    if (z_statistic(weights.h, known).abs() > alarm_threshold(known)).any():
        return untested("theta does not look like draws from the prior", fits=False)

    theta, score, gradient, mask = (
        v[valid] for v in (theta, score, gradient, known & score.isfinite())
    )
    mask &= mask.sum(0) >= MIN_ROWS
    weights = WeightFunctions(theta, centre, scale, bounds, gradient)
    tests = TestFunctions(weights, x[valid])
    threshold = alarm_threshold(mask)
    z = tests.z(score, mask)
    z[:, ~mask.any(0)] = torch.nan
    few = [str(k) for k in range(len(z[0])) if not mask[:, k].any()]
    note = f"too few known scores, or constant theta, in components {', '.join(few)}"
    failed = bool((z.abs() > threshold).any())
    cause = likely_cause(tests, score, mask, threshold) if failed else None
    notes = (note,) if few else ()
    return ScoreCheck(z.float(), NAMES, threshold, num_rows, cause, notes)


def _require_shapes(theta: Tensor, x: Tensor, score: Tensor) -> None:
    if theta.ndim != 2 or score.shape != theta.shape or len(x) != len(theta):
        raise InvalidInputError(
            "theta and score must be (num_simulations, dim_theta) and x "
            f"(num_simulations, *shape_x), got theta {tuple(theta.shape)}, score "
            f"{tuple(score.shape)}, x {tuple(x.shape)}. Give one row a simulation."
        )


def _usable_rows(theta: Tensor) -> Tensor:
    """Indices of finite theta, thinned evenly where there are very many."""
    rows = theta.detach().cpu().isfinite().all(1).nonzero().squeeze(1)
    return rows[:: math.ceil(len(rows) / MAX_ROWS) or 1]
