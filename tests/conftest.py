from pathlib import Path

import pytest
import torch

import sbi_scoreaug  # noqa: F401  pyro, which sbi imports, sets torch's validation

# The networks are small: threads cost more than they bring, and one thread gives the
# same sums on every machine.
torch.set_num_threads(1)


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


@pytest.fixture(autouse=True, scope="session")
def logs_elsewhere(tmp_path_factory):
    """sbi's default tracker writes to a temporary folder, never where pytest runs."""
    logs, root = Path("sbi-logs").absolute(), tmp_path_factory.mktemp("logs")
    before = logs.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sbi.inference.trainers.base.get_log_root", lambda: str(root))
        yield
    assert logs.exists() == before
