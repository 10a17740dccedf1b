"""What calibrations and diagnoses print."""

import pytest
import torch

from sbi_scoreaug.amortized_cost.calibration import BetaCalibration
from sbi_scoreaug.amortized_cost.diagnosis import CostDiagnosis


def test_a_calibration_prints_one_line():
    curves = dict.fromkeys(
        ("betas", "coverage", "effective_fraction", "predictive_cost", "acceptance"),
        torch.rand(5),
    )
    found = BetaCalibration(
        beta=5.9, method="ml", scale_free=12.0, stderr=0.1, true_cost=1.0, **curves
    )
    assert str(found).startswith("ml: beta 5.9 +- 0.59 (12 ")
    assert "\n" not in str(found) and len(str(found)) < 88
    found.stderr, found.solved = torch.nan, False
    assert "+-" not in str(found) and "no solution" in str(found)


@pytest.mark.parametrize("ceiling", [0.875, 0.93])
def test_a_diagnosis_does_not_contradict_itself(ceiling):
    found = CostDiagnosis(
        0.902, ceiling, 4.0, 3.2, 1.0, torch.rand(200), 0.4, True, num_simulations=137
    )
    assert ("a better network" in str(found)) == (ceiling > 0.902)
    assert (str(ceiling) in str(found)) == (ceiling > 0.902)
    assert "up to about 3.2 (cautious, from 137 held-out simulations" in str(found)
