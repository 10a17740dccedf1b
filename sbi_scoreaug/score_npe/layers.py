"""Parts of the network: residual blocks, and what it is given beside them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

NUM_FREQUENCIES = 3  # of time
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


def time_features(m: Tensor, s: Tensor) -> Tensor:
    """Sinusoids `(..., 2 NUM_FREQUENCIES)` of log (s/m), from about -4 to 3."""
    level = (s / m).log() / 8
    octaves = 2.0 ** torch.arange(NUM_FREQUENCIES, device=m.device) / 2
    angles = math.pi * level * octaves
    return torch.cat([angles.sin(), angles.cos()], -1)


def blurred_slope(z: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """The slope of theta(z) = low + (high - low) Phi(z), relative to that at 0.

    That is exp(-z^2 / 2); its mean given z_t is exp(-(m z_t)^2 / (2 (1 + s^2))), up to
    a factor that depends on s alone.
    """
    return (-((m * z) ** 2) / (2 * (1 + s**2))).exp()


def bent(z: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """The integral of `blurred_slope` from 0: theta(z) blurred, and z near 0."""
    scale = m / (1 + s**2).sqrt()
    return (2 * math.pi) ** 0.5 / scale * (torch.special.ndtr(scale * z) - 0.5)


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


class FilledLater(nn.Module):
    """A module whose buffers `FILLED` are None until training is over.

    They belong to its state dict then, and are taken from one in whatever shapes it has
    them, None where it has none.
    """

    FILLED: tuple[str, ...] = ()

    def empty(self) -> None:
        """Set these buffers to None."""
        for name in self.FILLED:
            self.register_buffer(name, None)
        if not hasattr(self, "place"):  # says on which device to fill them
            self.register_buffer("place", torch.empty(0), persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.empty()
        device = self.get_buffer("place").device
        for name in self.FILLED:
            if prefix + name in state_dict:
                filled = torch.empty_like(state_dict[prefix + name], device=device)
                setattr(self, name, filled)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def linear_fit(features: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of z on standardised features: slope, offset, residual sd."""
    features, targets = features.double(), z.double()
    num, size = features.shape
    offset = targets.mean(0)
    gram = features.mT @ features / num
    # A thousandth, and more where there are few simulations.
    gram = gram + (0.01 + size / num) * 0.1 * torch.eye(size).double()
    slope = torch.linalg.solve(gram, features.mT @ (targets - offset) / num)
    residual = targets - offset - features @ slope
    rho = residual.std(0) * (num / max(num - size, num / 4)) ** 0.5
    return slope.float(), offset.float(), rho.float()
