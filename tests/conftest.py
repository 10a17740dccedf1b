import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def distribution_validation_untouched():
    """No test may leave torch's global argument validation changed."""
    before = torch.distributions.Distribution._validate_args
    yield
    assert torch.distributions.Distribution._validate_args == before
