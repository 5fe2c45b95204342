"""What an evaluation found, for people and for programs.

Writes  OUT/scores.json, OUT/trade-off.svg (one more for each further extractor), OUT/nearest.png
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra import storage
from pipeline.pages.contact_sheet import contact_sheet
from training.drawing.pictures import among, find_pictures, read_pictures
from training.drawing.png import png_bytes
from training.evaluating.bootstrap import Score
from training.evaluating.scores import Scores
from training.evaluating.tradeoff import Point, tradeoff_svg

COLUMNS = ("kid", "mmd", "precision", "recall", "clip_similarity", "retrieval_at_1", "near_share")
"""Of the table for people, beside the set and its distance; the rest stands in scores.json."""
NEAREST_COLUMNS = 6
"""Of the sheet of nearest pictures: three pairs a row."""


@dataclass(frozen=True)
class Row:
    """One set of pictures, by one extractor."""

    pictures: str
    guidance_scale: float | None
    extractor: str
    distance_name: str
    """FID, where it may be called so."""
    scores: Scores

    def as_json(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "guidance_scale": self.guidance_scale,
            "extractor": self.extractor,
            "distance": self.distance_name,
            "scores": {name: score.as_json() for name, score in self.scores.items()},
        }

    def shown(self) -> dict[str, object]:
        """For the terminal."""
        shown = {name: _shown(self.scores[name]) for name in COLUMNS if name in self.scores}
        return {
            "pictures": self.pictures,
            "features": self.extractor,
            self.distance_name: _shown(self.scores["frechet"]),
            **{name.replace("_", " "): text for name, text in shown.items()},
        }


def publish_scores(output: str, rows: Sequence[Row], about: dict[str, Any]) -> dict[str, str]:
    url = storage.join(output, "scores.json")
    found = about | {"rows": [row.as_json() for row in rows]}
    storage.publish_text(url, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return {"scores": url}


def publish_tradeoffs(output: str, rows: Sequence[Row]) -> dict[str, str]:
    """A curve for each extractor that knows captions and saw several guidance scales."""
    outputs = {}
    extractors = list(dict.fromkeys(row.extractor for row in rows))
    for number, extractor in enumerate(extractors):
        own = [row for row in rows if row.extractor == extractor]
        drawn = [row for row in own if row.guidance_scale is not None]
        if len(drawn) < 2 or any("clip_similarity" not in row.scores for row in drawn):
            continue
        name = "trade-off" if number == 0 else f"trade-off-{number + 1}"
        url = storage.join(output, f"{name}.svg")
        storage.publish_text(url, _curve(extractor, drawn, own))
        outputs[name] = url
    return outputs


def publish_nearest(
    output: str, drawn_home: str, corpus_home: str, pairs: Sequence[tuple[str, str]], size: int
) -> dict[str, str]:
    """The drawn pictures nearest to the corpus, each with its neighbour on its right."""
    drawn = _pictures(drawn_home, [pair[0] for pair in pairs], size)
    there = _pictures(corpus_home, [pair[1] for pair in pairs], size)
    images, captions = [], []
    for one, other in pairs:
        images += [drawn[one][0], there[other][0]]
        captions += [f"drawn: {drawn[one][1]}", f"corpus: {there[other][1]}"]
    url = storage.join(output, "nearest.png")
    sheet = contact_sheet(images, captions, columns=NEAREST_COLUMNS, tile_size=128)
    storage.publish_bytes(url, png_bytes(sheet, {}))
    return {"nearest": url}


def _pictures(home: str, names: Sequence[str], size: int) -> dict[str, tuple[Any, str]]:
    chunks = among(find_pictures(home), list(names))
    return {
        picture.name: (picture.image, picture.caption or "")
        for chunk in chunks
        for picture in read_pictures(chunk, size)
    }


def _curve(extractor: str, drawn: Sequence[Row], rows: Sequence[Row]) -> str:
    points = [
        Point(f"{row.guidance_scale:g}", row.scores["clip_similarity"], row.scores["frechet"])
        for row in sorted(drawn, key=lambda row: row.guidance_scale or 0.0)
    ]
    real = [row for row in rows if row.guidance_scale is None and "clip_similarity" in row.scores]
    scores = real[0].scores if real else None
    return tradeoff_svg(
        points,
        Point(real[0].pictures, scores["clip_similarity"], scores["frechet"]) if scores else None,
        title=f"Guidance: {drawn[0].distance_name} against captions ({extractor})",
        x_name="similarity of pictures and captions (cosine; more is better)",
        y_name=f"{drawn[0].distance_name} (less is better)",
    )


def _shown(score: Score) -> str:
    """With half the interval's width, for a table that fits the terminal."""
    return f"{_number(score.value)} \N{PLUS-MINUS SIGN} {_number((score.high - score.low) / 2)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
