r"""Log posterior of a set, by the probability flow of each of its observations.

    log p(theta|x_1..x_n) = sum_j log q(z|x_j) - (n - 1) log p(z)
                            - n int_0^z c(z') . dz' + log |dz/dtheta| + const

with z(theta) the coordinates in which the prior p(z) is N(0, I) and log q(z|x_j) from
the ODE of the diffusion: all observations in one solve, a chunk at a time. The constant
is 0 at n = 1, and the log of the set's evidence ratio beyond. Where the network takes
groups of observations, j runs over groups. c is the average error of the network at
small noise, which is taken off the scores of sets too (`centring`); none at n = 1.

*Base.* At t = 1 the signal is m = .08 of its size: N(0, I) would shift each q by some
.08 of its width, always towards the prior, which is a posterior sd at n = 100. The base
of observation j is the Gaussian that has the network's score there: slope -A_j and
value g_j at z = 0 give N(A_j^-1 g_j, A_j^-1), as in `descent.start`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from zuko.distributions import NormalizingFlow

from sbi_scoreaug._host import (
    OwnPotential,
    VectorFieldBasedPotential,
    ensure_theta_batched,
    within_support,
)
from sbi_scoreaug.errors import InvalidStateError
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator

ROWS_AT_ONCE = 16384


class FactorizedPotential(OwnPotential, VectorFieldBasedPotential):
    """The host's potential, for any number of observations, in the coordinates z."""

    vector_field_estimator: FactorizedScoreEstimator
    guidance_method: str | None = None

    def __init__(
        self,
        vector_field_estimator: FactorizedScoreEstimator,
        prior: Distribution,
        x_o: Tensor | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(vector_field_estimator, prior, None, device)
        self.set_x(x_o)

    def set_x(
        self, x_o: Tensor | None, x_is_iid: bool | None = True, **kwargs: Any
    ) -> None:
        """Set the observations `(n, *shape_x)`, a set unless `x_is_iid` is False.

        Args:
            x_o: The observations.
            x_is_iid: As in the host.
            kwargs: `atol`, `rtol` and `exact` go to the ODE solver; the host's other
                arguments have no meaning here.
        """
        super().set_x(x_o, x_is_iid)
        self.ode_kwargs = {
            k: kwargs[k] for k in ("atol", "rtol", "exact") if k in kwargs
        }

    def __call__(self, theta: Tensor, track_gradients: bool = False) -> Tensor:
        """Return the log posterior `(batch,)`, -inf outside the prior's support.

        Args:
            theta: `(batch, dim)`.
            track_gradients: As in the host.

        Raises:
            InvalidStateError: If no observation has been set.
        """
        if self._x_o is None:
            raise InvalidStateError(
                "x: expected observations to have been set, got none. Call set_x, or "
                "set_default_x on the posterior."
            )
        theta = ensure_theta_batched(torch.as_tensor(theta))
        estimator = self.vector_field_estimator.eval()
        inside = within_support(self.prior, theta)
        with torch.set_grad_enabled(track_gradients):
            # A prior may refuse to be evaluated outside its support.
            centre = estimator.from_z(torch.zeros_like(theta[:1]))
            theta = torch.where(inside[:, None], theta, centre)
            z = estimator.to_z(theta)
            set_of = self._of_a_set if self.x_is_iid else self._of_pairs
            total = estimator.coordinates.log_abs_det(theta) + set_of(z)
            return torch.where(inside, total, -torch.inf)

    def _of_a_set(self, z: Tensor) -> Tensor:
        """Return log p(z|x_1..x_n) `(batch,)` up to a constant."""
        groups = self.vector_field_estimator.group(self.x_o)
        total = torch.zeros_like(z[:, 0])
        if len(groups) > 1:
            estimator = self.vector_field_estimator
            total = -(len(groups) - 1) * estimator.coordinates.log_prior(z)
            total = total - len(groups) * estimator.centre_along(z)
        for x in groups.split(max(1, ROWS_AT_ONCE // len(z))):
            rows = z[:, None].expand(-1, len(x), -1)
            total = total + self._flow(x).log_prob(rows).sum(1)
        return total

    def _of_pairs(self, z: Tensor) -> Tensor:
        """Return log p(z_i|x_i) `(batch,)`."""
        group = self.vector_field_estimator.group
        return self._flow(torch.cat([group(row[None]) for row in self.x_o])).log_prob(z)

    def _flow(self, x: Tensor) -> NormalizingFlow:
        """Return q(z|x_j) for each of x `(n, *condition_shape)`."""
        transform = self.neural_ode(x, **self.ode_kwargs).transform
        return NormalizingFlow(transform, self._base(x))

    @torch.no_grad()
    def _base(self, x: Tensor) -> MultivariateNormal:
        """Return the Gaussians `(len(x), dim)` with the network's scores at t = 1."""
        estimator = self.vector_field_estimator
        unit = torch.eye(estimator.input_shape.numel()).to(x)
        at = torch.cat([torch.zeros_like(unit[:1]), unit, -unit])[:, None]
        time = torch.tensor(estimator.t_max).to(x)
        value, above, below = estimator(at, x[None], time).split([1, *[len(unit)] * 2])
        precision = ((below - above) / 2).movedim(0, -1)
        precision = (precision + precision.mT) / 2
        size, basis = torch.linalg.eigh(precision)
        precision = basis * size.clamp(min=0.5)[:, None] @ basis.mT
        mean = torch.linalg.solve(precision, value[0])
        return MultivariateNormal(mean, precision_matrix=precision)
