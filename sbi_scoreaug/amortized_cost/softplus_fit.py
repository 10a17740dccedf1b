r"""A start for a positive mean beside control variates, if held-out rows bear it out.

    min_(w, c)  sum_i (y_i - softplus(z_i' w) - c' s_i)^2  +  |w - w_0|^2 + |c|^2,

by Levenberg-Marquardt steps from w_0, c = 0. Where z' w is negative softplus is an
exponential, where it is large a linear function: between them lie most variances.

Squared residuals have heavy tails, and a fit to few of them may be worse than w_0 and
no control. With r what w_0 leaves of rows that a fit has not seen and q what that fit
predicts of it, over five folds, the fit is taken where the squared errors r^2 fall to
(r - q)^2 by more than one standard error of their difference, and else w_0. A part of
the way from one to the other would be worse than both: it bends the exponential.

References: Marquardt (1963), SIAM J. Appl. Math. 11, 431-441; Breiman, Friedman, Olshen
& Stone (1984), Classification and regression trees, on one standard error.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

MAX_STEPS = 30
FOLDS = 5


def start_softplus(
    design: Tensor, beside: Tensor, y: Tensor, origin: Tensor
) -> tuple[Tensor, Tensor]:
    """Return w `(p,)` and c `(q,)` of the fit, or w_0 and 0.

    Args:
        design: z `(num_rows, p)`.
        beside: s `(num_rows, q)`.
        y: `(num_rows,)`.
        origin: w_0 `(p,)`.
    """
    z, s, y, w_0 = design.double(), beside.double(), y.double(), origin.double()
    before, after = softplus(z @ w_0), torch.zeros_like(y)
    for fold in range(FOLDS):
        held_out = torch.arange(len(y)) % FOLDS == fold
        w, c = fit_softplus(z[~held_out], s[~held_out], y[~held_out], w_0)
        after[held_out] = (softplus(z @ w) + s @ c)[held_out]
    gain = (y - before).square() - (y - after).square()
    if gain.mean() <= gain.std() / len(y) ** 0.5:
        return origin, torch.zeros_like(beside[0])
    w, c = fit_softplus(z, s, y, w_0)
    return w.to(origin), c.to(origin)


def fit_softplus(
    design: Tensor, beside: Tensor, y: Tensor, origin: Tensor
) -> tuple[Tensor, Tensor]:
    """Return w and c of the least squares above; all arguments in double precision."""
    p, damping = design.shape[1], 1.0
    start = torch.cat([origin, beside.new_zeros(beside.shape[1])])

    def residual(point: Tensor) -> Tensor:
        return y - softplus(design @ point[:p]) - beside @ point[p:]

    def loss(point: Tensor) -> Tensor:
        return residual(point).square().sum() + (point - start).square().sum()

    found = start
    for _ in range(MAX_STEPS):
        slope = torch.sigmoid(design @ found[:p])[:, None] * design
        jacobian = torch.cat([slope, beside], dim=1)
        gram = jacobian.mT @ jacobian + torch.eye(len(found)).to(jacobian)
        gradient = jacobian.mT @ residual(found) - (found - start)
        step = torch.linalg.solve(gram + damping * gram.diagonal().diag(), gradient)
        better = bool(loss(found + step) < loss(found))
        found = found + step if better else found
        damping *= 0.2 if better else 5.0
    return found[:p], found[p:]
