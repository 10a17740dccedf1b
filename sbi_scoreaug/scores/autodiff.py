r"""Scores by automatic differentiation, and scores in other coordinates.

*From a likelihood.* The likelihood score is s(theta, x) = grad_theta log p(x|theta).
Rows of a batch do not interact, so the gradient of the *summed* log-likelihood
holds every row's score, at the cost of one backward pass.

*In other coordinates.* Let phi = T(theta) be a bijection with Jacobian
J = d phi / d theta. The density of x does not change, p(x|phi) = p(x|theta), so by
the chain rule

    s_phi = grad_phi log p(x | T^-1(phi)) = (d theta / d phi)' s_theta = J^-T s_theta

This is the product of s_theta with the Jacobian of T^-1: one backward pass through
the inverse, and neither J nor a linear solve is formed. There is *no* log-det term,
in contrast to the posterior score: p(phi|x) is a density of phi and picks up
grad_phi log |d theta / d phi|, p(x|phi) is a density of x and does not.

Assumptions: T is differentiable with a differentiable inverse at every theta that is
given; log p(x|theta) is differentiable in theta, and written in torch.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError


class LogProbScore:
    """The score of a log-likelihood by autodiff; made by `score_from_log_prob`."""

    def __init__(self, log_prob: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.log_prob = log_prob

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return grad_theta log p(x|theta), one row for every row of the batch.

        Args:
            theta: Parameters, `(batch, dim_theta)`.
            x: Simulations, `(batch, *shape_x)`.

        Returns:
            The score, `(batch, dim_theta)`, detached, of theta's dtype and device.

        Raises:
            InvalidTypeError: If theta is not floating point, or if `log_prob`
                returns something else than a tensor.
            InvalidInputError: If `log_prob` returns another shape than `(batch,)`
                or a value without gradient with respect to theta.
        """
        if not theta.is_floating_point():
            raise InvalidTypeError(
                f"theta must be of a floating point dtype to have a gradient, got "
                f"{theta.dtype}. Pass theta.float()."
            )
        # The caller may be a host that validates under no_grad or inference_mode.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            log_prob = self.log_prob(leaf, x.clone() if x.is_inference() else x)
            _require_log_prob(log_prob, leaf)
            (score,) = torch.autograd.grad(log_prob.sum(), leaf, allow_unused=True)
        if score is None:
            raise InvalidInputError(_NO_GRADIENT)
        return score


_NO_GRADIENT = (
    "log_prob must depend on theta through torch operations, got a value without "
    "gradient with respect to theta. Remove detach(), numpy and torch.no_grad() from "
    "log_prob, or give the score itself as a method `score(theta, x)`."
)


def _require_log_prob(log_prob: Tensor, theta: Tensor) -> None:
    """Raise unless log_prob is `(batch,)` and hangs on a graph."""
    if not isinstance(log_prob, Tensor):
        raise InvalidTypeError(
            f"log_prob must return a torch Tensor of shape (batch,), got "
            f"{type(log_prob).__name__}. Write log_prob in torch."
        )
    if log_prob.shape != theta.shape[:1]:
        raise InvalidInputError(
            f"log_prob must return one value per row, shape {tuple(theta.shape[:1])}, "
            f"got {tuple(log_prob.shape)}. Sum the log-density over the dimensions "
            "of x, and over nothing else."
        )
    if not log_prob.requires_grad:
        raise InvalidInputError(_NO_GRADIENT)


def score_from_log_prob(
    log_prob: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """Turn a log-likelihood into the function that returns its score.

    Args:
        log_prob: A function of theta `(batch, dim_theta)` and x `(batch, *shape_x)`
            that returns log p(x|theta), `(batch,)`, written in torch.

    Returns:
        A function of (theta, x) that returns the score, `(batch, dim_theta)`. It
        works under `torch.no_grad`, and can be pickled where `log_prob` can.

    Raises:
        InvalidTypeError: If `log_prob` cannot be called. What it returns is checked
            in every call, see `LogProbScore`.

    Example:
        >>> import torch
        >>> score = score_from_log_prob(lambda t, x: -0.5 * (x - t).square().sum(1))
        >>> score(torch.zeros(1, 2), torch.tensor([[1.0, -2.0]]))
        tensor([[ 1., -2.]])
    """
    if not callable(log_prob):
        raise InvalidTypeError(
            f"log_prob must be a function of (theta, x), got "
            f"{type(log_prob).__name__}. Pass the method, not its value."
        )
    return LogProbScore(log_prob)


def transform_score(score: Tensor, theta: Tensor, transform: Transform) -> Tensor:
    """Return the likelihood score in the coordinates phi = transform(theta).

    NaN components (unknown, masked) stay where they are under an elementwise
    transform. Where the Jacobian is not diagonal they spread within their row, also
    to components whose Jacobian entry is zero: one unknown component of s_theta
    leaves the sum J^-T s_theta unknown.

    Args:
        score: The score with respect to theta, `(batch, dim_theta)`.
        theta: Parameters at which the score was taken, `(batch, dim_theta)`.
        transform: A bijection of torch from theta to phi, of event dimension 0 or 1,
            for example what sbi's `mcmc_transform(prior)` returns.

    Returns:
        The score with respect to phi, `(batch, dim_theta)`.

    Raises:
        InvalidInputError: If score and theta differ in shape, if the transform is no
            bijection between vectors of one length, or if its inverse has no gradient.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> eta, score = torch.zeros(1, 1), torch.ones(1, 1)
        >>> transform_score(score, eta, ExpTransform())  # sigma = exp(eta)
        tensor([[1.]])
    """
    if score.shape != theta.shape or theta.ndim != 2:
        raise InvalidInputError(
            "score and theta must both be (batch, dim_theta), got score "
            f"{tuple(score.shape)} and theta {tuple(theta.shape)}. Give one score row "
            "for every row of theta."
        )
    with torch.inference_mode(False), torch.enable_grad():
        # A new leaf: a transform that caches its last pair must not return theta.
        phi = cast(Tensor, transform(theta.detach().clone()))
        if not transform.bijective or phi.shape != theta.shape:
            raise InvalidInputError(
                "transform must be a bijection between vectors of one length, got "
                f"{transform} from {tuple(theta.shape)} to {tuple(phi.shape)}. "
                "Reparametrise by hand where dimensions are added or dropped."
            )
        phi = phi.detach().clone().requires_grad_()
        inverse = cast(Tensor, transform.inv(phi))
        if not inverse.requires_grad:
            raise InvalidInputError(
                f"transform must have an inverse with a gradient, got {transform}. "
                "Write its inverse in torch."
            )
        (transformed,) = torch.autograd.grad(
            inverse, phi, grad_outputs=score.detach().clone().to(inverse)
        )
    return transformed
