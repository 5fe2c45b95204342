"""A stored picture -> the pixels that are trained on: uint8 RGB of a given shape.

Scaled until it covers the shape, then cropped. JPEGs are decoded at a reduced scale where that is
good enough (pipeline/pixels/jpeg.py). The work is in C without Python's lock, so that threads share
the cores.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.errors import DamagedError
from pipeline.pixels.colour import to_srgb
from pipeline.pixels.decode import decode as decode_picture
from pipeline.pixels.picture_header import UnusableError, quiet_decoders, read_header
from pipeline.pixels.resize import resize

Pixels = NDArray[np.uint8]
"""[H, W, 3] RGB."""

CENTRE = (0.5, 0.5)

REMEDY = (
    "restore the shard from a copy, or make it again, and the same command goes on from the last "
    "checkpoint; `carrara verify` lists all that is damaged"
)


def set_up_decoding() -> None:
    """Once a process: one thread a picture, for there are many pictures."""
    cv2.setNumThreads(1)
    quiet_decoders()


def decode_sample(
    pixels: Pixels, uid: str, data: bytes, crop: tuple[float, float] = CENTRE
) -> None:
    """As `decode_into`; raises DamagedError naming the sample."""
    try:
        decode_into(pixels, data, crop)
    except UnusableError as error:
        raise DamagedError(
            f"sample {uid}: its picture can't be decoded ({error.reason}); {REMEDY}"
        ) from error


def decode_into(pixels: Pixels, data: bytes, crop: tuple[float, float] = CENTRE) -> None:
    """Fill `pixels`. `crop`: from 0 to 1, where in what is left over, from left to right and from
    top to bottom. Raises UnusableError for what is no whole picture."""
    header = read_header(data)
    if header is None:
        raise UnusableError("not an image")
    height, width = pixels.shape[:2]
    scale = max(width / header.width, height / header.height)
    size = max(width, round(header.width * scale)), max(height, round(header.height * scale))
    decoded = decode_picture(data, header, size, "#ffffff")
    resized = resize(decoded.pixels, size, "area" if scale < 1 else "cubic", decoded.extent)
    left, top = int(crop[0] * (size[0] - width)), int(crop[1] * (size[1] - height))
    window = to_srgb(resized, decoded.profile)[top : top + height, left : left + width]
    cv2.cvtColor(window, cv2.COLOR_BGR2RGB, dst=pixels)
