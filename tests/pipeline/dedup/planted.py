"""Emoji that look unlike each other, copies of them made in many ways, and what the stage says of
a corpus of both."""

import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from infra.cluster import Workers
from infra.summary import Summary
from pipeline.corpus import read_columns
from pipeline.dedup import stage

PICTURES = Path(__file__).parents[3] / "examples" / "emoji" / "pictures.zip"
NAMES = (
    "1f34e 1f418 1f681 1f3e0 1f98b 1f3b8 1f6b2 1f451 1f4a1 1f433 1f345 1f380 1f40c 1f33b 1f96a "
    "1f682 1f9a9 1f344 1f9c0 1f3b2"
).split()
"""Emoji that look like no other of these."""
HERE = Workers(local=True)

Picture = tuple[str, bytes]
"""Caption and bytes."""
WriteCorpus = Callable[..., str]


@cache
def original(number: int) -> Image.Image:
    """[128, 128] on white."""
    with zipfile.ZipFile(PICTURES) as archive:
        picture = Image.open(io.BytesIO(archive.read(f"{NAMES[number]}.png"))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=quality)
    return file.getvalue()


def same_pixels(picture: Image.Image) -> bytes:
    return encoded(Image.open(io.BytesIO(encoded(picture))), "PNG")


def watermarked(picture: Image.Image) -> bytes:
    marked = picture.copy()
    font = ImageFont.load_default(16)
    ImageDraw.Draw(marked, "RGBA").text((64, 64), "SAMPLE", (255, 255, 255, 150), font, anchor="mm")
    return encoded(marked)


COPIES: dict[str, tuple[Callable[[Image.Image], bytes], str, float]] = {
    "same bytes": (encoded, "bytes", 1.0),
    "same pixels": (same_pixels, "pixels", 1.0),
    "resized": (lambda picture: encoded(picture.resize((64, 64))), "perceptual", 0.9),
    "recompressed": (lambda picture: encoded(picture, quality=30), "perceptual", 0.9),
    "trimmed by a pixel": (
        lambda picture: encoded(picture.crop((1, 1, 128, 128))),
        "perceptual",
        0.8,
    ),
    "watermarked": (watermarked, "perceptual", 0.9),
    "mirrored": (
        lambda picture: encoded(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "mirrored",
        0.9,
    ),
}
"""How a copy is made, the evidence that it leaves, and the recall that is asked for."""


def url_of(number: int) -> str:
    return f"https://example.org/{number}.jpg"


def originals() -> list[Picture]:
    return [("a picture", encoded(original(number))) for number in range(len(NAMES))]


def with_copies(kind: str) -> list[Picture]:
    """The originals, and after them a copy of each."""
    make, _, _ = COPIES[kind]
    return originals() + [("a copy", make(original(number))) for number in range(len(NAMES))]


def run(root: str, **settings: Any) -> Summary:
    return stage.run(stage.Config(root=root, **{"workers": HERE, **settings}))


def rows_of(root: str) -> list[dict[str, Any]]:
    """The columns, with `of` the number of the sample that stays instead of this one."""
    rows: list[dict[str, Any]] = read_columns(root, "duplicates").to_pylist()
    numbers = {row["uid"]: number for number, row in enumerate(rows)}
    return [row | {"of": numbers.get(row["duplicate_of"])} for row in rows]


def files_of(root: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(root, "columns/duplicates").iterdir()}
