"""Features to score: draws from Gaussians whose distances are known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """normal(n, d, seed, mean=0, scale=1) -> [n, d] float64."""

    def draw(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        rng = np.random.default_rng(seed)
        return torch.from_numpy(mean + scale * rng.standard_normal((n, d)))

    return draw
