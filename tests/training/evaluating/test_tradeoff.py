import xml.etree.ElementTree as ET

from training.evaluating.bootstrap import Score
from training.evaluating.tradeoff import Axis, Point, tradeoff_svg

SVG = "{http://www.w3.org/2000/svg}"


def point(label: str, x: float, y: float) -> Point:
    return Point(label, Score(x, x - 0.01, x + 0.01), Score(y, y - 2, y + 2))


def test_the_curve_passes_its_points_in_order_and_all_lie_inside() -> None:
    points = [point("1", 0.2, 30), point("2 < 3", 0.25, 20), point("5", 0.3, 25)]
    root = ET.fromstring(tradeoff_svg(points, point("real", 0.35, 5), "T", "x", "y"))
    (line,) = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[1][1] > places[2][1] > places[0][1]  # y grows downwards
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert circles[:3] == places
    assert len(circles) == 4
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert all(0 < x < width and 0 < y < height for x, y in circles)
    assert "2 < 3" in [text.text for text in root.iter(f"{SVG}text")]


def test_scores_that_are_all_the_same_still_make_an_axis() -> None:
    axis = Axis.around([Score(1.0, 1.0, 1.0)], 0, 100)
    assert axis.at(1.0) == 50
    assert axis.ticks()
