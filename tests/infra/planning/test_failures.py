"""Closed forms against the simulation, and against what the papers say of them."""

import math

import numpy as np
import pytest

from infra.planning.failures import (
    MONTH_S,
    Losses,
    daly_interval_s,
    goodput,
    live_share,
    simulated_goodput,
    simulated_live_share,
    young_interval_s,
)

HOUR_S = 3600.0


@pytest.mark.parametrize("mean_between_s", [0.5 * HOUR_S, 5 * HOUR_S])
@pytest.mark.parametrize("interval_s", [300.0, 1800.0])
def test_the_simulation_agrees_with_dalys_closed_form(
    mean_between_s: float, interval_s: float
) -> None:
    random = np.random.default_rng(0)
    expected = goodput(interval_s, 60, 300, mean_between_s)
    played = simulated_goodput(interval_s, 60, 300, mean_between_s, 5000, random)
    assert played == pytest.approx(expected, rel=0.02)


def test_dalys_interval_is_the_best_one() -> None:
    best = daly_interval_s(60, 5 * HOUR_S)
    of_best = goodput(best, 60, 300, 5 * HOUR_S)
    for factor in (0.5, 0.8, 1.25, 2):
        assert goodput(factor * best, 60, 300, 5 * HOUR_S) < of_best


def test_youngs_interval_is_dalys_where_losses_are_rare() -> None:
    assert daly_interval_s(1, 1e8) == pytest.approx(young_interval_s(1, 1e8), rel=1e-3)
    assert young_interval_s(60, 3000) == pytest.approx(600)  # sqrt(2 * 60 * 3000)


def test_saving_that_takes_longer_than_machines_live_is_done_as_rarely_as_they_are_lost() -> None:
    assert daly_interval_s(100, 40) == 40


def test_without_losses_only_saving_costs() -> None:
    assert goodput(540, 60, 300, math.inf) == pytest.approx(0.9)
    assert Losses(math.inf, 540, 60, 300).simulated(1e6, np.random.default_rng(0)) == 0.9


def test_an_interval_that_is_never_finished_gives_nothing_and_is_not_played_through() -> None:
    assert goodput(1e6, 0, 0, 10) == 0
    assert Losses(10, 1e6, 0, 0).simulated(1e6, np.random.default_rng(0)) == 0


def test_links_die_link_by_link_as_the_closed_form_says() -> None:
    random = np.random.default_rng(0)
    expected = live_share(6 * MONTH_S, 2 * MONTH_S, 0.01)
    assert expected == pytest.approx(0.99**7, abs=1e-4)  # in the mean they are seven months old
    played = simulated_live_share(6 * MONTH_S, 2 * MONTH_S, 0.01, 100_000, random)
    assert played == pytest.approx(expected, abs=0.003)


def test_links_that_do_not_rot_all_live() -> None:
    assert live_share(MONTH_S, MONTH_S, 0) == 1
    assert simulated_live_share(MONTH_S, MONTH_S, 0, 100, np.random.default_rng(0)) == 1
