import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.picture_hash import (
    MATCH,
    POSITIONS,
    Pixels,
    Position,
    dihedral_hashes,
    distance,
    from_hex,
    picture_hash,
    to_hex,
)

PICTURES = Path(__file__).parents[2] / "examples" / "emoji" / "pictures.zip"

GOLDEN_EMOJI = {
    "1f600.png": "1e991a4bd693697c5a4ba593a9585e1e85e15861569ee593ea851a6e1165e5f8",
    "1f431.png": "c972228d5df6da7022598f9ebf3430e3cedbc30629a6f8cbc20923227de494e9",
    "1f3e0.png": "9689d826507cd8f4aa7c28769d3e74bcfad4c2da6b4b07292fa197237816685c",
}
GOLDEN_WAVES = {
    (5, 5): ("ce73318c318cce733b0e64d99b369b2664d9318cce73319c318cce733b0e64d9", 5),
    (9, 7): ("3988c387dc7a68dddc793384c4db4c793b24c47be387952a2b853c78c6539f20", 8),
    (64, 64): ("78560bc37a560bc3785e0bc3785ecbc39a5eb3c3865eb4c3859eb43387a6a029", 34),
    (97, 120): ("31577f78b9cff37835d72a98bba7435835476a184147bb58de0755f842250007", 99),
    (256, 256): ("a879ff83f079ae83a069ff930079ff830079fe835469f983007f007eff840078", 100),
    (256, 341): ("a1f3f607a9f3b68301517605a1f3b607a1f3b605e1514ea701df09f6fe0c09f1", 100),
    (512, 300): ("a2d3ad5982d3ad51f8825338005352af00ea00ffff3452e6fd8c523cf9f0f785", 100),
}
"""Hash and quality by (height, width), as pdqhash 0.2.8 gives them: Facebook's C++."""


def emoji(name: str) -> Pixels:
    with zipfile.ZipFile(PICTURES) as archive:
        picture = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return np.asarray(page.convert("RGB"))


def waves(height: int, width: int) -> Pixels:
    """A picture that is the same everywhere, of any size."""
    row, column = np.mgrid[:height, :width]
    red = 128 + 60 * np.sin(row / 17 + column / 29) + 50 * np.sin(row * column / 5000)
    green = 128 + 100 * np.sin(column / 11) * np.cos(row / 23)
    blue = (3 * row + 5 * column) % 256
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def moved(pixels: Pixels, position: Position) -> Pixels:
    match position:
        case "upright":
            return pixels
        case "mirrored":
            return np.fliplr(pixels)
        case "upside down":
            return np.flipud(pixels)
        case "rotated left" | "rotated 180" | "rotated right":
            return np.rot90(
                pixels, {"rotated left": 1, "rotated 180": 2, "rotated right": 3}[position]
            )
        case "transposed":
            return pixels.transpose(1, 0, 2)
        case "transversed":
            return np.rot90(pixels, 2).transpose(1, 0, 2)


@pytest.mark.parametrize("name", GOLDEN_EMOJI)
def test_the_bits_are_those_of_the_reference(name: str) -> None:
    found = picture_hash(emoji(name))
    assert (found.hex, found.quality) == (GOLDEN_EMOJI[name], 100)


@pytest.mark.parametrize("size", GOLDEN_WAVES)
def test_the_bits_are_those_of_the_reference_at_any_size(size: tuple[int, int]) -> None:
    found = picture_hash(waves(*size))
    assert (found.hex, found.quality) == GOLDEN_WAVES[size]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_moved_picture_has_the_hash_foretold(position: Position) -> None:
    pixels = waves(200, 301)
    assert dihedral_hashes(pixels)[position] == picture_hash(moved(pixels, position))


def test_a_symmetric_picture_is_its_own_mirror() -> None:
    half = waves(64, 32)
    hashes = dihedral_hashes(np.concatenate([half, half[:, ::-1]], axis=1))
    assert hashes["upright"] == hashes["mirrored"]


def test_resizing_and_recompression_stay_within_the_match() -> None:
    pixels = emoji("1f431.png")
    file = io.BytesIO()
    Image.fromarray(pixels).resize((96, 128)).save(file, "JPEG", quality=60)
    copy = np.asarray(Image.open(file))
    assert distance(picture_hash(pixels).bits, picture_hash(copy).bits) <= MATCH


def test_a_large_picture_is_near_its_small_copy() -> None:
    small = emoji("1f3e0.png")
    large = np.asarray(Image.fromarray(small).resize((1500, 1100), Image.Resampling.BICUBIC))
    assert distance(picture_hash(large).bits, picture_hash(small).bits) <= MATCH


def test_different_pictures_are_far_apart() -> None:
    hashes = [from_hex(text) for text in GOLDEN_EMOJI.values()]
    assert distance(hashes[0], hashes[1]) > 90
    assert distance(hashes[1], hashes[2]) > 90


@pytest.mark.parametrize("size", [(4, 9), (300, 1)])
def test_what_is_too_small_has_no_quality(size: tuple[int, int]) -> None:
    found = picture_hash(waves(*size))
    assert (found.bits, found.quality) == (bytes(32), 0)


def test_a_flat_picture_has_no_quality() -> None:
    assert picture_hash(np.full((64, 64, 3), 200, np.uint8)).quality == 0


def test_hex_and_back() -> None:
    bits = bytes(range(32))
    assert from_hex(to_hex(bits)) == bits
    assert distance(bits, from_hex("ff" + to_hex(bits)[2:])) == 8
    for text in ("00", "zz" * 32):
        with pytest.raises(ValueError, match="hex"):
            from_hex(text)
