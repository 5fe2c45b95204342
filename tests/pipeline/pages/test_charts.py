import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.charts import Values, curve, histogram, number, threshold


def values(*numbers: float) -> Values:
    return np.array(numbers, np.float64)


def test_the_threshold_is_the_kept_value_next_to_the_dropped() -> None:
    assert threshold(values(5, 6, 9), values(1, 4)) == 5
    assert threshold(values(1, 4), values(5, 6)) == 4


def test_there_is_no_threshold_where_one_value_does_not_part_them() -> None:
    assert threshold(values(1, 5), values(3)) is None
    assert threshold(values(1, 5), values()) is None


def test_whole_numbers_get_a_bar_each() -> None:
    chart = histogram(values(3, 3, 4), values(1))
    assert [bar.passed for bar in chart.bars if bar.passed] == [100, 50]
    assert [bar.failed for bar in chart.bars if bar.failed] == [50]
    assert chart.threshold is not None
    assert chart.threshold.label == "3"


def test_far_tails_make_the_axis_logarithmic() -> None:
    assert histogram(values(*[1] * 50, 10, 2000), values()).is_log
    assert not histogram(values(*range(50)), values()).is_log


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50).filter(lambda v: len(set(v)) > 1))
def test_bars_stay_in_the_box_and_hold_every_value(numbers: list[float]) -> None:
    chart = histogram(values(*numbers), values())
    assert chart.bars
    for bar in chart.bars:
        assert -1e-6 <= bar.left <= bar.left + bar.width <= 100 + 1e-6
        assert 0 < bar.passed <= 100
    assert all(0 <= tick.percent <= 100 for tick in chart.ticks)


def test_a_curve_falls_from_the_top_left_to_the_bottom_right() -> None:
    drawn = curve([0, 10, 20], [1.0, 0.1, 0.01])
    assert drawn.points == "0.00,0.00 50.00,50.00 100.00,100.00"
    assert [tick.label for tick in drawn.x_ticks] == ["0", "10", "20"]
    assert drawn.y_ticks[0].percent == pytest.approx(0)


def test_numbers_are_short() -> None:
    assert [number(value) for value in (1234, 0.28, 2.0, 12345.6)] == [
        "1,234", "0.28", "2", "12,346",
    ]  # fmt: skip
