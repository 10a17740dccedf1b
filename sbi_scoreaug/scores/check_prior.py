"""What the score check needs to know of the prior: its edges and its gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to


def _device(prior: Any) -> torch.device:
    """Where the prior lives, without drawing from it."""
    try:
        return prior.mean.device
    except (AttributeError, NotImplementedError):
        return torch.device("cpu")


def prior_support(prior: Any, dim_theta: int) -> tuple[Tensor, Tensor]:
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


def log_prior_gradient(prior: Any, theta: Tensor) -> Tensor:
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
