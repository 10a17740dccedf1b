"""Where scores come from and how they travel beside their simulations.

`simulate` and `autodiff` produce them, `paths` and `pyro` do so for processes that are
simulated step by step and for models written in Pyro, `check` tests them against the
simulations, `carrier` takes them through a trainer of sbi, `loaders` into its batches.
All methods of this package share this one data path.
"""

from sbi_scoreaug.scores.autodiff import score_from_log_prob, transform_score
from sbi_scoreaug.scores.carrier import ScoreCarrier
from sbi_scoreaug.scores.check import ScoreCheck, check_score
from sbi_scoreaug.scores.paths import (
    diffusion_path_log_prob,
    diffusion_path_score,
    jump_path_log_prob,
    jump_path_score,
)
from sbi_scoreaug.scores.pyro import score_from_pyro
from sbi_scoreaug.scores.simulate import simulate_with_score

__all__ = [
    "ScoreCarrier",
    "ScoreCheck",
    "check_score",
    "diffusion_path_log_prob",
    "diffusion_path_score",
    "jump_path_log_prob",
    "jump_path_score",
    "score_from_log_prob",
    "score_from_pyro",
    "simulate_with_score",
    "transform_score",
]
