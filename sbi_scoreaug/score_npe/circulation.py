r"""Is this score the gradient of a density? A measure that needs no reference.

Metropolis steps accept by log p(theta') - log p(theta), which they take from the score
as a line integral. For the gradient of a log density it does not depend on the path;
for a learned score it does. The integral around a closed path,

    circulation = | int_a^b U . d theta + int_b^c U . d theta + int_c^a U . d theta |

is 0 for an exact score, and otherwise an error of an acceptance ratio, in nats. Over
triangles of neighbouring particles, where quadrature is exact to 1e-10, exact scores of
ten-dimensional Gaussians and mixtures have medians of 1e-11 and less. Networks trained
on 1000 to 10,000 simulations have .02 to .4; .001 to .006 in two dimensions where they
are good or a mixture has most of the score, and there Metropolis steps paid. Jumps
between modes, which lie further apart than these particles, did not: they ask for more
(or for a mixture's share, `posterior`).

It sees the part of an error that is not a gradient, which is all but 1/dim of a random
error. With one parameter every function is a gradient, so there it says nothing.
"""

import torch
from torch import Tensor

from sbi_scoreaug.score_npe.polish import SetScore, line_integral

NUM_NODES = 16
NUM_CANDIDATES = 10
LARGEST_TRUSTED = 0.007  # for Metropolis steps
LARGEST_EXACT = 1e-4  # for jumps too


def circulation(score: SetScore, theta: Tensor) -> float:
    """Return the median circulation over small triangles of particles, in nats.

    Args:
        score: U at one level, `(batch, dim) -> (batch, dim)`.
        theta: Particles `(num_particles, dim)` of about its density.

    Returns:
        The median; evaluations at about two points for each particle, at least 16
        triangles. Non-finite integrals count as infinite.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> theta = torch.randn(300, 2)
        >>> circulation(lambda at: -at, theta) < 1e-5
        True
        >>> turning = torch.tensor([[-1.0, 0.3], [-0.3, -1.0]])
        >>> circulation(lambda at: at @ turning, theta) > LARGEST_TRUSTED
        True
    """
    num = max(16, 2 * len(theta) // (3 * NUM_NODES))
    corner = theta[torch.randint(len(theta), (num,), device=theta.device)]
    choice = torch.randint(len(theta), (num, NUM_CANDIDATES), device=theta.device)
    others = theta[choice]
    distance = ((others - corner[:, None]) / theta.std(0)).square().sum(-1)
    # A particle drawn twice makes no triangle.
    nearest = distance.masked_fill(distance == 0, torch.inf)
    nearest = nearest.topk(2, largest=False).indices
    rows = torch.arange(num, device=theta.device)
    second, third = others[rows, nearest[:, 0]], others[rows, nearest[:, 1]]
    start = torch.cat([corner, second, third])
    end = torch.cat([second, third, corner])
    sides = line_integral(score, start, end, NUM_NODES, rows_at_once=len(theta))
    around = sides.reshape(3, num).sum(0).abs()
    return around.nan_to_num(torch.inf).median().item()
