"""Amortized cost estimation (Gao, Deistler & Macke 2023, arXiv 2305.15208).

Arrows between files point upwards in this list:

    distance, point_distances, set_distances, distances, distance_checks
        what simulations and targets are compared by
    layers, estimator, quadratic_cost, particle_cost, cost_net, custom_cost,
    penalized_cost, builder
        networks of the expected cost
    target_range, potential, posterior
        what sbi samples, and when an observation is unfamiliar
    annealing, temperature_rules, calibration, temperature
        the inverse temperature beta
    diagnosis
        when not to trust an answer
    pairs, training_loss, loaders, cost_data, training, assessment, trainer
        the trainer, a subclass of the base of sbi's NLE
"""

from sbi_scoreaug.amortized_cost.builder import CostNetBuilder
from sbi_scoreaug.amortized_cost.calibration import BetaCalibration
from sbi_scoreaug.amortized_cost.cost_net import CostNet
from sbi_scoreaug.amortized_cost.diagnosis import CostDiagnosis
from sbi_scoreaug.amortized_cost.distance import CallableDistance, Distance
from sbi_scoreaug.amortized_cost.distances import DISTANCES, resolve_distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.particle_cost import ParticleCost
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.amortized_cost.quadratic_cost import QuadraticCost
from sbi_scoreaug.amortized_cost.set_distances import MMDDistance
from sbi_scoreaug.amortized_cost.target_range import ModelWarning, TargetRange
from sbi_scoreaug.amortized_cost.temperature import calibrate_beta
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
