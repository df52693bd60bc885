"""What the tests of suites share."""

import pytest

from smc.priors.training import TrainingSettings, train_denoiser
from tests.experiments.small_suite import ORACLE


@pytest.fixture(scope="session")
def trained():
    import torch

    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    settings = TrainingSettings(n_iterations=50, batch_size=64, width=8, n_blocks=1)
    return train_denoiser(points, settings=settings, seed=0)


@pytest.fixture
def folder(tmp_path, trained):
    trained.save(tmp_path / "prior.safetensors")
    (tmp_path / "lab.py").write_text(ORACLE)
    return tmp_path
