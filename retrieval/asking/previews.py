"""Hits with their pictures beside them, as text that a terminal draws.

A cell is about twice as high as wide, so COLUMNS x ROWS cells are a square.
"""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.cells import set_cell_size

from retrieval.asking.terminal import Previews, cell_pixels

if TYPE_CHECKING:
    from retrieval.search import Hit

ROWS, COLUMNS = 5, 10
"""Cells of a preview."""
SIDE = 160
"""Pixels of a picture that the terminal scales itself."""
GAP = 2
KITTY_CHUNK = 4096
"""Bytes of base64 in one escape sequence, at most, by the protocol."""
ESCAPE = "\x1b"
BOLD, DIM, PLAIN = f"{ESCAPE}[1m", f"{ESCAPE}[2m", f"{ESCAPE}[0m"


def draw_hits(
    hits: Sequence["Hit"],
    num_folded: Sequence[int],
    pictures: Sequence[Image.Image],
    kind: Previews,
    width: int,
    *,
    true_colour: bool,
) -> str:
    """ROWS lines for each hit, and an empty one; `width` is the terminal's."""
    drawn = []
    for hit, num, picture in zip(hits, num_folded, pictures, strict=True):
        texts = _texts(hit, num, max(width - COLUMNS - GAP - 1, 10))
        if kind == "blocks":
            blocks = _blocks(picture, true_colour)
            lines = [f"{left}{' ' * GAP}{text}" for left, text in zip(blocks, texts, strict=True)]
            drawn.append("\n".join(lines) + "\n\n")
        else:
            drawn.append(_beside(_image(picture, kind), texts))
    return "".join(drawn)


def plain(text: str) -> str:
    """What a terminal only shows: a caption of the web may hold codes that do more than that."""
    return "".join(character if character.isprintable() else " " for character in text)


def _texts(hit: "Hit", num_folded: int, width: int) -> list[str]:
    caption = plain(hit.caption)
    first = set_cell_size(caption, width).rstrip() if caption else ""
    rest = set_cell_size(caption[len(first) :].lstrip(), width).rstrip()
    noun = "copy" if num_folded == 1 else "copies"
    copies = f"  +{num_folded:,} near {noun}" if num_folded else ""
    return [
        f"{BOLD}{hit.rank:,}{PLAIN}  {hit.similarity:.3f}{copies}",
        first,
        rest,
        f"{DIM}{set_cell_size(plain(hit.url), width).rstrip()}{PLAIN}",
        f"{DIM}{hit.uid}{PLAIN}",
    ]


def _beside(image: str, texts: Sequence[str]) -> str:
    """The room is made first, so that the screen does not scroll under the picture."""
    room = "\n" * (ROWS + 1) + f"{ESCAPE}[{ROWS + 1}A"
    lines = "".join(f"{ESCAPE}[{COLUMNS + GAP}C{text}\n" for text in texts)
    return f"{room}{ESCAPE}7{image}{ESCAPE}8\r{lines}\n"


def _image(picture: Image.Image, kind: Previews) -> str:
    if kind == "sixel":
        width, height = cell_pixels()
        return _sixel(_square(picture, min(COLUMNS * width, ROWS * height)))
    buffer = io.BytesIO()
    _square(picture, SIDE).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if kind == "iterm2":
        settings = f"inline=1;width={COLUMNS};height={ROWS};size={len(buffer.getvalue())}"
        return f"{ESCAPE}]1337;File={settings}:{data}\a"
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    sequences = []
    for number, chunk in enumerate(chunks):
        # PNG, put up at once, without an answer and without moving the cursor.
        first = f"a=T,f=100,q=2,C=1,c={COLUMNS},r={ROWS}," if number == 0 else ""
        is_more = int(number < len(chunks) - 1)
        sequences.append(f"{ESCAPE}_G{first}m={is_more};{chunk}{ESCAPE}\\")
    return "".join(sequences)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """RGBA, the whole picture in its middle, the borders transparent."""
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    square = Image.new("RGBA", (side, side))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _blocks(picture: Image.Image, true_colour: bool) -> list[str]:
    pixels = np.asarray(_square(picture, COLUMNS))  # [10, 10, 4]
    lines = []
    for top, bottom in zip(pixels[0::2], pixels[1::2], strict=True):
        cells = [_cell(*pair, true_colour) for pair in zip(top, bottom, strict=True)]
        lines.append("".join(cells) + PLAIN)
    return lines


def _cell(top: np.ndarray, bottom: np.ndarray, true_colour: bool) -> str:
    if not top[3] and not bottom[3]:
        return f"{PLAIN} "
    if not bottom[3]:
        return f"{PLAIN}{ESCAPE}[38;{_colour(top, true_colour)}m\N{UPPER HALF BLOCK}"
    lower = f"{ESCAPE}[48;{_colour(bottom, true_colour)}m"
    if not top[3]:
        return f"{PLAIN}{ESCAPE}[38;{_colour(bottom, true_colour)}m\N{LOWER HALF BLOCK}"
    return f"{ESCAPE}[38;{_colour(top, true_colour)}m{lower}\N{UPPER HALF BLOCK}"


def _colour(pixel: np.ndarray, true_colour: bool) -> str:
    red, green, blue = (int(value) for value in pixel[:3])
    if true_colour:
        return f"2;{red};{green};{blue}"
    # xterm's cube of 6 x 6 x 6 colours.
    levels = [round(value / 255 * 5) for value in (red, green, blue)]
    return f"5;{16 + 36 * levels[0] + 6 * levels[1] + levels[2]}"


def _sixel(picture: Image.Image) -> str:
    """At most 255 colours; what is transparent is left as it is."""
    pixels = np.asarray(picture)
    palette_image = picture.convert("RGB").quantize(255)
    colours = np.array(palette_image.getpalette(), np.int64).reshape(-1, 3)
    places = np.where(pixels[:, :, 3] > 0, np.asarray(palette_image, np.int64), -1)
    height, width = places.shape
    text = [f'{ESCAPE}P0;1q"1;1;{width};{height}']  # 1: what is not drawn stays
    for number in np.unique(places[places >= 0]):
        red, green, blue = (round(value / 255 * 100) for value in colours[number])
        text.append(f"#{number};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        band = places[top : top + 6]
        weights = (1 << np.arange(len(band)))[:, None]
        for number in np.unique(band[band >= 0]):
            bits = ((band == number) * weights).sum(axis=0)
            text.append(f"#{number}{_runs(bits)}$")
        text.append("-")
    return "".join(text) + f"{ESCAPE}\\"


def _runs(bits: np.ndarray) -> str:
    """Columns of six pixels each as characters, repetitions counted."""
    ends = [*np.flatnonzero(np.diff(bits)), len(bits) - 1]
    text, start = "", 0
    for end in ends:
        num, character = end - start + 1, chr(63 + bits[end])
        text += f"!{num}{character}" if num > 3 else character * num
        start = end + 1
    return text
