import numpy as np
import torch

from training.evaluating.bootstrap import mean_score, resamples, score_of


def test_resamples_are_draws_with_replacement_and_the_same_each_time() -> None:
    weights = resamples(40, 500, seed=3)
    assert (weights.sum(1) == 40).all()
    # A picture is left out of a resample with probability (1 - 1/n)^n.
    assert abs((weights == 0).double().mean().item() - (1 - 1 / 40) ** 40) < 0.01
    assert torch.equal(weights, resamples(40, 500, seed=3))
    assert not torch.equal(weights, resamples(40, 500, seed=4))


def test_intervals_of_a_mean_hold_the_truth_19_times_of_20() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(300):
        values = torch.from_numpy(rng.exponential(size=100))  # its mean is 1
        score = mean_score(values, resamples(100, 200, i))
        covered += score.low <= 1 <= score.high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_bias_of_the_resamples_does_not_move_the_interval_off_its_value() -> None:
    score = score_of(1.0, torch.linspace(4.0, 6.0, 101, dtype=torch.float64))
    assert (score.value, round(score.low, 3), round(score.high, 3)) == (1.0, 0.05, 1.95)
