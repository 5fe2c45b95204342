"""Numbers -> what a chart on a page is drawn from: places in percent, paths, ticks.

Shapes are given in a box of 100 x 100 that the page stretches; words and ticks stay HTML, so that
they keep their size on a narrow screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 48
TAIL = 0.995
"""Share of the values that the axis spans; the last bin takes the rest."""
LOG_RATIO = 30
"""An axis is logarithmic where the largest value is so many times the median."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Tick:
    percent: float
    """From the left, or from the bottom."""
    label: str


@dataclass(frozen=True)
class Bar:
    left: float
    width: float
    passed: float
    """Heights in percent of the box; `failed` stands on `passed`."""
    failed: float


@dataclass(frozen=True)
class Histogram:
    bars: list[Bar]
    ticks: list[Tick]
    threshold: Tick | None
    is_log: bool


@dataclass(frozen=True)
class Curve:
    points: str
    """SVG's points of a polyline, y from the top."""
    smooth: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def histogram(passed: Values, failed: Values) -> Histogram:
    """How a score is spread over what a rule keeps and what it drops.

    Either may be empty; together they hold two different values at least.
    """
    values = np.concatenate([passed, failed])
    assert np.unique(values).size > 1, "nothing to draw"
    edges, is_log = _edges(values)
    heights = [
        np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for part in (passed, failed)
    ]
    top = max(int((heights[0] + heights[1]).max()), 1)
    places = _places(edges, edges, is_log)
    bars = [
        Bar(places[i], places[i + 1] - places[i], 100 * keep / top, 100 * drop / top)
        for i, (keep, drop) in enumerate(zip(*heights, strict=True))
        if keep or drop
    ]
    line = threshold(passed, failed)
    return Histogram(
        bars=bars,
        ticks=_ticks(edges, is_log),
        threshold=None if line is None else _tick(line, edges, is_log),
        is_log=is_log,
    )


def threshold(passed: Values, failed: Values) -> float | None:
    """The kept value next to the dropped ones, where one value parts them."""
    if not passed.size or not failed.size:
        return None
    if failed.max() < passed.min():
        return float(passed.min())
    if failed.min() > passed.max():
        return float(passed.max())
    return None


def curve(x: Sequence[float], y: Sequence[float], half_life: float = 0.02) -> Curve:
    """A line and its running average (`half_life` is a share of the line), y logarithmic."""
    logs = np.log(np.maximum(np.asarray(y, np.float64), 1e-12))
    low, high = float(logs.min()), float(logs.max())
    span, width = max(high - low, 1e-9), max(float(x[-1] - x[0]), 1e-9)
    across = [100 * (value - x[0]) / width for value in x]

    def points(values: Values) -> str:
        up = 100 - 100 * (values - low) / span
        return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(across, up, strict=True))

    decay = 0.5 ** (1 / max(half_life * len(logs), 1))
    return Curve(
        points=points(logs),
        smooth=points(_running_average(logs, decay)),
        x_ticks=[
            Tick(0, number(x[0])),
            Tick(50, number(x[0] + width / 2)),
            Tick(100, number(x[-1])),
        ],
        y_ticks=[
            Tick(100 * (math.log(value) - low) / span, number(value))
            for value in np.exp(np.linspace(low, high, 4)).tolist()
        ],
    )


def number(value: float) -> str:
    """Short and readable: 1,234 12.3 0.28 0.0012."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _running_average(values: Values, decay: float) -> Values:
    """Exponential, corrected for its start."""
    out, mean, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out[i] = mean / weight
    return out


def _edges(values: Values) -> tuple[Values, bool]:
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high > LOG_RATIO * float(np.median(values))
    if is_log:
        return np.geomspace(low, high, MAX_BINS // 2 + 1), True
    high = max(float(np.quantile(values, TAIL)), float(np.nextafter(low, high)))
    is_whole = bool(np.all(values == np.round(values)))
    if is_whole:
        step = math.ceil((high - low + 1) / MAX_BINS)
        return np.arange(low, high + step + 1, step) - 0.5, False
    low = float(np.quantile(values, 1 - TAIL))
    return np.linspace(low, high, MAX_BINS + 1), False


def _places(values: Values, edges: Values, is_log: bool) -> list[float]:
    """In percent of the axis, within it."""
    if is_log:
        values, edges = np.log(values), np.log(edges)
    share = (values - edges[0]) / (edges[-1] - edges[0])
    return [float(place) for place in 100 * np.clip(share, 0, 1)]


def _tick(value: float, edges: Values, is_log: bool) -> Tick:
    (place,) = _places(np.array([value]), edges, is_log)
    return Tick(place, number(value))


def _ticks(edges: Values, is_log: bool) -> list[Tick]:
    low, high = float(edges[0]), float(edges[-1])
    if is_log:
        exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high)) + 1)
        return [_tick(10.0**exponent, edges, is_log) for exponent in exponents]
    return [_tick(value, edges, is_log) for value in round_values(low, high)]


def round_values(low: float, high: float) -> list[float]:
    """Three to six between the two, a round step apart: 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda one: abs(one - raw))
    first = math.ceil(low / step) * step
    return [round(first + i * step, 12) for i in range(int((high - first) / step) + 1)]
