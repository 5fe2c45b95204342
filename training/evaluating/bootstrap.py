"""How far a score would move with another draw of as many pictures: the bootstrap (Efron 1979).

A resample is a row of weights: how often each picture came up. What a score is of a resample is the
score's own to say; here the weights are drawn and the interval is taken.

Shapes: n pictures, b resamples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.95
"""Of the interval."""


@dataclass(frozen=True)
class Score:
    """A score of a set of pictures, and between what it would lie in 95 of 100 such sets."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def resamples(num_pictures: int, num_resamples: int, seed: int) -> Tensor:
    """Weights `[b, n]` float64 whose rows sum to n: n draws with replacement."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, num_pictures])))
    counts = rng.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), num_resamples)
    return torch.from_numpy(counts.astype(np.float64))


def score_of(value: float, resampled: Tensor) -> Score:
    """`resampled` [b]: the same score of the resamples.

    Its percentiles are moved so that their middle is the value: a resample repeats pictures, so
    distances come out larger than the value itself (for a mean they don't, and nothing moves).
    The interval says how the score scatters, not how far it is from that of endless pictures.
    """
    tail = (1 - LEVEL) / 2
    bounds = torch.tensor([tail, 1 - tail], dtype=resampled.dtype, device=resampled.device)
    low, high = (torch.quantile(resampled, bounds) - resampled.mean() + value).tolist()
    return Score(value, low, high)


def mean_score(values: Tensor, weights: Tensor) -> Score:
    """Of a mean over pictures: `values` [n], `weights` [b, n]."""
    values = values.double()
    return score_of(values.mean().item(), weights.to(values.device) @ values / len(values))
