"""The trade-off that guidance makes, as a picture: likeness to the corpus against the captions.

A curve through one point a guidance scale, with both scores' intervals; the cross is the corpus
itself, measured by pictures that were not compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.pages.charts import number, round_values
from training.evaluating.bootstrap import Score

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 44, 56
INK, GRID, LINE, REAL = "#222222", "#e4e4e4", "#3566a8", "#b0483a"
MARGIN = 0.08
"""Of the data's span, around it."""


@dataclass(frozen=True)
class Point:
    label: str
    x: Score
    y: Score


@dataclass(frozen=True)
class Axis:
    """From values to places in the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, scores: Sequence[Score], start: float, end: float) -> "Axis":
        low, high = min(s.low for s in scores), max(s.high for s in scores)
        margin = MARGIN * (high - low) or 1.0
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        return round_values(self.low, self.high)


def tradeoff_svg(
    points: Sequence[Point], real: Point | None, title: str, x_name: str, y_name: str
) -> str:
    """An SVG that needs nothing beside it."""
    all_points = [*points, *([real] if real else [])]
    x = Axis.around([point.x for point in all_points], LEFT, WIDTH - RIGHT)
    y = Axis.around([point.y for point in all_points], HEIGHT - BOTTOM, TOP)
    line = " ".join(f"{x.at(p.x.value)},{y.at(p.y.value)}" for p in points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 26, title, size=15),
        *_grid(x, y),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, anchor="middle"),
        f'<g transform="rotate(-90)">{_text(-(TOP + HEIGHT - BOTTOM) / 2, 18, y_name, "middle")}'
        "</g>",
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5"/>',
        *(mark for point in points for mark in _point(point, x, y, LINE)),
        *(_point(real, x, y, REAL) if real else []),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _grid(x: Axis, y: Axis) -> list[str]:
    marks = []
    for value in x.ticks():
        at = x.at(value)
        marks.append(_line(at, TOP, at, HEIGHT - BOTTOM, GRID))
        marks.append(_text(at, HEIGHT - BOTTOM + 18, number(value), anchor="middle"))
    for value in y.ticks():
        at = y.at(value)
        marks.append(_line(LEFT, at, WIDTH - RIGHT, at, GRID))
        marks.append(_text(LEFT - 8, at + 4, number(value), anchor="end"))
    return marks


def _point(point: Point, x: Axis, y: Axis, colour: str) -> list[str]:
    """A dot, its two intervals, and its label."""
    at_x, at_y = x.at(point.x.value), y.at(point.y.value)
    return [
        _line(x.at(point.x.low), at_y, x.at(point.x.high), at_y, colour, opacity=0.4),
        _line(at_x, y.at(point.y.low), at_x, y.at(point.y.high), colour, opacity=0.4),
        f'<circle cx="{at_x}" cy="{at_y}" r="4" fill="{colour}"/>',
        # Towards the middle, for the picture has an edge.
        _text(at_x - 7, at_y - 7, point.label, anchor="end")
        if at_x > WIDTH * 0.75
        else _text(at_x + 7, at_y - 7, point.label),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" '
        f'stroke-opacity="{opacity}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
