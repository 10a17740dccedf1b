"""Problems whose scores, and mostly posteriors, are known exactly.

A method that learns from scores can only be trusted on problems where the scores and
the answer are beyond doubt. Each file here holds one such problem: its mathematics in
the docstring, and below it a class short enough to be checked against it by eye. All
offer `prior`, `dim_theta`, `shape_x`, a call that simulates, `log_prob`, `score` and
`exact_posterior`; `base` says how to add one.

`UniformPolynomial`, `TwoMoons`, `LinearGaussianCost` and `GaussianMixtureTrials` know
their expected cost instead, and with it their exact generalized posterior at every
temperature, for observations within the model and outside of it; see `cost_base`.
`HodgkinHuxley`, a neuron, knows neither: it is what a user has.
"""

from sbi_scoreaug.simulators.base import BoxSimulator, ScoredSimulator
from sbi_scoreaug.simulators.bounded_linear_gaussian import BoundedLinearGaussian
from sbi_scoreaug.simulators.cost_base import BoxCostSimulator, CostSimulator
from sbi_scoreaug.simulators.gaussian_gaussian import GaussianGaussian
from sbi_scoreaug.simulators.gaussian_mixture_likelihood import (
    GaussianMixtureLikelihood,
)
from sbi_scoreaug.simulators.gaussian_mixture_trials import GaussianMixtureTrials
from sbi_scoreaug.simulators.gaussian_process import GaussianProcessField
from sbi_scoreaug.simulators.grid import GridPosterior, theta_grid
from sbi_scoreaug.simulators.hodgkin_huxley import HodgkinHuxley
from sbi_scoreaug.simulators.linear_gaussian import LinearGaussian
from sbi_scoreaug.simulators.linear_gaussian_cost import LinearGaussianCost
from sbi_scoreaug.simulators.linear_mixture import LinearGaussianMixture
from sbi_scoreaug.simulators.normal_location_scale import NormalLocationScale
from sbi_scoreaug.simulators.sign_flip import SignFlip
from sbi_scoreaug.simulators.sis_network import SISNetwork
from sbi_scoreaug.simulators.sis_population import SISPopulation
from sbi_scoreaug.simulators.student_t import StudentTField
from sbi_scoreaug.simulators.two_moons import TwoMoons
from sbi_scoreaug.simulators.uniform_polynomial import UniformPolynomial

__all__ = [
    "BoundedLinearGaussian",
    "BoxCostSimulator",
    "BoxSimulator",
    "CostSimulator",
    "GaussianGaussian",
    "GaussianMixtureLikelihood",
    "GaussianMixtureTrials",
    "GaussianProcessField",
    "GridPosterior",
    "HodgkinHuxley",
    "LinearGaussian",
    "LinearGaussianCost",
    "LinearGaussianMixture",
    "NormalLocationScale",
    "ScoredSimulator",
    "SignFlip",
    "SISNetwork",
    "SISPopulation",
    "StudentTField",
    "TwoMoons",
    "UniformPolynomial",
    "theta_grid",
]
