"""Amortized cost estimation (Gao, Deistler & Macke 2023, arXiv 2305.15208).

`trainer` holds the trainer, a subclass of the base of sbi's NLE, `distances` what it
compares by, `pairs` the targets it compares with, `estimator` the networks of the
expected cost, `potential` and `posterior` what sbi samples, `temperature` the rules
for beta, `target_range` and `diagnosis` when not to trust an answer.
"""

from sbi_scoreaug.amortized_cost.diagnosis import CostDiagnosis
from sbi_scoreaug.amortized_cost.distances import (
    DISTANCES,
    CallableDistance,
    Distance,
    MMDDistance,
    resolve_distance,
)
from sbi_scoreaug.amortized_cost.estimator import (
    CostEstimator,
    CostNet,
    CostNetBuilder,
    ParticleCost,
    QuadraticCost,
)
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.amortized_cost.target_range import ModelWarning, TargetRange
from sbi_scoreaug.amortized_cost.temperature import BetaCalibration, calibrate_beta
from sbi_scoreaug.amortized_cost.trainer import AmortizedCostEstimator

__all__ = [
    "DISTANCES",
    "AmortizedCostEstimator",
    "BetaCalibration",
    "CallableDistance",
    "CostBasedPotential",
    "CostDiagnosis",
    "CostEstimator",
    "CostNet",
    "CostNetBuilder",
    "Distance",
    "MMDDistance",
    "ModelWarning",
    "ParticleCost",
    "QuadraticCost",
    "TargetRange",
    "calibrate_beta",
    "resolve_distance",
]
