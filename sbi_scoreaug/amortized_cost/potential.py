r"""The generalized log posterior as a potential of sbi.

    potential(theta) = -beta sum_j f(theta, x_j) + log p(theta)

over the observations x_1 .. x_n, minus infinity outside the prior's support. With
`x_is_iid=False` parameters and observations are paired row by row, which sbi uses for
`sample_batched` and amortized variational inference. For a distance on sets one
observation is one set `(1, num_trials, dim)`, of any number of trials.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug._host import OwnPotential
from sbi_scoreaug.amortized_cost.estimator import ExpectedCost
from sbi_scoreaug.amortized_cost.target_range import TargetRange
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError


def validate_beta(beta: Any) -> float:
    """Return `beta` as a float.

    Raises:
        InvalidTypeError: It is no number.
        InvalidInputError: It is not positive and finite.
    """
    try:
        value = math.nan if isinstance(beta, bool) else float(beta)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            f"beta: expected a positive number, got {beta!r}. Pass a float, or the "
            "name of a rule to build_posterior(beta=...)."
        ) from error
    if not 0 < value < math.inf:
        raise InvalidInputError(
            f"beta: expected a positive and finite number, got {beta!r}. Larger values "
            "trust the observation more; calibrate_beta finds one."
        )
    return value


class CostBasedPotential(OwnPotential):
    """Potential of a cost network at an inverse temperature.

    Args:
        estimator: A cost network.
        prior: The prior.
        x_o: Observations, see `set_x`.
        beta: Inverse temperature; there is no default.
        target_range: Optional knowledge of which targets are familiar.
        device: Where to evaluate.

    Raises:
        InvalidInputError: `beta` is not positive, or `x_o` does not fit.

    Example:
        >>> from sbi.utils import BoxUniform
        >>> from sbi_scoreaug.amortized_cost import QuadraticCost, resolve_distance
        >>> theta, x = torch.rand(50, 2), torch.randn(50, 3)
        >>> net = QuadraticCost(theta, x, resolve_distance("mse"))
        >>> prior = BoxUniform(torch.zeros(2), torch.ones(2))
        >>> potential = CostBasedPotential(net, prior, x[:1], beta=2.0)
        >>> potential(theta).shape, potential(theta + 1).max().item()
        (torch.Size([50]), -inf)
        >>> potential.beta = 4.0
    """

    def __init__(
        self,
        estimator: ExpectedCost,
        prior: Distribution,
        x_o: Tensor | None = None,
        *,
        beta: float,
        target_range: TargetRange | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.estimator = estimator.eval()
        self.target_range = target_range
        self.beta = beta
        super().__init__(prior, None, device)
        self.set_x(x_o)

    @property
    def beta(self) -> float:
        """Inverse temperature; may be set at any time, without training again."""
        return self._beta

    @beta.setter
    def beta(self, beta: float) -> None:
        self._beta = validate_beta(beta)

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observations `(num_observations, *shape_x)`, or one `(*shape_x)`.

        Args:
            x_o: Observations; None to forget them.
            x_is_iid: Whether they share one parameter, or are paired with parameters.

        Raises:
            InvalidInputError: Another shape, NaN or infinity.
        """
        self._embedded: Tensor | None = None
        super().set_x(None if x_o is None else self.check_x(x_o), x_is_iid)

    def check_x(self, x_o: Any) -> Tensor:
        """Return observations as `(num_observations, *shape_x)`; see `set_x`."""
        shape = tuple(self.estimator.input_shape)
        x_o = torch.as_tensor(x_o, dtype=torch.float32)
        batched = x_o.unsqueeze(0) if x_o.ndim == len(shape) else x_o
        fixed = 1 if self.estimator.on_sets else 0  # the number of trials may vary
        sizes = ("num_trials", *shape[1:]) if fixed else shape
        expected = ", ".join(map(str, sizes))
        if (
            batched.ndim != len(shape) + 1
            or batched.shape[1 + fixed :] != shape[fixed:]
        ):
            raise InvalidInputError(
                f"x_o: expected shape (num_observations, {expected}) as in training, "
                f"got {tuple(x_o.shape)}."
            )
        if len(batched) == 0 or (fixed and batched.shape[1] < 2):
            raise InvalidInputError(
                "x_o: expected at least one observation (and two trials in a set), "
                f"got {tuple(x_o.shape)}."
            )
        if not batched.isfinite().all():
            raise InvalidInputError(
                "x_o: expected finite values, got NaN or infinity. Leave missing "
                "trials of a set out: their number may differ from training."
            )
        return batched

    def to(self, device: str | torch.device) -> CostBasedPotential:
        """Move network, prior and observations; return self."""
        super().to(device)
        self.estimator.to(device)
        self._embedded = None
        return self

    def cost(self, theta: Tensor) -> Tensor:
        """Summed expected cost `(batch,)` at `theta (batch, dim_theta)`."""
        if self._embedded is None:
            with torch.no_grad():
                self._embedded = self.estimator.embed(self.x_o)
        axis = 0 if self.x_is_iid else 1
        embedded = self._embedded.unsqueeze(axis)
        if not self.x_is_iid and len(theta) != len(embedded):
            raise InvalidInputError(
                f"theta: expected as many rows as paired observations "
                f"({len(embedded)}), got {len(theta)}."
            )
        return self.estimator.cost(self.estimator.encode(theta), embedded).sum(dim=1)

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
        """Return the potential `(batch,)` at `theta (batch, dim_theta)`."""
        theta = theta.to(self.device)
        with torch.set_grad_enabled(track_gradients):
            assert self.prior is not None
            log_prior = self.prior.log_prob(theta)
            value = log_prior - self._beta * self.cost(theta)
            return torch.where(log_prior.isneginf(), -torch.inf, value)
