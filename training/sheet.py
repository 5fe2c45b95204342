"""Sheets of pictures with words under them: the grid of samples and the denoising strip."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_SIDE = 128
"""Smaller pictures are enlarged by a whole factor to about this, so that they can be seen."""
GAP = 8
FONT_SIZE = 15
LINE_HEIGHT = 20
INK = (40, 40, 40)


def draw_grid(captions: Sequence[str], rows: Sequence[Tensor | Sequence[Tensor]]) -> Image.Image:
    """A row of pictures a caption, `[n, 3, H, W]` in [-1, 1], its caption under it."""
    return _sheet([[_shown(image) for image in row] for row in rows], captions, None)


def draw_strip(
    captions: Sequence[str], strips: Sequence[Sequence[Tensor]], timesteps: Sequence[int]
) -> Image.Image:
    """One picture a row on its way out of the noise; over each column stands its step t."""
    labels = [f"t = {t}" for t in timesteps]
    return _sheet([[_shown(frame) for frame in strip] for strip in strips], captions, labels)


def to_picture(image: Tensor) -> Image.Image:
    """`[3, H, W]` in [-1, 1] -> its pixels, rounded to 8 bits."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def _sheet(
    rows: list[list[Image.Image]], captions: Sequence[str], labels: list[str] | None
) -> Image.Image:
    side = max(picture.width for row in rows for picture in row)
    height = max(picture.height for row in rows for picture in row)
    num_columns = max(len(row) for row in rows)
    top = GAP + (LINE_HEIGHT if labels else 0)
    row_height = height + LINE_HEIGHT + GAP
    size = (GAP + num_columns * (side + GAP), top + len(rows) * row_height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for column, label in enumerate(labels or []):
        draw.text((GAP + column * (side + GAP), GAP // 2), label, fill=INK, font=font)
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + i * row_height
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (side + GAP), y))
        text = _shortened(draw, caption, size[0] - 2 * GAP, font)
        draw.text((GAP, y + height + 2), text, fill=INK, font=font)
    return sheet


def _shown(image: Tensor) -> Image.Image:
    """`[3, H, W]` in [-1, 1] -> a picture at least about MIN_SIDE wide."""
    picture = to_picture(image)
    factor = max(1, round(MIN_SIDE / picture.width))
    size = (factor * picture.width, factor * picture.height)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _shortened(
    draw: ImageDraw.ImageDraw,
    text: str,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    """The text, or as much of its beginning as fits the width."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
