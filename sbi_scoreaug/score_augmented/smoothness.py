r"""Is a network smooth enough in theta to be trained with scores?

The score term needs the derivative of grad_theta f by the network's parameters. That
rules out networks that are piecewise linear in theta; and f(theta_i, x_i) must depend
on row i alone, which rules out batch normalisation on the way of theta. Both are found
before a simulation is stored, on a trial network: from the activations that theta
passes through where the network's build is known, and from its second derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from sbi_scoreaug._host import splits_into_embedding_and_head
from sbi_scoreaug.errors import InvalidInputError

PIECEWISE_LINEAR_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
)
PIECEWISE_LINEAR_FUNCTIONS = (F.relu, torch.relu, F.relu6, F.leaky_relu, F.hardtanh)


def require_smooth(
    build: Callable[[Tensor, Tensor], nn.Module],
    log_density: Callable[[Any, Tensor, Tensor], Tensor],
    theta: Tensor,
    x: Tensor,
) -> None:
    """Build a network on a trial and raise InvalidInputError unless it is smooth.

    Neither the global generator nor buffers of the user's embedding net are changed.

    Args:
        build: The user's builder, `(theta, x) -> estimator`.
        log_density: `(estimator, theta, x) -> f`, `(batch,)`.
        theta: Parameters `(batch, dim_theta)`.
        x: Simulations `(batch, *shape_x)`, finite.
    """
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        buffers_put_back(),
    ):
        warnings.simplefilter("ignore")
        estimator = build(theta, x)
        training = estimator.training
        estimator.eval()
        part = piecewise_linear_part(
            estimator, lambda theta: log_density(estimator, theta, x), theta
        )
        coupling = batch_norm_part(estimator)
        estimator.train(training)
    if coupling is not None:
        raise InvalidInputError(
            "score: expected a network that treats every pair by itself, got "
            f"{coupling} on the way of theta, which mixes the rows of a batch. "
            "Use layer normalisation or none (use_batch_norm=False); in an "
            "embedding net of x batch normalisation does no harm."
        )
    if part is not None:
        raise InvalidInputError(
            "score: expected a network that is smooth in theta, got a piecewise-"
            f"linear one ({part}), whose score cannot be trained. Leave the "
            "network at its default, or build it with smooth activations such as "
            'SiLU (in ratio estimation classifier="smooth_resnet", "smooth_mlp", or '
            "smooth_classifier_nn)."
        )


def _differentiated_modules(estimator: Any) -> Iterator[nn.Module]:
    """Yield the modules that theta passes through, where that is known."""
    if splits_into_embedding_and_head(estimator):
        yield from estimator.embedding_net_theta.modules()
        yield from estimator.net.modules()


@contextmanager
def buffers_put_back() -> Iterator[None]:
    """Undo what forward passes do to buffers, such as running means.

    A builder passes rows through the user's own embedding net to learn its size.
    """
    before: dict[nn.Module, dict[str, Tensor]] = {}

    def note(module: nn.Module, _: Any) -> None:
        if module not in before:
            buffers = module.named_buffers(recurse=False)
            before[module] = {name: value.clone() for name, value in buffers}

    hook = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()
        for module, buffers in before.items():
            for name, value in buffers.items():
                getattr(module, name).copy_(value)


def batch_norm_part(estimator: nn.Module) -> str | None:
    """Return the name of a batch normalisation that theta passes through, if any.

    It couples the rows of a batch: the gradient of one row's f is then no longer the
    row's own, and joint and marginal pairs would be normalised apart.
    """
    for module in _differentiated_modules(estimator):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return type(module).__name__
    return None


def piecewise_linear_part(
    estimator: nn.Module, log_density: Callable[[Tensor], Tensor], theta: Tensor
) -> str | None:
    """Return what makes `estimator` piecewise linear in theta, or None if it is not.

    Args:
        estimator: The network; its modules are searched for activations.
        log_density: The function theta `(batch, dim_theta)` -> f `(batch,)` that is
            differentiated. It is probed for a second derivative that vanishes.
        theta: Parameters `(batch, dim_theta)` to probe at.
    """
    for module in _differentiated_modules(estimator):
        if isinstance(module, PIECEWISE_LINEAR_MODULES):
            return type(module).__name__
        if getattr(module, "activation", None) in PIECEWISE_LINEAR_FUNCTIONS:
            return f"{type(module).__name__} with {module.activation.__name__}"
    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        gradient = torch.autograd.grad(
            log_density(leaf).sum(), leaf, create_graph=True
        )[0]
        if gradient.requires_grad:
            (second,) = torch.autograd.grad(
                gradient.square().sum(), leaf, allow_unused=True
            )
            if second is not None and second.abs().max() > 0:
                return None
    return f"{type(estimator).__name__} without a second derivative in theta"
