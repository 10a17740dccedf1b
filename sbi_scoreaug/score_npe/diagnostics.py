"""What a sampler did, and what went wrong on the way.

A sampler of a composed score has no likelihood to be checked against, so it counts:
how often the score was evaluated, how many proposals were accepted, how many particles
or covariances had to be repaired. Large repairs mean a score that cannot be trusted.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidStateError, warn

NUM_TRACES = 100


@dataclass
class SamplerDiagnostics:
    """Counts of one sampler call.

    Attributes:
        sampler: Name of the sampler.
        num_observations: Size n of the set.
        num_groups: Groups that the set was divided into; n for networks of single
            observations.
        evaluations: Evaluations of the composed score.
        circulation: Of the score around small triangles of particles, in nats
            (`circulation`); None where it was not needed.
        acceptance: Accepted fraction of the last Metropolis steps; None without any.
        jump_acceptance: Accepted fraction of jumps between modes; None without any.
        step: Last step size of the Metropolis steps; None without any.
        num_replaced: Non-finite particles that were replaced, over all steps.
        effective_sample_size: Of the Feynman-Kac weights of the path, out of the
            number of samples (`feynman_kac`); None where they are not known. It says
            how far the path strays from an exact one, not how many samples can be used:
            of sets it is some 1 to 10 even where samples are right.
        clipped_fraction: Covariance eigenvalues that were wider than the prior or
            degenerate, averaged over steps.
        excess_spread: Largest variance of the particles before the last step, over what
            their score says it is: 1 if they agree; None without a descent.
        messages: What the sampler warned of.
        traces: The first hundred particles at every step, `(num_kept, dim)` each, where
            the prior is N(0, I); see `plots.sampler_traces`.

    Raises:
        InvalidStateError: By `replace_non_finite`, if most particles are not finite.

    Example:
        >>> found = SamplerDiagnostics("auto", num_observations=3)
        >>> particles = torch.tensor([[0.5], [torch.nan], [0.5]])  # (num, dim)
        >>> found.replace_non_finite(particles).flatten()
        tensor([0.5000, 0.5000, 0.5000])
        >>> found.num_replaced
        1
    """

    sampler: str
    num_observations: int
    num_groups: int | None = None
    evaluations: int = 0
    circulation: float | None = None
    acceptance: float | None = None
    jump_acceptance: float | None = None
    step: float | None = None
    num_replaced: int = 0
    effective_sample_size: float | None = None
    clipped_fraction: float = 0.0
    excess_spread: float | None = None
    messages: list[str] = field(default_factory=list)
    traces: list[Tensor] = field(default_factory=list, repr=False)

    def warn(self, message: str) -> None:
        """Warn, and keep the message."""
        warn(message)
        self.messages.append(message)

    def keep_trace(self, theta: Tensor) -> None:
        """Keep the first hundred of the particles `(num_particles, dim)`."""
        self.traces.append(theta[:NUM_TRACES].detach().cpu().float())

    def replace_non_finite(self, theta: Tensor) -> Tensor:
        """Replace non-finite particles by random finite ones, and count them.

        Args:
            theta: Particles `(num_particles, dim)`.

        Returns:
            Finite particles of the same shape.

        Raises:
            InvalidStateError: If more than half of the particles are not finite.
        """
        finite = theta.isfinite().all(1)
        num_bad = int((~finite).sum())
        if num_bad == 0:
            return theta
        if 2 * num_bad > len(theta):
            raise InvalidStateError(
                f"{self.sampler}: expected finite particles, got {num_bad} of "
                f"{len(theta)} that are not. The posterior score is not finite, or the "
                "steps diverge: train longer, or take another sampler or smaller steps."
            )
        self.num_replaced += num_bad
        choice = torch.randint(int(finite.sum()), (num_bad,), device=theta.device)
        theta = theta.clone()
        theta[~finite] = theta[finite][choice]
        return theta
