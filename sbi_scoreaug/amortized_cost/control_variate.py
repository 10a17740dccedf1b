r"""Exact scores as control variates of the distance.

The score s = grad_theta log p(x|theta) has mean zero given theta, so that

    E[d(x, x_t) - c(theta, x_t)' s | theta] = E[d(x, x_t) | theta] = f(theta, x_t)

whatever c: regression on the left side has the same minimiser f, and the less noise,
the more of d is linear in the score. c is learned beside f,

    min E (d(x, x_t) - f(theta, x_t) - c(theta, x_t)' s)^2,

without a second derivative, and dropped after training. For sets of trials c depends on
theta alone. `QuadraticCost` regresses on moments of features phi_k, each with a head of
its own in c(theta): (phi_k - m_k - c_k' s)^2, and the same for v. Joint scores have
mean zero too. A row without a score, or with a failed simulation, counts as s = 0: the
plain label.

References: Owen (2013), Monte Carlo theory, methods and examples, chapter 8; Gao,
Deistler & Macke (2023), arXiv 2305.15208, for f.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbi_scoreaug.amortized_cost.layers import ResidualNet

HIDDEN, BLOCKS = 64, 1


class ControlVariate(nn.Module):
    """The head c, for one regression or several.

    Args:
        score: Training scores `(num_simulations, dim_theta)`, 0 where unknown.
        dim_in: Size of what c depends on.
        num_outputs: Number of regressions.
    """

    scale: Tensor

    def __init__(self, score: Tensor, dim_in: int, num_outputs: int = 1) -> None:
        super().__init__()
        dim = score.shape[1]
        # Root mean squares: c' s does not depend on the scale, its training does.
        rms = score.square().mean(0).sqrt()
        self.register_buffer("scale", torch.where(rms > 0, rms, 1.0))
        self.shape = (num_outputs, dim)
        self.net = ResidualNet(dim_in, num_outputs * dim, HIDDEN, BLOCKS)
        nn.init.zeros_(self.net.straight.weight)
        nn.init.zeros_(self.net.straight.bias)

    def forward(self, inputs: Tensor, score: Tensor) -> Tensor:
        """Return c's `(batch, T, num_outputs)`, zero at the start.

        Args:
            inputs: What c depends on, `(batch, T, dim_in)`.
            score: `(batch, dim_theta)`.
        """
        c = self.net(inputs).unflatten(-1, self.shape)
        return (c * (score / self.scale)[:, None, None]).sum(-1)
