import numpy as np
from PIL import Image

from pipeline.pages.contact_sheet import MARGIN, NUM_LINES, _font, _wrap, contact_sheet


def test_tiles_stand_in_reading_order() -> None:
    colors = ["red", "lime", "blue", "yellow"]
    sheet = contact_sheet([Image.new("RGB", (64, 64), c) for c in colors], colors, 3, 64)
    step = 64 + MARGIN
    row_height = (sheet.height - MARGIN) // 2
    middles = [
        (column * step + MARGIN + 32, row * row_height + MARGIN + 32)
        for row in (0, 1)
        for column in (0, 1, 2)
    ]
    found = [sheet.getpixel(middle) for middle in middles]
    assert found[:4] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    assert found[4:] == [(255, 255, 255)] * 2


def test_small_pictures_keep_sharp_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet([Image.fromarray(pixels)], [""], 1, 64))
    tile = sheet[MARGIN : MARGIN + 64, MARGIN : MARGIN + 64]
    np.testing.assert_array_equal(tile[2::4, 2::4], pixels)


def test_transparent_parts_show_the_paper() -> None:
    sheet = contact_sheet([Image.new("RGBA", (64, 64), (255, 0, 0, 0))], [""], 1, 64)
    assert sheet.getpixel((MARGIN + 32, MARGIN + 32)) == (255, 255, 255)


def test_captions_are_drawn_and_never_wider_than_their_tile() -> None:
    font = _font(12)
    for text in ("a cat\n0.31", "word " * 60, "x" * 400, ""):
        lines = _wrap(text, font, 100)
        assert len(lines) <= NUM_LINES
        assert all(font.getlength(line) <= 100 for line in lines)
    assert _wrap("a cat\n0.31", font, 100) == ["a cat", "0.31"]
    blank = contact_sheet([Image.new("RGB", (64, 64))], [" "], 1, 64)
    written = contact_sheet([Image.new("RGB", (64, 64))], ["cat"], 1, 64)
    assert blank.size == written.size
    assert blank.tobytes() != written.tobytes()


def test_no_pictures_make_an_empty_sheet() -> None:
    assert contact_sheet([], []).getextrema() == ((255, 255),) * 3
