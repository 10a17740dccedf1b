"""ScoreNPE: one network for any number of observations.

The posterior score of single observations is learned once; scores of sets are composed
when sampling (Geffner, Papamakarios & Mnih 2023, arXiv 2209.14249).
"""

from sbi_scoreaug.score_npe.composition import ComposedScore
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.posterior import FactorizedPosterior
from sbi_scoreaug.score_npe.samplers import SAMPLERS, sample_set
from sbi_scoreaug.score_npe.schedule import VPSchedule
from sbi_scoreaug.score_npe.trainer import ScoreNPE

__all__ = [
    "SAMPLERS",
    "ComposedScore",
    "FactorizedPosterior",
    "SamplerDiagnostics",
    "ScoreNPE",
    "VPSchedule",
    "sample_set",
]
