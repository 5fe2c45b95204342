"""What previews draw, read back as a terminal reads it."""

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrieval.asking.previews import COLUMNS, ROWS, draw_hits, plain
from retrieval.asking.terminal import Previews
from retrieval.search import Hit

HOSTILE = "a cat\x1b]0;owned\a\x1b[2J\u202e gnp.exe\nsecond line\x9b31m"


def hit(rank: int = 1, caption: str = "a red half and a blue half") -> Hit:
    known: dict[str, Any] = {"uid": "0" * 32, "key": "0", "shard": "0", "url": "http://x/y.png"}
    return Hit(rank=rank, similarity=0.5, row=0, caption=caption, metadata={}, **known)


@pytest.fixture
def picture() -> Image.Image:
    """Red above, blue below, twice as wide as high."""
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 10, 40, 20))
    return picture


def draw(kind: Previews, picture: Image.Image, caption: str = "a cat", *, true: bool = True) -> str:
    return draw_hits([hit(caption=caption)], [3], [picture], kind, 60, true_colour=true)


def test_kitty_gets_the_picture_in_chunks_that_it_takes() -> None:
    noise = Image.effect_noise((200, 100), 80).convert("RGB")
    text = draw("kitty", noise)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert len(chunks) > 1
    assert f"a=T,f=100,q=2,C=1,c={COLUMNS},r={ROWS},m=1" == chunks[0][0]
    assert [settings for settings, _ in chunks[1:]] == ["m=1"] * (len(chunks) - 2) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in chunks)
    png = base64.b64decode("".join(data for _, data in chunks))
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.size == (160, 160)
        assert opened.convert("RGBA").getpixel((0, 0)) == (0, 0, 0, 0)


def test_iterm2_gets_the_picture_inline(picture: Image.Image) -> None:
    found = re.search(r"\x1b\]1337;File=([^:]*):([^\a]*)\a", draw("iterm2", picture))
    assert found is not None
    data = base64.b64decode(found[2])
    assert f"inline=1;width={COLUMNS};height={ROWS};size={len(data)}" == found[1]
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.convert("RGB").getpixel((80, 60)) == (255, 0, 0)


def test_sixels_are_the_picture(picture: Image.Image) -> None:
    found = re.search(r"\x1bP0;1q(.*)\x1b\\", draw("sixel", picture), re.DOTALL)
    assert found is not None
    pixels = decode_sixel(found[1])
    height, width = pixels.shape[:2]
    assert (width, height) == (100, 100)  # ten cells of 10 x 20 by five
    assert tuple(pixels[35, 50]) == (100, 0, 0)
    assert tuple(pixels[65, 50]) == (0, 0, 100)
    assert (pixels[5] == -1).all()  # the border is left as the terminal has it


def decode_sixel(text: str) -> np.ndarray:
    """[H, W, 3] in percent, -1 where nothing is drawn."""
    found = re.match(r'"1;1;(\d+);(\d+)', text)
    assert found is not None
    width, height = int(found[1]), int(found[2])
    pixels = np.full((height + 6, width, 3), -1)
    colours: dict[int, tuple[int, ...]] = {}
    x = y = colour = 0
    for number, rgb, repeat, character, move in re.findall(
        r"#(\d+)(?:;2;([\d;]+))?|(?:!(\d+))?([?-~])|([$-])", text[found.end() :]
    ):
        if number:
            colour = int(number)
            if rgb:
                colours[colour] = tuple(map(int, rgb.split(";")))
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        else:
            end = x + int(repeat or 1)
            for bit in range(6):
                if (ord(character) - 63) >> bit & 1:
                    pixels[y + bit, x:end] = colours[colour]
            x = end
    return pixels[:height]


@pytest.mark.parametrize(
    ("true", "red", "blue"),
    [(True, "2;255;0;0", "2;0;0;255"), (False, "5;196", "5;21")],
)
def test_blocks_are_two_pixels_a_cell(true: bool, red: str, blue: str) -> None:
    picture = Image.new("RGB", (10, 10), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 5, 10, 10))
    drawn = draw("blocks", picture, true=true).split("\n")[:ROWS]
    lines = [line[: line.index("\x1b[0m")] for line in drawn]
    cell = "\x1b[38;{}m\x1b[48;{}m\N{UPPER HALF BLOCK}"
    both = [(red, red), (red, red), (red, blue), (blue, blue), (blue, blue)]
    assert lines == [cell.format(*colours) * COLUMNS for colours in both]


def test_the_border_of_blocks_is_the_terminals_ground(picture: Image.Image) -> None:
    first = draw("blocks", picture).split("\n")[0]
    assert re.sub(r"\x1b\[0m", "", first)[:COLUMNS] == " " * COLUMNS


@pytest.mark.parametrize("kind", ["kitty", "iterm2", "sixel", "blocks"])
def test_a_hostile_caption_is_text(picture: Image.Image, kind: Previews) -> None:
    harmless, hostile = draw(kind, picture, "a cat"), draw(kind, picture, HOSTILE)
    assert hostile.count("\x1b") == harmless.count("\x1b")
    assert hostile.count("\n") == harmless.count("\n")
    assert "\u202e" not in hostile
    assert "\x9b" not in hostile
    assert "owned" in hostile


def test_lines_fit_the_terminal_and_each_hit_takes_as_many(picture: Image.Image) -> None:
    wide = "猫" * 100
    text = draw_hits(
        [hit(1, wide), hit(2, "")], [0, 0], [picture] * 2, "blocks", 40, true_colour=True
    )
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).split("\n")
    assert len(lines) == 2 * (ROWS + 1) + 1
    assert lines[1].count("猫") == lines[2].count("猫") == 13  # 27 columns of two each


def test_plain_text_stays_as_it_is() -> None:
    assert plain("naïve 猫 😀 «x»") == "naïve 猫 😀 «x»"
