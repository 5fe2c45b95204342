from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from training.evaluating.bootstrap import resamples
from training.evaluating.frechet import Gaussian, frechet_distance, frechet_score


def covariance(seed: int, d: int = 6) -> np.ndarray:
    half = np.random.default_rng(seed).standard_normal((d, d))
    return half @ half.T + 0.1 * np.eye(d)


def gaussian(mean: np.ndarray, cov: np.ndarray) -> Gaussian:
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(np.linalg.cholesky(cov).T.copy()))


def test_gaussians_with_commuting_covariances_have_the_closed_form() -> None:
    # d^2 = |mu_1 - mu_2|^2 + sum (sigma_1 - sigma_2)^2 along common axes
    one = Gaussian(torch.tensor([1.0, 2.0, 0.0]), torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    other = Gaussian(torch.tensor([0.0, 2.0, 2.0]), torch.diag(torch.tensor([4.0, 2.0, 1.0])))
    assert frechet_distance(one, other) == pytest.approx(5 + 9 + 0 + 4)


def test_any_covariances_agree_with_scipys_square_root_of_a_matrix() -> None:
    rng = np.random.default_rng(2)
    mean_1, mean_2 = rng.standard_normal((2, 6))
    cov_1, cov_2 = covariance(0), covariance(1)
    root = scipy.linalg.sqrtm(cov_1 @ cov_2).real
    expected = ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2 - 2 * root)
    got = frechet_distance(gaussian(mean_1, cov_1), gaussian(mean_2, cov_2))
    assert got == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [200, 12])
def test_features_give_what_torch_fidelity_gives_even_fewer_than_their_width(
    normal: Callable[..., Tensor], n: int
) -> None:
    one, other = normal(n, 16, 0), normal(n, 16, 1, mean=0.3, scale=1.4)
    stats = [fid_features_to_statistics(features) for features in (one, other)]
    (expected,) = fid_statistics_to_metric(*stats, verbose=False).values()
    got = frechet_distance(Gaussian.fitted(one), Gaussian.fitted(other))
    # Its general eigenvalues of a singular product are off by the root of the rounding.
    assert got == pytest.approx(expected, rel=1e-9 if n > 16 else 1e-5)


def test_a_set_has_no_distance_to_itself_and_a_shift_its_own_square(
    normal: Callable[..., Tensor],
) -> None:
    features = normal(50, 8, 0)
    fitted, shifted = Gaussian.fitted(features), Gaussian.fitted(features + 0.5)
    assert frechet_distance(fitted, fitted) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(fitted, shifted) == pytest.approx(8 * 0.25)


def test_whole_weights_count_as_repeated_rows(normal: Callable[..., Tensor]) -> None:
    features = normal(5, 3, 0)
    weights = torch.tensor([2.0, 0.0, 1.0, 3.0, 1.0], dtype=torch.float64)
    repeated = features.repeat_interleave(weights.long(), 0)
    assert frechet_distance(
        Gaussian.fitted(features, weights), Gaussian.fitted(repeated)
    ) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(Gaussian.fitted(features, weights).mean, repeated.mean(0))


def test_the_interval_holds_the_value_and_narrows_with_more_pictures(
    normal: Callable[..., Tensor],
) -> None:
    widths = []
    for n in (50, 800):
        weights = (resamples(n, 60, 0), resamples(n, 60, 1))
        score = frechet_score(normal(n, 4, 0, mean=1), normal(n, 4, 1), weights)
        assert score.low < score.value < score.high
        widths.append(score.high - score.low)
    assert widths[1] < widths[0] / 2  # a quarter, by 1 / sqrt(n)
