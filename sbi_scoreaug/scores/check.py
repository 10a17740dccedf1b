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

*Assumptions.* theta is drawn from the prior: not from a posterior, not selected. x may
be selected (failed simulations dropped), since 1[x is valid] is a function of x; NaN
components of a score may not depend on the other factors. p(x|theta) is
differentiable, and its support does not move with theta. Joint scores pass, and so do
all unbiased noisy ones: E[t|theta, x] = s is enough.

References: Stein, Diaconis, Holmes & Reinert, 2004, Use of exchangeable pairs in the
analysis of simulations (the identity); Hall, 1992, On the removal of skewness by
transformation, JRSS B 54 (the correction).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student_t
from torch import Tensor
from torch.distributions import biject_to

from sbi_scoreaug.errors import InvalidInputError

MIN_ROWS = 50  # Below, the normal approximation is worth nothing.
MAX_ROWS = 20_000  # Above, more rows only cost time.
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


@dataclass(frozen=True)
class ScoreCheck:
    """The outcome of `check_score`.

    Attributes:
        z: The statistics, `(num_tests, dim_theta)`, NaN where nothing was tested.
        names: What each test multiplies: a function of x, and level or slope in theta.
        threshold: A larger |z| is an alarm.
        num_rows: Simulations that were used.
        cause: The likely cause of the alarm, None without alarm.
        notes: What could not be checked, and why.
    """

    z: Tensor
    names: tuple[str, ...]
    threshold: float
    num_rows: int
    cause: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether no test raised an alarm; also True if nothing could be tested."""
        return not bool((self.z.abs() > self.threshold).any())

    @property
    def component(self) -> int | None:
        """The component with the largest |z|, None if nothing was tested."""
        size = self.z.abs().nan_to_num(-1.0)
        return int(size.amax(0).argmax()) if (size >= 0).any() else None

    def __str__(self) -> str:
        lines = [f"score check on {self.num_rows} simulations: "]
        if self.component is None:
            lines[0] += "nothing tested"
        else:
            k = self.component
            j = int(self.z[:, k].abs().nan_to_num(-1.0).argmax())
            lines[0] += "passed" if self.passed else "FAILED"
            lines[0] += (
                f", largest |z| = {float(self.z[j, k].abs()):.1f} (component {k}, "
                f"{self.names[j]}), threshold {self.threshold:.1f}"
            )
        if self.cause:
            lines.append(f"likely cause: {self.cause}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def plot(self) -> tuple[Any, Any]:
        """Draw z per test and component; alarms are white and bold.

        Returns:
            The matplotlib figure and axes.
        """
        from matplotlib import pyplot as plt

        num_tests, dim_theta = self.z.shape
        fig, ax = plt.subplots(figsize=(3.5 + 0.7 * dim_theta, 1.2 + 0.35 * num_tests))
        limit = 2 * self.threshold
        image = ax.imshow(
            self.z.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto"
        )
        for j in range(num_tests):
            for k in range(dim_theta):
                value = float(self.z[j, k])
                style: dict[str, Any] = {"ha": "center", "va": "center"}
                if abs(value) > self.threshold:  # On a dark cell.
                    style |= {"weight": "bold", "color": "white"}
                ax.text(k, j, f"{value:.1f}", **style)
        ax.set_xticks(range(dim_theta))
        ax.set_yticks(range(num_tests), self.names[:num_tests])
        ax.set_xlabel("component of the score")
        ax.set_title("passed" if self.passed else "failed")
        bar = fig.colorbar(image, ax=ax, label="z")
        bar.set_ticks([-limit, -self.threshold, 0, self.threshold, limit])
        fig.tight_layout()
        return fig, ax


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
        than 50 usable simulations, no usable prior, theta not from the prior.

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

    def untested(note: str) -> ScoreCheck:
        z = torch.full((len(NAMES), theta.shape[1]), torch.nan)
        return ScoreCheck(z, NAMES, _threshold(z.isnan()), num_rows, notes=(note,))

    if prior is None:
        return untested("no prior was given")
    if num_rows < MIN_ROWS:
        return untested(f"{num_rows} usable simulations, {MIN_ROWS} are needed")
    try:
        bounds = _support(prior, theta.shape[1])
        if not ((theta >= bounds[0]) & (theta <= bounds[1])).all():
            return untested("theta lies outside the prior's support: not drawn from it")
        gradient = _log_prior_gradient(prior, theta)
    except Exception as error:  # A prior is foreign code: whatever it raises.
        return untested(f"no use of the prior ({type(error).__name__}: {error})")

    theta, score = theta.double(), score.double()
    centre, scale = _centre_and_scale(theta)
    known = gradient.isfinite() & (theta.std(0) > 0)
    # phi = 1, s = 0: a statement on theta and the prior alone, x valid or not.
    weights = _Weights(theta, centre, scale, bounds, gradient)
    if (_z(weights.h, known).abs() > _threshold(known)).any():
        return untested("theta does not look like draws from the prior")

    theta, score, gradient, mask = (
        v[valid] for v in (theta, score, gradient, known & score.isfinite())
    )
    mask &= mask.sum(0) >= MIN_ROWS
    weights = _Weights(theta, centre, scale, bounds, gradient)
    tests = _Tests(weights, x[valid])
    threshold = _threshold(mask)
    z = tests.z(score, mask)
    z[:, ~mask.any(0)] = torch.nan
    few = [str(k) for k in range(len(z[0])) if not mask[:, k].any()]
    note = f"too few known scores, or constant theta, in components {', '.join(few)}"
    failed = bool((z.abs() > threshold).any())
    cause = _Diagnosis(tests, score, mask, threshold).cause() if failed else None
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


def _threshold(mask: Tensor) -> float:
    """Two-sided, Bonferroni over all tests, Student's t of the smallest sample."""
    counts = mask.sum(0)
    num_tests = len(NAMES) * max(int((counts > 0).sum()), 1)
    smallest = int(counts[counts > 0].min()) if counts.any() else MIN_ROWS
    return float(student_t.isf(LEVEL / 2 / num_tests, smallest - 1))


# --- The prior -------------------------------------------------------------------


def _device(prior: Any) -> torch.device:
    """Where the prior lives, without drawing from it."""
    try:
        return prior.mean.device
    except (AttributeError, NotImplementedError):
        return torch.device("cpu")


def _support(prior: Any, dim_theta: int) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of every component, infinite where there is none."""
    support = prior.support
    if type(support).__name__ == "MixtureSameFamilyConstraint":
        support = support.base_constraint
    # Where the bijection from R^d sends the two infinities, there are the ends.
    transform = biject_to(support)
    infinity = torch.full((1, dim_theta), torch.inf, device=_device(prior))
    if transform.forward_shape(infinity.shape) != infinity.shape:
        raise ValueError(f"the support {support} is no product of intervals")
    ends = [transform(end).detach().cpu().double()[0] for end in (-infinity, infinity)]
    lower, upper = torch.minimum(*ends), torch.maximum(*ends)
    if lower.isnan().any() or upper.isnan().any():
        raise ValueError(f"the support {support} is no product of intervals")
    return lower, upper


def _log_prior_gradient(prior: Any, theta: Tensor) -> Tensor:
    """Rows of grad log p(theta); zero for a density that is constant."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = theta.clone().to(_device(prior)).requires_grad_()
        log_prob = prior.log_prob(leaf)
        if not log_prob.requires_grad:
            if log_prob.shape == theta.shape[:1] and bool(log_prob.std() < 1e-6):
                return torch.zeros_like(theta).double()
            raise ValueError("prior.log_prob has no gradient")
        (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
    return gradient.cpu().double()


# --- The test functions ----------------------------------------------------------


def _centre_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
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
    centre, scale = _centre_and_scale(x)
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


class _Weights:
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


class _Tests:
    """All tests at once: test j of component k averages g s_k + h over the rows.

    g = phi w and h = phi (d_k w + w d_k log p) + w d_k phi, both
    `(num_tests, num_simulations, dim_theta)`.
    """

    def __init__(self, weights: _Weights, x: Tensor) -> None:
        self.weights = weights
        features = _standardise(_features(x))
        fit = _cross_fit(features, weights.tilt)
        residual = fit - weights.tilt
        scale = _centre_and_scale(residual)[1]
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
        return _z(self.g * torch.where(mask, score, 0.0) + self.h, mask)


def _z(values: Tensor, mask: Tensor) -> Tensor:
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


# --- The likely cause ------------------------------------------------------------


class _Diagnosis:
    """Finds the repair of the score under which the tests pass."""

    def __init__(
        self, tests: _Tests, score: Tensor, mask: Tensor, threshold: float
    ) -> None:
        self.tests, self.score, self.mask = tests, score, mask
        self.threshold = threshold
        self.failing = self._failing(tests.z(score, mask)).nonzero().squeeze(1).tolist()

    def _failing(self, z: Tensor) -> Tensor:
        return z.abs().amax(0) > self.threshold

    def _repaired(self, score: Tensor) -> Tensor:
        """Which components pass, and not for noise: E[phi w s] must be clear."""
        mask = self.mask & score.isfinite()
        return self._related(score) & ~self._failing(self.tests.z(score, mask))

    def _related(self, score: Tensor) -> Tensor:
        """Which components have a clear E[phi w s]: true scores know their x."""
        mask = self.mask & score.isfinite()
        z = _z(self.tests.g * torch.where(mask, score, 0.0), mask)
        return self._failing(z[2:])

    def cause(self) -> str:
        """Return the likely cause, from the simplest repair to the vaguest."""
        joint = self._columns() or self._prior_included() or self._rows()
        if joint:
            return joint
        found: dict[str, list[int]] = {}
        for k in self.failing:
            found.setdefault(self._component(k), []).append(k)
        return "; ".join(
            f"{label} ({'components' if len(ks) > 1 else 'component'} "
            f"{', '.join(map(str, ks))})"
            for label, ks in found.items()
        )

    def _columns(self, max_dim: int = 16) -> str | None:
        """Whether a permutation of the columns passes."""
        dim_theta = self.score.shape[1]
        if dim_theta > max_dim or not bool(self.mask.any(0).all()):
            return None
        cost = torch.empty(dim_theta, dim_theta)
        for j in range(dim_theta):
            column = self.score[:, [j]].expand_as(self.score)
            z = self.tests.z(column, self.mask & column.isfinite())
            cost[:, j] = z.square().sum(0)
        order = linear_sum_assignment(cost.numpy())[1]
        moved = [k for k in range(dim_theta) if order[k] != k]
        if not moved or not self._repaired(self.score[:, order])[moved].all():
            return None
        if len(moved) == 2:
            return f"columns {moved[0]} and {moved[1]} are swapped"
        return "the columns are permuted: " + ", ".join(
            f"component {k} stands in column {order[k]}" for k in moved
        )

    def _prior_included(self) -> str | None:
        """Whether this is the score of the posterior."""
        if not self.tests.weights.gradient.any():
            return None
        if not self._repaired(self.score - self.tests.weights.gradient)[
            self.failing
        ].all():
            return None
        return "the gradient of the log prior is included: give the likelihood's alone"

    def _rows(self) -> str | None:
        """Whether the scores know nothing of the x beside them."""
        if self._related(self.score)[self.failing].any():
            return None
        flipped = self.tests.z(-self.score, self.mask)
        if not self._failing(flipped).any():  # Right, but for the sign, and few rows.
            return None
        return (
            "the rows are not aligned: the scores have no relation to theta and x "
            "(shuffled, of other simulations, or constant)"
        )

    def _component(self, k: int) -> str:
        """Return the repair of component k that fits best among those that pass."""
        scale = self._scale(k)
        sign = "the sign is flipped and it is " if scale < 0 else "it is "
        # A price as in Akaike's criterion, but higher: the usual cause comes first.
        candidates = [
            ("the sign is flipped", -1.0, 0.0),
            (f"{sign}scaled by about {abs(1 / scale):.2g}", scale, 15.0),
        ]
        candidates += [
            (f"it is the derivative with respect to {name}, not theta", factor, 20.0)
            for name, factor in self._parametrisations(k).items()
        ]
        best, lowest = (
            "its size changes with theta: another parametrisation, or a wrong formula",
            math.inf,
        )
        for label, factor, price in candidates:
            repaired = self.score.clone()
            repaired[:, k] *= factor
            z = self.tests.z(repaired, self.mask)[:, k]
            misfit = float(z.square().sum()) + price
            passes = bool(z.abs().max() <= self.threshold) and (
                label == "the sign is flipped" or bool(self._related(repaired)[k])
            )
            if passes and misfit < lowest:
                best, lowest = label, misfit
        return best

    def _scale(self, k: int, num_steps: int = 5) -> float:
        """The factor a for which the means of a g s + h are nearest to zero."""
        rows = self.mask[:, k]
        gs = self.tests.g[:, rows, k] * self.score[rows, k]
        h = self.tests.h[:, rows, k]
        scale = 1.0
        for _ in range(num_steps):
            weight = 1 / (scale * gs + h).var(1).clamp_min(1e-30)
            moment = gs.mean(1)
            curvature = float((weight * moment.square()).sum())
            scale = -float((weight * moment * h.mean(1)).sum()) / max(curvature, 1e-30)
        return scale or 1e-30

    def _parametrisations(self, k: int) -> dict[str, Tensor]:
        """The derivative d phi / d theta_k of the usual coordinates phi."""
        theta, (lower, upper) = (
            self.tests.weights.theta[:, k],
            self.tests.weights.bounds,
        )
        jacobians = {"exp(theta)": theta.exp(), "theta^2": 2 * theta}
        if (theta > 0).all():
            jacobians["log(theta)"] = 1 / theta
            jacobians["sqrt(theta)"] = 0.5 / theta.sqrt()
        if math.isfinite(float(upper[k] - lower[k])):
            above, below = theta - lower[k], upper[k] - theta
            jacobians["logit(theta)"] = 1 / above + 1 / below
        return {name: j for name, j in jacobians.items() if j.isfinite().all()}
