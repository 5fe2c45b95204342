"""A run to draw with."""

from collections.abc import Callable

import pytest

from training import train
from training.config import Config


@pytest.fixture(scope="session")
def trained_run(config_of: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    config = config_of(run=str(tmp_path_factory.mktemp("trained") / "run"))
    train.run(config)
    return config.run
