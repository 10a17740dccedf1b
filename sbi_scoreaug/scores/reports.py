"""What is said, in the caller's name, of scores that were appended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_scoreaug.errors import warn
from sbi_scoreaug.scores.check_report import ScoreCheck


def report_unknown(score: Tensor) -> None:
    """Warn of components that are NaN in `score (num_simulations, dim_theta)`."""
    unknown = int(score.isnan().sum())
    if unknown:
        warn(
            f"{unknown} of {score.numel()} score components are NaN: they are left "
            "out of the loss, their simulations are kept."
        )


def report_missing(scores: Sequence[Tensor]) -> None:
    """Warn of simulations without any score, `(num_simulations, dim_theta)` a round."""
    missing = torch.cat([score.isnan().all(1).cpu() for score in scores])
    warn(
        f"{int(missing.sum())} of {len(missing)} simulations have no score: they train "
        "without the score term. Pass score=... here too, or score_fn=... to the "
        "constructor."
    )


def report_unseen(num_before: int, num_now: int) -> None:
    """Warn of simulations that a resumed training leaves aside, as the host does."""
    warn(
        f"resume_training: expected the {num_before} simulations that the training "
        f"began with, got {num_now}. It goes on with the same rows for training and "
        "validation; what was appended since is not used. Train without "
        "resume_training to use it.",
        UserWarning,
    )


def report_check(check: ScoreCheck, restricted: bool) -> None:
    """Warn of a failed check, and of parameters that the prior does not give.

    Args:
        check: Of simulations that are said to come from the prior.
        restricted: Whether they are known to come from a part of it only.
    """
    if not check.passed:
        warn(f"{check}\nPass score_check=False to silence this.")
    elif not (check.theta_fits_prior or restricted):
        warn(
            "theta: expected draws from the trainer's prior, as no other proposal was "
            f"named, got others ({'; '.join(check.notes)}). The scores were not "
            "checked. Give the trainer the prior that was used, name where theta "
            "comes from (proposal=... in posterior estimation, from_round=1 "
            "elsewhere), or pass score_check=False to silence this."
        )
