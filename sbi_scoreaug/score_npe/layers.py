"""Parts of the network: residual blocks, and what it is given beside them."""

import torch
from torch import Tensor, nn

LARGEST = 4.0  # of a logarithm or a relative change


class ResidualMLP(nn.Module):
    """A linear layer, residual blocks of SiLU layers, and no output layer."""

    def __init__(self, num_inputs: int, num_hidden: int, num_blocks: int) -> None:
        super().__init__()
        self.inputs: nn.Module = nn.Linear(num_inputs, num_hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(num_hidden, num_hidden),
                nn.SiLU(),
                nn.Linear(num_hidden, num_hidden),
            )
            for _ in range(num_blocks)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Return `(..., num_hidden)` for `(..., num_inputs)`."""
        return self.residual(self.inputs(rows))

    def residual(self, hidden: Tensor) -> Tensor:
        """Apply the blocks alone."""
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


def bounded(values: Tensor, limit: Tensor | float = LARGEST) -> Tensor:
    """Bend values smoothly to less than the limit and `LARGEST` in size."""
    limit = torch.as_tensor(limit).clamp(1e-6, LARGEST)
    return limit * (values / limit).tanh()


def quadratic_features(
    z: Tensor, xhat: Tensor, rho: Tensor, m: Tensor, s: Tensor
) -> Tensor:
    """The quadratic forms in z and xhat that decide between Gaussians.

    Args:
        z: `(..., dim)`.
        xhat: The linear prediction, `(..., dim)`.
        rho: Its residual standard deviation `(..., dim)`.
        m: `(..., 1)`.
        s: `(..., 1)`.

    Returns:
        `(..., 6)`: of the residual, relative to its spread and to that of a posterior
        7 times as narrow, the root mean square over parameters and the logarithm of its
        square; z'xhat relative to the spread and the root mean square of xhat.
    """
    residual, features = z - m * xhat, []
    for narrow in (1, 50):
        spread = m**2 * rho**2 / narrow + s**2
        square = (residual**2 / spread).mean(-1, keepdim=True)
        features += [(square + 1e-6).sqrt(), (square + 0.01).log()]
    product = z * xhat / (m**2 * rho**2 + s**2).sqrt()
    length = (xhat**2).mean(-1, keepdim=True).sqrt().expand_as(square)
    return torch.cat([*features, product.mean(-1, keepdim=True), length], -1)
