"""The host's forward pass at the joint pairs, kept for the score term.

The host's loss evaluates the surrogate at every pair of the batch anyway. Where theta
enters that pass as a leaf of the graph, grad_theta f is had from it: one double
backward, no second forward pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sbi_scoreaug._host import HostTrainer


class JointPass(HostTrainer):
    """Mixin that keeps `(theta, f)` of a batch until the score term has read it.

    A trainer that overrides the host's loss sets `_joint` there: theta
    `(batch, dim_theta)`, a leaf, and f(theta, x) `(batch,)`, both on the graph.
    """

    _joint: tuple[Tensor, Tensor] | None = None

    def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the host's loop and let go of the last batch's graph."""
        try:
            return super()._run_training_loop(*args, **kwargs)
        finally:
            self._joint = None
