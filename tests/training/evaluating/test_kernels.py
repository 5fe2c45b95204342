import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from training.evaluating.bootstrap import resamples
from training.evaluating.kernels import gaussian, mmd, mmd_score, polynomial

KID = polynomial(1 / 8)


def test_kid_agrees_with_torch_fidelitys_on_the_same_features(
    normal: Callable[..., Tensor],
) -> None:
    x, y = normal(40, 8, 0), normal(40, 8, 1, mean=0.4)
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=40, verbose=False)
    assert mmd(x, y, KID) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)


def test_kid_is_the_mean_over_all_subsets(normal: Callable[..., Tensor]) -> None:
    x, y = normal(5, 8, 0), normal(4, 8, 1)
    subsets = [
        mmd(x[list(rows)], y[list(others)], KID)
        for rows in itertools.combinations(range(5), 3)
        for others in itertools.combinations(range(4), 2)
    ]
    assert mmd(x, y, KID) == pytest.approx(np.mean(subsets), rel=1e-10)


def test_kid_of_one_distribution_is_zero_on_average_and_of_either_sign(
    normal: Callable[..., Tensor],
) -> None:
    found = np.array([mmd(normal(30, 8, i), normal(30, 8, 1000 + i), KID) for i in range(200)])
    standard_error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 3 * standard_error
    assert 20 < (found < 0).sum() < 180
    # The biased estimate would be off by about the mean of k(x, x) - k(x, x') over n.
    assert standard_error < 0.1 * 7 / 30


def test_mmd_of_two_gaussians_has_the_closed_form(normal: Callable[..., Tensor]) -> None:
    """E k(x, y) = (s^2 / (s^2 + v))^(d/2) exp(-|m|^2 / (2 (s^2 + v))) with x - y ~ N(m, v I)."""
    d, sigma, shift = 3, 1.5, 0.8

    def expected(v: float, squared: float) -> float:
        peak = float((sigma**2 / (sigma**2 + v)) ** (d / 2))
        return peak * math.exp(-squared / (2 * (sigma**2 + v)))

    exact = 2 * expected(2, 0) - 2 * expected(2, d * shift**2)
    found = np.array(
        [mmd(normal(300, d, i), normal(300, d, 100 + i, shift), gaussian(sigma)) for i in range(30)]
    )
    assert found.mean() == pytest.approx(exact, abs=4 * found.std() / math.sqrt(len(found)))
    assert found.std() < 0.15 * exact  # so that the line above says something


def test_rows_in_blocks_give_what_one_block_gives(
    normal: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(50, 8, 0), normal(30, 8, 1)
    whole = mmd(x, y, KID)
    monkeypatch.setattr("training.evaluating.kernels.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("training.evaluating.kernels.ROWS_OF_OWN", 3)
    assert mmd(x, y, KID) == pytest.approx(whole, rel=1e-12)


def test_the_interval_covers_other_draws_of_the_same_distributions(
    normal: Callable[..., Tensor],
) -> None:
    def score(i: int) -> tuple[float, float, float]:
        weights = (resamples(60, 200, i), resamples(60, 200, 500 + i))
        got = mmd_score(normal(60, 4, i, 0.6), normal(60, 4, 300 + i), polynomial(1 / 4), weights)
        return got.low, got.value, got.high

    scores = [score(i) for i in range(60)]
    exact = np.mean([value for _, value, _ in scores])
    covered = np.mean([low <= exact <= high for low, _, high in scores])
    assert covered >= 0.85  # 0.95 but for 60 tries and a bootstrap of 60 pictures


def test_the_scale_multiplies_all_of_a_score(normal: Callable[..., Tensor]) -> None:
    x, y = normal(20, 4, 0), normal(20, 4, 1)
    weights = (resamples(20, 10, 0), resamples(20, 10, 1))
    plain = mmd_score(x, y, gaussian(), weights)
    scaled = mmd_score(x, y, gaussian(), weights, scale=1000.0)
    for one, other in zip(plain.as_json().values(), scaled.as_json().values(), strict=True):
        assert other == pytest.approx(1000 * one)
    assert plain.value == pytest.approx(mmd(x, y, gaussian()))
    assert torch.is_tensor(weights[0])
