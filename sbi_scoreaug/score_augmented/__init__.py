"""Score-augmented estimation (Shen & Kuusela 2026, arXiv 2605.12118).

One term, added to the loss of a trainer of sbi, makes the theta-gradient of what the
network learns equal to the exact score of the simulator. `loss` holds the mathematics,
`weighting` the adaptive weights, `pairs` the choice of pairs, `trainer` the mixin that
adds the term, `monitor` and `schedule` when to stop; `nre`, `nle` and `npe` are what
users call, `densities` what the last two share, `edges` what posteriors need to know of
the prior.
"""

from sbi_scoreaug.score_augmented.classifiers import smooth_classifier_nn
from sbi_scoreaug.score_augmented.nle import ScoreAugmentedNLE
from sbi_scoreaug.score_augmented.npe import ScoreAugmentedNPE
from sbi_scoreaug.score_augmented.nre import ScoreAugmentedNRE, ScoreAugmentedRatioTerm
from sbi_scoreaug.score_augmented.weighting import (
    FixedWeights,
    GradientNormWeights,
    ScoreWeighting,
    UncertaintyWeights,
)

__all__ = [
    "FixedWeights",
    "GradientNormWeights",
    "ScoreAugmentedNLE",
    "ScoreAugmentedNPE",
    "ScoreAugmentedNRE",
    "ScoreAugmentedRatioTerm",
    "ScoreWeighting",
    "UncertaintyWeights",
    "smooth_classifier_nn",
]
