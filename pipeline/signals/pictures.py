"""A shard's pictures, decoded once and scored in batches; what can't be decoded scores null.

Reads   ROOT/shards/<shard>.tar
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
from PIL import Image

from pipeline.corpus import Shard, iter_samples
from pipeline.pixels.picture_header import DECODER_ERRORS
from pipeline.pixels.stored_picture import open_picture
from pipeline.sample import Sample

MAX_AREA = Image.MAX_IMAGE_PIXELS or 1 << 26
"""Pixels beyond which Pillow speaks of a bomb; by the header, before anything is decoded."""

Scores = Mapping[str, Any]
"""One picture's values by column; a column left out is null."""

ScoreBatch = Callable[[Sequence[tuple[Sample, Image.Image]]], Sequence[Scores]]


def score_pictures(
    root: str, shard: Shard, schema: pa.Schema, score: ScoreBatch, *, side: int, batch_size: int
) -> pa.Table:
    """uid and the schema's columns, one row a sample; JPEGs are decoded at no more than they need.

    `score` is given pictures in RGB, as many at once as `batch_size`.
    """
    rows: list[Scores] = []
    samples = iter_samples(root, shard)
    while batch := list(islice(samples, batch_size)):
        rows += _score_batch(batch, score, side)
    return pa.Table.from_pylist(rows, pa.schema([("uid", pa.string()), *schema]))


def _score_batch(batch: Sequence[Sample], score: ScoreBatch, side: int) -> Iterator[Scores]:
    decoded = [(sample, decode(sample.image, "RGB", side)) for sample in batch]
    good = [(sample, picture) for sample, picture in decoded if picture is not None]
    scores = iter(score(good) if good else ())
    for sample, picture in decoded:
        yield {"uid": sample.uid, **(next(scores) if picture is not None else {})}


def decode(data: bytes, mode: Literal["L", "RGB"], side: int) -> Image.Image | None:
    """None for what can't be decoded whole. A JPEG comes out at a half, a quarter or an eighth of
    its size where both sides stay at least `side`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file that decodes
            with open_picture(data) as picture:
                if picture.width * picture.height > MAX_AREA:
                    return None
                picture.draft(mode, (side, side))
                return picture.convert(mode)
    except DECODER_ERRORS:
        return None
