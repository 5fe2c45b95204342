"""PDQ, a perceptual hash: 256 bits that differ little between pictures that look alike.

Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm" (2019), from
its description and with its bits, so hashes compare with those of other PDQ programs and of the
lists that are exchanged in PDQ. Luma is blurred and thinned out to 64 x 64, of whose cosine
transform 16 x 16 low frequencies remain; a bit says whether its frequency is above their median.

A mirrored or turned picture has another hash; `dihedral_hashes` gives those of all positions. The
paper's shortcut, to change the frequencies' signs, is left: the blur reaches a pixel farther to one
side, so that it comes out up to 38 bits beside the moved picture's own hash.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_BITS: Final = 256

Pixels = NDArray[np.uint8]
"""[H, W, 3] RGB."""
Luma = NDArray[np.float64]
"""[H, W], 0 black to 255 white."""

Position = Literal[
    "upright",
    "mirrored",
    "upside down",
    "rotated 180",
    "transposed",
    "rotated left",
    "rotated right",
    "transversed",
]
"""What was done to a picture: mirrored left to right, rotated by quarter turns, transposed along
one diagonal or (transversed) the other."""

MATCH: Final = 31
"""The distance up to which ThreatExchange's programs call two hashes a match."""
MIN_QUALITY: Final = 50
"""ThreatExchange's programs leave hashes of less quality out: flat pictures match each other."""
MIN_SIDE = 5
"""Smaller pictures have no hash: the reference calls them of quality 0."""
MAX_SIDE = 512
"""Larger pictures are shrunk to this first, as the paper recommends, for speed."""
BLOCKS, KEPT = 64, 16
"""Sides of the thinned-out picture and of the low frequencies that are kept (section 3)."""
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, as in the paper."""
GRADIENT_FOR_QUALITY_1 = 90
"""The sum of gradients, in hundredths of the range, that a point of quality stands for."""
DECIMALS = 6
"""Sums come out a little different on another processor. What is equal must stay equal there, and
in a symmetric picture half the frequencies are zero: beyond these digits they are not compared."""


class _Move(NamedTuple):
    """How a position comes about: which axes are reversed first, whether they are then swapped."""

    reverses_rows: bool
    reverses_columns: bool
    transposes: bool


POSITIONS: Final[dict[Position, _Move]] = {
    "upright": _Move(False, False, False),
    "mirrored": _Move(False, True, False),
    "upside down": _Move(True, False, False),
    "rotated 180": _Move(True, True, False),
    "transposed": _Move(False, False, True),
    "rotated left": _Move(False, True, True),
    "rotated right": _Move(True, False, True),
    "transversed": _Move(True, True, True),
}


@dataclass(frozen=True)
class PictureHash:
    """`quality`, 0 to 100, says how much there is to see; under MIN_QUALITY it is too little."""

    bits: bytes
    """32 bytes, in the order in which PDQ is written as hex."""
    quality: int

    @property
    def hex(self) -> str:
        return to_hex(self.bits)


def picture_hash(pixels: Pixels) -> PictureHash:
    """The PDQ hash of RGB pixels [H, W, 3]; all zero, of quality 0, under MIN_SIDE a side."""
    return dihedral_hashes(pixels, ("upright",))["upright"]


def dihedral_hashes(
    pixels: Pixels, positions: Iterable[Position] = tuple(POSITIONS)
) -> dict[Position, PictureHash]:
    """The hashes that the picture has in each of these positions."""
    assert pixels.ndim == 3, pixels.shape
    assert pixels.shape[2] == 3, pixels.shape
    if min(pixels.shape[:2]) < MIN_SIDE:
        return dict.fromkeys(positions, PictureHash(bytes(NUM_BITS // 8), 0))
    luma = _luma(_shrink(pixels))
    return {position: _hash(luma, POSITIONS[position]) for position in positions}


def distance(a: bytes, b: bytes) -> int:
    """In how many of 256 bits two hashes differ: MATCH or fewer where one copies the other."""
    assert len(a) == len(b) == NUM_BITS // 8, (len(a), len(b))
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def to_hex(bits: bytes) -> str:
    """64 hex digits."""
    return bits.hex()


def from_hex(text: str) -> bytes:
    """Raises ValueError for anything but 64 hex digits."""
    bits = bytes.fromhex(text)
    if len(bits) != NUM_BITS // 8:
        raise ValueError(f"{text!r}: expected {NUM_BITS // 4} hex digits, as PDQ is written")
    return bits


def _hash(luma: Luma, move: _Move) -> PictureHash:
    moved = luma[:: -1 if move.reverses_rows else 1, :: -1 if move.reverses_columns else 1]
    blocks = _thin_out(moved)
    transform = _cosines()
    frequencies = transform @ blocks @ transform.T
    bits = _bits(frequencies.T if move.transposes else frequencies)
    return PictureHash(bits, _quality(blocks))


def _shrink(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    if max(height, width) <= MAX_SIDE:
        return pixels
    size = (min(width, MAX_SIDE), min(height, MAX_SIDE))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _luma(pixels: Pixels) -> Luma:
    height, width = pixels.shape[:2]
    luma: Luma = (pixels.reshape(-1, 3) @ LUMA_WEIGHTS).reshape(height, width)
    return luma


def _thin_out(luma: Luma) -> Luma:
    """[64, 64], each the weighted mean of a neighbourhood twice its block's size."""
    return _thin_out_rows(_thin_out_rows(luma).T).T


def _thin_out_rows(luma: Luma) -> Luma:
    """[64, W] of [H, W]. Without BLAS: few numbers count, and its threads would be in the way."""
    rows, weights = _thinning(len(luma))
    thinned: Luma = np.zeros((BLOCKS, luma.shape[1]))
    for row, weight in zip(rows.T, weights.T, strict=True):
        thinned += weight[:, None] * luma[row]
    return thinned


@lru_cache(maxsize=256)
def _thinning(side: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which rows, and how much of each [64, k], make up each of the 64 that are left.

    Two box filters after each other (a tent), of whose output every side/64th row is taken.
    """
    window = -(-side // (2 * BLOCKS))
    # Even windows reach one farther ahead than back; at the edges they get smaller.
    ahead = (window + 2) // 2
    centres, places = np.arange(side)[:, None], np.arange(side)[None, :]
    inside = (places >= centres + ahead - window) & (places < centres + ahead)
    box = inside / inside.sum(axis=1, keepdims=True)
    taken = ((np.arange(BLOCKS) + 0.5) * side / BLOCKS).astype(int)
    tents = box[taken] @ box
    reach = min(2 * window - 1, side)
    first = np.minimum((tents > 0).argmax(axis=1), side - reach)
    rows = first[:, None] + np.arange(reach)
    return rows, np.take_along_axis(tents, rows, axis=1)


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float64]:
    """[16, 64]: rows 1 to 16 of the discrete cosine transform; row 0, the mean, says nothing."""
    frequency, place = np.arange(1, KEPT + 1)[:, None], np.arange(BLOCKS)[None, :]
    cosines: NDArray[np.float64] = np.sqrt(2 / BLOCKS) * np.cos(
        np.pi / (2 * BLOCKS) * frequency * (2 * place + 1)
    )
    return cosines


def _bits(frequencies: NDArray[np.float64]) -> bytes:
    flat = np.round(frequencies, DECIMALS).ravel()
    middle = flat.size // 2 - 1  # of an even number the lower of the two, as in the reference
    median = np.partition(flat, middle)[middle]
    return np.packbits((flat > median)[::-1]).tobytes()  # the highest bit is written first


def _quality(blocks: Luma) -> int:
    """Of the gradients between neighbours, whole hundredths of the range; what is flat scores 0."""
    total = 0
    for axis in (0, 1):
        hundredths = np.abs(np.diff(blocks, axis=axis)) * 100 / 255
        total += int(np.round(hundredths, DECIMALS).astype(int).sum())
    return min(100, total // GRADIENT_FOR_QUALITY_1)
