"""A plugin to sbi for simulators that can say more than a sample.

Many simulators know, beside x, the exact score grad_theta log p(x|theta): statistical
models on fields and networks, epidemics, anything written in a differentiable language.

`ScoreAugmentedNRE` is sbi's `NRE_A` whose classifier is trained to match that score as
well as to classify (Shen & Kuusela 2026, arXiv 2605.12118). The same term serves
`NRE_B`, `NRE_C` and `BNRE` through `ScoreAugmentedRatioTerm`, and makes `NLE_A` and
`NPE_C` into `ScoreAugmentedNLE` and `ScoreAugmentedNPE`.

`ScoreNPE` is an `NPSE` whose posterior takes any number of observations, composed when
sampling (Geffner, Papamakarios & Mnih 2023, arXiv 2209.14249).

`AmortizedCostEstimator` learns the expected distance between simulations and an
observation, and samples generalized posteriors at any temperature: inference that keeps
its sense when the model is wrong (Gao, Deistler & Macke 2023, arXiv 2305.15208).

`simulate_with_score` is the twin of sbi's `simulate_for_sbi`; `check_score` tells
whether scores belong to their simulations. `sbi_scoreaug.simulators` holds problems
with exact scores and posteriors, `python -m sbi_scoreaug` runs a demonstration and
`python -m sbi_scoreaug.benchmarks` measures. `register` makes sbi's `infer` find the
trainers; `save_estimator` keeps a trained network without pickle; `citation(trainer)`
says what to cite.
"""

from sbi_scoreaug.amortized_cost import (
    AmortizedCostEstimator,
    BetaCalibration,
    CostBasedPotential,
    CostNetBuilder,
    Distance,
)
from sbi_scoreaug.citation import citation
from sbi_scoreaug.registration import register
from sbi_scoreaug.score_augmented import (
    FixedWeights,
    GradientNormWeights,
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreAugmentedNRE,
    ScoreAugmentedRatioTerm,
    ScoreWeighting,
    UncertaintyWeights,
    smooth_classifier_nn,
)
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.scores import (
    ScoreCarrier,
    ScoreCheck,
    check_score,
    diffusion_path_score,
    jump_path_score,
    score_from_log_prob,
    score_from_pyro,
    simulate_with_score,
    transform_score,
)
from sbi_scoreaug.storage import load_estimator, save_estimator

__version__ = "0.1.0"

__all__ = [
    "AmortizedCostEstimator",
    "BetaCalibration",
    "CostBasedPotential",
    "CostNetBuilder",
    "Distance",
    "FixedWeights",
    "GradientNormWeights",
    "ScoreAugmentedNLE",
    "ScoreAugmentedNPE",
    "ScoreAugmentedNRE",
    "ScoreAugmentedRatioTerm",
    "ScoreCarrier",
    "ScoreCheck",
    "ScoreNPE",
    "ScoreWeighting",
    "UncertaintyWeights",
    "check_score",
    "citation",
    "diffusion_path_score",
    "jump_path_score",
    "load_estimator",
    "register",
    "save_estimator",
    "score_from_log_prob",
    "score_from_pyro",
    "simulate_with_score",
    "smooth_classifier_nn",
    "transform_score",
]
