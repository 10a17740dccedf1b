r"""Log posterior of a set, by the probability flow of each of its observations.

    log p(theta|x_1..x_n) = sum_j log q(z|x_j) - (n - 1) log N(z; 0, I)
                            + log |dz/dtheta| + const

with z(theta) the coordinates in which the prior is N(0, I) and log q(z|x_j) from the
ODE of the diffusion: all observations in one solve, a chunk at a time. The constant is
0 at n = 1, and the log of the set's evidence ratio beyond. Where the network takes
groups of observations, j runs over groups.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

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
            z = estimator.to_z(theta)
            groups = estimator.group(self.x_o)
            n = len(groups)
            log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
            total = estimator.coordinates.log_abs_det(theta) - (n - 1) * log_normal
            for x in groups.split(max(1, ROWS_AT_ONCE // len(z))):
                flow = self.neural_ode(x, **self.ode_kwargs)
                total = total + flow.log_prob(z[:, None].expand(-1, len(x), -1)).sum(1)
            return torch.where(inside, total, -torch.inf)
