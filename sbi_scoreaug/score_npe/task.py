"""What every sampler of a set is given: the score, the levels and what to draw."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_scoreaug.score_npe.composition import ComposedScore
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.schedule import VPSchedule


def _no_progress() -> None:
    """Show nothing."""


@dataclass
class SamplingTask:
    """One set to be sampled, where the prior is N(0, I).

    Attributes:
        score: The composed score.
        schedule: The noise levels.
        num_samples: Number of samples to return.
        dim: Number of parameters.
        diagnostics: Takes what the sampler counts.
        progress: Called after every evaluation or level.
    """

    score: ComposedScore
    schedule: VPSchedule
    num_samples: int
    dim: int
    diagnostics: SamplerDiagnostics
    progress: Callable[[], object] = _no_progress

    def step_done(self, theta: Tensor) -> None:
        """Note particles `(num_particles, dim)` after an evaluation or level."""
        self.diagnostics.keep_trace(theta)
        self.progress()

    def normal(self, num_particles: int) -> Tensor:
        """Draw `(num_particles, dim)` from N(0, I), float64, on the set's device."""
        device = self.score.x.device
        return torch.randn(num_particles, self.dim, dtype=torch.float64, device=device)
