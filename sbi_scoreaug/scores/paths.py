r"""Scores of complete paths: jump processes and discretised diffusions.

A simulator that moves step by step knows its whole path z. The score of the path's
density is a sum over steps and costs no more than the path itself. It is the *exact*
score where the path is observed, and the *joint* score where x is a function of it (or
a noisy one, whose noise does not depend on theta): E[grad log p(z|theta) | theta, x] is
the score of x.

*Jump process.* Event e happens at rate lambda_e(z, theta) while the state is z. A path
of states z_0 .. z_J, held for tau_0 .. tau_J (the last until observation ends), with
events e_1 .. e_J between them, has

    log p = sum_{j<J} log lambda_{e_{j+1}}(z_j, theta)
            - sum_j tau_j sum_e lambda_e(z_j, theta),
    score = sum over events of grad log rate - integral of the grad of the total rate.

*Diffusion*, by the Euler-Maruyama scheme with steps h_j and a diffusion that does not
depend on theta, z_{j+1} = z_j + a(z_j, theta) h_j + b(z_j) sqrt(h_j) xi_j:

    log p = -1/2 sum_j |(z_{j+1} - z_j - a_j h_j) / (b_j sqrt(h_j))|^2 + const,
    score = sum_j (d a_j / d theta)' b_j^-2 (z_{j+1} - z_j - a_j h_j),

the score of the discretised process that was simulated, whatever the step, and in the
limit h -> 0 that of Girsanov's theorem. If b depends on theta the limit has no density:
only parameters of the drift are allowed.

Rates and drifts are functions of torch, differentiated automatically. `SISPopulation`
has the closed form of its path in `simulators.jump_process`.

References: Brehmer et al. 2020 (arXiv 1805.12244); Andersen et al. 1993, Statistical
Models Based on Counting Processes, section II.7; Kloeden & Platen 1992, Numerical
Solution of Stochastic Differential Equations, chapter 9.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.autodiff import score_from_log_prob

Rates = Callable[[Tensor, Tensor], Tensor]
Drift = Callable[[Tensor, Tensor], Tensor]


def jump_path_log_prob(
    theta: Tensor, rates: Rates, states: Tensor, events: Tensor, durations: Tensor
) -> Tensor:
    """Return the log density of complete paths of a jump process.

    Args:
        theta: Parameters `(batch, dim_theta)`.
        rates: Maps theta `(batch, 1, dim_theta)` and states to the rates of all kinds
            of events, `(batch, num_states, num_kinds)`; index parameters as
            `theta[..., k]`. Every event that happens needs a positive rate.
        states: z_0 .. z_J, `(batch, num_states, *shape)`. Shorter paths are padded with
            any valid state.
        events: Kinds e_1 .. e_J, integers `(batch, num_states - 1)`, -1 where padded.
        durations: tau_0 .. tau_J, `(batch, num_states)`, 0 where padded.

    Returns:
        `(batch,)`, differentiable in theta.

    Raises:
        InvalidInputError: Shapes that do not fit, or a kind that has no rate.

    Example:
        >>> log_rate = torch.tensor([[0.0], [1.0]])  # Poisson process
        >>> events, durations = torch.tensor([[0, 0]] * 2), torch.ones(2, 3)
        >>> jump_path_log_prob(
        ...     log_rate, lambda t, z: t.exp().expand(-1, 3, 1), torch.zeros(2, 3),
        ...     events, durations,
        ... )
        tensor([-3.0000, -6.1548])
    """
    if events.shape[1] != states.shape[1] - 1 or durations.shape != states.shape[:2]:
        raise InvalidInputError(
            "states, events and durations: expected (batch, J + 1, *shape), (batch, J) "
            f"and (batch, J + 1), got {tuple(states.shape)}, {tuple(events.shape)} and "
            f"{tuple(durations.shape)}."
        )
    rate = rates(theta.unsqueeze(1), states)
    if rate.shape[:2] != states.shape[:2] or rate.ndim != 3:
        raise InvalidInputError(
            "rates: expected (batch, num_states, num_kinds) with the leading shape "
            f"{tuple(states.shape[:2])}, got {tuple(rate.shape)}."
        )
    if events.numel() and events.max() >= rate.shape[2]:
        raise InvalidInputError(
            f"events: expected kinds below {rate.shape[2]}, the number of rates, got "
            f"{int(events.max())}."
        )
    happened = rate[:, :-1].gather(2, events.clamp_min(0).unsqueeze(2)).squeeze(2)
    # log 1 where padded: where() alone would let NaN gradients of log 0 through.
    log_rate = torch.where(events >= 0, happened, 1.0).log()
    return log_rate.sum(1) - (durations * rate.sum(2)).sum(1)


def jump_path_score(
    theta: Tensor, rates: Rates, states: Tensor, events: Tensor, durations: Tensor
) -> Tensor:
    """Return grad_theta `jump_path_log_prob`, `(batch, dim_theta)`.

    Arguments and errors as in `jump_path_log_prob`.

    Example:
        >>> log_rate = torch.tensor([[0.0], [1.0]])
        >>> events, durations = torch.tensor([[0, 0]] * 2), torch.ones(2, 3)
        >>> jump_path_score(  # number of events - rate x duration
        ...     log_rate, lambda t, z: t.exp().expand(-1, 3, 1), torch.zeros(2, 3),
        ...     events, durations,
        ... )
        tensor([[-1.0000],
                [-6.1548]])
    """
    return score_from_log_prob(
        lambda leaf, z: jump_path_log_prob(leaf, rates, z, events, durations)
    )(theta, states)


def diffusion_path_log_prob(
    theta: Tensor,
    drift: Drift,
    diffusion: Callable[[Tensor], Tensor] | float,
    path: Tensor,
    steps: Tensor | float,
) -> Tensor:
    """Return the log density of Euler-Maruyama paths up to a term without theta.

    Args:
        theta: Parameters of the drift `(batch, dim_theta)`.
        drift: Maps theta `(batch, 1, dim_theta)` and states `(batch, num_steps, dim)`
            to a, of the states' shape; index parameters as `theta[..., k : k + 1]`.
        diffusion: b, a positive number, or a function of the states that returns
            positive standard deviations `(batch, num_steps, dim)`.
        path: z_0 .. z_J, `(batch, num_steps + 1, dim)`.
        steps: The steps h, a positive number or `(num_steps,)`.

    Returns:
        `(batch,)`, differentiable in theta.

    Raises:
        InvalidInputError: Shapes that do not fit, a diffusion or step that is not
            positive.

    Example:
        >>> path = torch.tensor([[[0.0], [1.0], [1.0]]])
        >>> diffusion_path_log_prob(
        ...     torch.tensor([[0.5]]), lambda t, z: t.expand_as(z), 1.0, path, 1.0
        ... )
        tensor([-0.2500])
    """
    before, moved = path[:, :-1], path.diff(dim=1)
    b = diffusion(before) if callable(diffusion) else torch.tensor(float(diffusion))
    h = torch.as_tensor(steps, dtype=path.dtype, device=path.device).reshape(-1, 1)
    if not (b > 0).all() or not (h > 0).all():
        raise InvalidInputError(
            "diffusion and steps: expected positive values, got a smallest of "
            f"{float(b.min())} and {float(h.min())}."
        )
    a = drift(theta.unsqueeze(1), before)
    if a.shape != before.shape or len(h) not in (1, before.shape[1]):
        raise InvalidInputError(
            f"drift and steps: expected {tuple(before.shape)} and ({before.shape[1]},) "
            f"from a path {tuple(path.shape)}, got {tuple(a.shape)} and ({len(h)},)."
        )
    noise = (moved - a * h) / (b * h.sqrt())
    return -0.5 * noise.square().sum((1, 2))


def diffusion_path_score(
    theta: Tensor,
    drift: Drift,
    diffusion: Callable[[Tensor], Tensor] | float,
    path: Tensor,
    steps: Tensor | float,
) -> Tensor:
    """Return grad_theta `diffusion_path_log_prob`, `(batch, dim_theta)`.

    Arguments and errors as in `diffusion_path_log_prob`.

    Example:
        >>> path = torch.tensor([[[0.0], [1.0], [1.0]]])
        >>> diffusion_path_score(  # sum of increments - drift x duration
        ...     torch.tensor([[0.5]]), lambda t, z: t.expand_as(z), 1.0, path, 1.0
        ... )
        tensor([[0.]])
    """
    return score_from_log_prob(
        lambda leaf, z: diffusion_path_log_prob(leaf, drift, diffusion, z, steps)
    )(theta, path)
