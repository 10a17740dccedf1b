r"""The functions of the score check, and its statistic.

Test j of component k averages g s_k + h, where g = phi(theta, x) w(theta) and
h = phi (d_k w + w d_k log p(theta)) + w d_k phi; see `check` for the identity.

*Functions w.* Let (l, h) be the range of theta_k under the prior, m and c its centre
and scale (quantiles). w is A(theta_k - l) A(h - theta_k), A(r) = r/(r + c), A = 1 at
an infinite end; or this times u = tanh((theta_k - m)/c), against errors whose size
changes with theta_k. *Functions phi.* 1; f_k(x), a regression of u on features of x
(cross-fitted: a row's own theta has no part in its f_k); its residual f_k - u, which
is nearly proportional to s_k where f_k is efficient and hence the sharpest; f_k^2; the
mean and the energy of x. All are bounded by tanh: heavy tails of x do no harm.

*Level.* z is corrected for skewness (Hall 1992) where this brings it nearer to zero:
scores of scale parameters are skew, and the plain t-statistic alarms too often then.
The threshold is Bonferroni's over all tests, at a total level of 1 in 500.

Reference: Hall, 1992, On the removal of skewness by transformation, JRSS B 54.
"""

import math

import torch
from scipy.stats import t as student_t
from torch import Tensor

MIN_ROWS = 50  # Below, the normal approximation is worth nothing.
LEVEL = 0.002
NAMES = tuple(
    f"{phi} {w}"
    for phi in (
        "constant",
        "residual of fit",
        "fit of theta",
        "fit squared",
        "mean of x",
        "energy of x",
    )
    for w in ("level", "slope")
)


class WeightFunctions:
    """The functions w, times 1 (level) and tanh (slope), and h = d_k w + w d_k log p.

    Both `(2, num_simulations, dim_theta)`.
    """

    def __init__(
        self,
        theta: Tensor,
        centre: Tensor,
        scale: Tensor,
        bounds: tuple[Tensor, Tensor],
        gradient: Tensor,
    ) -> None:
        self.theta, self.bounds, self.gradient = theta, bounds, gradient
        above, below = theta - bounds[0], bounds[1] - theta
        # A(r) = r/(r + c) = 1 - q, A' = q^2/c, q = c/(r + c): q = 0 at infinity.
        q_above, q_below = scale / (above + scale), scale / (below + scale)
        level = (1 - q_above) * (1 - q_below)
        d_level = (q_above**2 * (1 - q_below) - q_below**2 * (1 - q_above)) / scale
        self.tilt = ((theta - centre) / scale).tanh()
        self.d_tilt = (1 - self.tilt**2) / scale
        d_slope = d_level * self.tilt + level * self.d_tilt
        self.w = torch.stack([level, level * self.tilt])
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        self.h = torch.stack([d_level, d_slope]) + self.w * gradient


class TestFunctions:
    """All tests at once: test j of component k averages g s_k + h over the rows.

    g = phi w and h = phi (d_k w + w d_k log p) + w d_k phi, both
    `(num_tests, num_simulations, dim_theta)`.
    """

    def __init__(self, weights: WeightFunctions, x: Tensor) -> None:
        self.weights = weights
        features = _standardise(_features(x))
        fit = _cross_fit(features, weights.tilt)
        residual = fit - weights.tilt
        scale = centre_and_scale(residual)[1]
        residual = (residual / scale).tanh()
        d_residual = -(1 - residual**2) * weights.d_tilt / scale
        mean, energy = (features[:, [j]].tanh().expand_as(fit) for j in (0, 1))
        fit = _standardise(fit).tanh()
        phi = torch.stack([residual, fit, fit.square(), mean, energy])
        phi = phi - phi.mean(1, keepdim=True)
        phi = torch.cat([torch.ones_like(phi[:1]), phi])[:, None]
        d_phi = torch.zeros_like(phi)
        d_phi[1, 0] = d_residual
        self.g = (phi * weights.w).flatten(0, 1)
        self.h = (phi * weights.h + d_phi * weights.w).flatten(0, 1)

    def z(self, score: Tensor, mask: Tensor) -> Tensor:
        """The statistics of all tests for this score, `(num_tests, dim_theta)`."""
        return z_statistic(self.g * torch.where(mask, score, 0.0) + self.h, mask)


def z_statistic(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over standard error along the rows, corrected for skewness."""
    n = mask.sum(0).clamp_min(2)
    mean = (values * mask).sum(1) / n
    centred = (values - mean[:, None]) * mask
    sd = (centred.square().sum(1) / (n - 1)).sqrt()
    # Rounding leaves a constant with a tiny spread, which is no evidence.
    known = sd > 1e-9 * (mean.abs() + values.abs().amax(1))
    sd = torch.where(known, sd, 1.0)
    t = torch.where(known, mean / sd * n.sqrt(), 0.0)
    a = (centred / sd[:, None]).pow(3).sum(1) / n / n.sqrt()
    corrected = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    # Only ever towards zero: heavy tails make the skewness itself uncertain.
    return torch.where(known & (corrected.abs() < t.abs()), corrected, t)


def alarm_threshold(mask: Tensor) -> float:
    """Two-sided, Bonferroni over all tests, Student's t of the smallest sample."""
    counts = mask.sum(0)
    num_tests = len(NAMES) * max(int((counts > 0).sum()), 1)
    smallest = int(counts[counts > 0].min()) if counts.any() else MIN_ROWS
    return float(student_t.isf(LEVEL / 2 / num_tests, smallest - 1))


def centre_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Column medians and half the central 68 %: one wild row moves neither."""
    values = values[:: math.ceil(len(values) / 500)]
    probabilities = torch.tensor([0.16, 0.5, 0.84], dtype=values.dtype)
    lower, centre, upper = torch.quantile(values, probabilities, dim=0)
    scale = torch.where(upper > lower, (upper - lower) / 2, values.std(0))
    return centre, scale.clamp_min(1e-30)


def _standardise(values: Tensor) -> Tensor:
    """Columns of zero mean and unit variance; zero if constant."""
    centred = values - values.mean(0)
    scale = centred.square().mean(0).sqrt()
    return torch.where(scale > 1e-12, centred / scale, torch.zeros_like(centred))


def _features(x: Tensor) -> Tensor:
    """Cheap features of x, `(num_simulations, num_features)`, mean and energy first."""
    x = x.float().reshape(len(x), -1) if x.ndim < 3 else x.float()
    centre, scale = centre_and_scale(x)
    pixels = ((x - centre) / scale).clamp_(-10, 10)
    entries = pixels.reshape(len(x), -1)
    steps = pixels.diff(dim=-1).reshape(len(x), -1)
    energies = [
        (e.square().mean(1, keepdim=True) + 1e-6).log()
        for e in (entries, steps)
        if e.shape[1]
    ]
    generator = torch.Generator().manual_seed(0)
    dim_x = entries.shape[1]
    projections = torch.randn(dim_x, 8, generator=generator) / math.sqrt(dim_x)
    linear = entries @ projections
    if dim_x <= 16:
        linear = torch.cat([entries, linear], 1)
    mean = entries.mean(1, keepdim=True)
    return torch.cat([mean, *energies, linear, linear.square()], 1).double()


def _cross_fit(features: Tensor, target: Tensor, num_folds: int = 4) -> Tensor:
    """Ridge regression of the target, without the row's own fold."""
    centre, target = target.mean(0), target - target.mean(0)
    fold = torch.arange(len(target)) % num_folds
    fit = torch.empty_like(target)
    ridge = features.shape[1] * torch.eye(features.shape[1], dtype=features.dtype)
    for f in range(num_folds):
        f_train, t_train = features[fold != f], target[fold != f]
        coefficients = torch.linalg.solve(
            f_train.T @ f_train + ridge, f_train.T @ t_train
        )
        fit[fold == f] = features[fold == f] @ coefficients
    return centre + fit
