"""Pictures with a line or three of text below each, on one sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
LINE_HEIGHT = 1.3
"""Of the font size, leading included."""
NUM_LINES = 3
"""Of a caption; the rest of it is cut, with an ellipsis."""
PAPER, INK, FRAME = "#ffffff", "#222222", "#dddddd"


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int = 5,
    tile_size: int = 160,
) -> Image.Image:
    """An RGB sheet of tiles in reading order; a newline in a caption breaks its line.

    Pictures keep their proportions; one smaller than a tile is enlarged by a whole factor with its
    pixels kept sharp. Transparent parts show the paper.
    """
    assert len(pictures) == len(captions), (len(pictures), len(captions))
    assert columns > 0
    assert tile_size > 0
    font = _font(max(10, tile_size // 12))
    texts = [_wrap(caption, font, tile_size) for caption in captions]
    text_height = round(font.size * LINE_HEIGHT) * max(map(len, texts), default=0)
    cell_width, cell_height = tile_size + MARGIN, tile_size + text_height + 2 * MARGIN
    num_columns = max(1, min(columns, len(pictures)))
    num_rows = -(-len(pictures) // num_columns)
    size = (num_columns * cell_width + MARGIN, max(1, num_rows) * cell_height + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        left = MARGIN + place % num_columns * cell_width
        top = MARGIN + place // num_columns * cell_height
        _paste(sheet, picture, left, top, tile_size)
        draw.rectangle((left - 1, top - 1, left + tile_size, top + tile_size), outline=FRAME)
        for number, line in enumerate(lines):
            below = top + tile_size + MARGIN // 2 + number * round(font.size * LINE_HEIGHT)
            draw.text((left, below), line, fill=INK, font=font)
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, left: int, top: int, tile_size: int) -> None:
    tile = picture.convert("RGBA")
    factor = tile_size / max(tile.size)
    if factor >= 2:
        tile = tile.resize(
            (tile.width * int(factor), tile.height * int(factor)), Image.Resampling.NEAREST
        )
    else:
        size = (max(1, round(tile.width * factor)), max(1, round(tile.height * factor)))
        tile = tile.resize(size, Image.Resampling.LANCZOS)
    place = (left + (tile_size - tile.width) // 2, top + (tile_size - tile.height) // 2)
    sheet.paste(tile, place, tile)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own: Latin with accents; a letter of another script shows as a box.
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """At most NUM_LINES lines that fit the width, broken at spaces where there are any."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            candidate = f"{line} {word}".strip()
            if line and font.getlength(candidate) > width:
                lines.append(line)
                candidate = word
            line = candidate
        lines.append(line)
    if len(lines) > NUM_LINES:
        lines = [*lines[: NUM_LINES - 1], f"{lines[NUM_LINES - 1]} \N{HORIZONTAL ELLIPSIS}"]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix(" \N{HORIZONTAL ELLIPSIS}")
    while line and font.getlength(line + "\N{HORIZONTAL ELLIPSIS}") > width:
        line = line[:-1]
    return line + "\N{HORIZONTAL ELLIPSIS}"
