r"""Exact scores as control variates of the distance.

The score s = grad_theta log p(x|theta) has mean zero given theta, so that

    E[d(x, x_t) - c(theta, x_t)' s | theta] = E[d(x, x_t) | theta] = f(theta, x_t)

whatever c: regression on the left side has the same minimiser f, and the less noise,
the more of d is linear in the score. c is learned beside f,

    min E (d(x, x_t) - f(theta, x_t) - c(theta, x_t)' s)^2,

without a second derivative, and dropped after training. For sets of trials c depends
on theta alone. `QuadraticCost` regresses on moments of features phi_k, each with a head
of its own in c(theta): (phi_k - m_k - c_k' s)^2, and the same for v. Joint scores have
mean zero too. A row without a score counts as s = 0: the plain label. That is right
where x does not decide which scores are missing.

Where simulations fail, the valid ones alone tell the cost, and among them

    E[s | theta, valid] = grad_theta log P(valid | theta),

not zero: f would tend to E[d | theta, valid] - c' grad_theta log P(valid | theta).
Training then leaves the scores out, and warns (`left_out`). Simulations that a user
sorts out by x before appending them do the same harm, unseen.

c is a constant plus 1/dim_theta of a network. The constant starts at zero or, beside a
regression that starts from least squares, at the least squares of both; for v, whose
squares are noisy, only where held-out rows bear that fit out (`softplus_fit`). The
network's share is small because its dim_theta^2 products with s fit noise first: Adam
moves each of them equally fast, however little it explains.

References: Owen (2013), Monte Carlo theory, methods and examples, chapter 8; Gao,
Deistler & Macke (2023), arXiv 2305.15208, for f.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbi_scoreaug.amortized_cost.layers import ResidualNet

HIDDEN, BLOCKS = 64, 1


def left_out(num_failed: int, num_simulations: int) -> str:
    """Return why scores cannot serve beside failed simulations, and what to do."""
    return (
        f"the scores are left out of training: {num_failed} of {num_simulations} "
        "simulations failed, and among those that succeed scores do not have mean zero "
        "given theta, so that they would bias the cost. Let the simulator return "
        "finite values where it fails, or simulate where it does not fail; append "
        "without scores to silence this."
    )


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
        self.constant = nn.Parameter(torch.zeros(self.shape))

    @torch.no_grad()
    def start_beside(
        self, net: ResidualNet, inputs: Tensor, outputs: Tensor, score: Tensor
    ) -> None:
        """Start `net` and the head from one least-squares fit of both.

        Without it the straight part of `net` starts from a regression that has all of
        the noise that scores explain, and little data do not lead it away from there.

        Args:
            net: Regresses outputs on inputs.
            inputs: `(num_simulations, dim_in)`, standardized.
            outputs: `(num_simulations, d)`, the first d regressions of the head.
            score: `(num_simulations, dim_theta)`, 0 where unknown.
        """
        beside = torch.cat([inputs, score / self.scale], dim=1)
        both = ResidualNet(beside.shape[1], outputs.shape[1], 1, 0)
        both.start_from_least_squares(beside, outputs)
        split = inputs.shape[1]
        net.straight.weight.copy_(both.straight.weight[:, :split])
        net.straight.bias.copy_(both.straight.bias)
        self.constant[: outputs.shape[1]] = both.straight.weight[:, split:]

    def forward(self, inputs: Tensor, score: Tensor) -> Tensor:
        """Return c's `(batch, T, num_outputs)`, zero at the start.

        Args:
            inputs: What c depends on, `(batch, T, dim_in)`.
            score: `(batch, dim_theta)`.
        """
        change = self.net(inputs).unflatten(-1, self.shape)
        c = self.constant + change / self.shape[1]
        return (c * (score / self.scale)[:, None, None]).sum(-1)
