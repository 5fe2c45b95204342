"""A picture's bytes -> its pixels as stored, 8 bits deep, and what is left to do to them.

JPEGs go by jpeg.py, all other formats by Pillow. Of several frames or pages the first is taken;
palettes are looked up, of 16 bits the upper 8 stay, and what is transparent is laid over the
background, for which a profile has to be applied at once; else it waits until the picture is small.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from pipeline.pixels.colour import MAX_BAND_AREA, Pixels, over_background, to_srgb
from pipeline.pixels.exif import ORIENTATION, UPRIGHT
from pipeline.pixels.jpeg import UnsupportedJpegError, decode_jpeg, refuse_endless_scans
from pipeline.pixels.picture_header import (
    DECODER_ERRORS,
    Header,
    UnusableError,
    is_truncated,
    open_with_pillow,
)
from pipeline.pixels.resize import Extent, Size

_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Decoded:
    pixels: Pixels
    profile: bytes | None
    orientation: int
    extent: Extent
    """Width and height of the picture in these pixels; of a reduced JPEG the last is a part."""
    is_plain: bool
    """The file itself holds one picture of three 8-bit channels, the orientation and profile apart:
    its bytes could stand for the pixels."""


def decode(data: bytes, header: Header, wanted: Size | None, background: str) -> Decoded:
    """`wanted`: JPEGs may come reduced, but to no less than is good for this size; None: whole."""
    if header.format == "JPEG":
        try:
            return _decode_jpeg(data, header, wanted)
        except UnsupportedJpegError:
            # Pillow may know it.
            refuse_endless_scans(data, (header.width, header.height))
    if is_truncated(header.format, data):
        raise UnusableError("truncated")
    return _decode_with_pillow(data, header, background)


def _decode_jpeg(data: bytes, header: Header, wanted: Size | None) -> Decoded:
    jpeg = decode_jpeg(data, wanted)
    extent = (header.width / jpeg.reduction, header.height / jpeg.reduction)
    return Decoded(jpeg.pixels, jpeg.profile, jpeg.orientation, extent, jpeg.is_colour)


def _decode_with_pillow(data: bytes, header: Header, background: str) -> Decoded:
    image = open_with_pillow(data, header.format)
    if image is None:
        raise UnusableError("undecodable")
    try:
        stored_mode = image.mode
        image.load()
        # Pillow turns TIFFs itself.
        turned = 1 if header.format == "TIFF" else image.getexif().get(ORIENTATION, UPRIGHT)
        profile = image.info.get("icc_profile")
        profile = profile if isinstance(profile, bytes) else None
        pixels = _pixels(image, profile, background)
    except DECODER_ERRORS as error:
        # Pillow has no error of its own for files that end too soon, but says so.
        cut = "truncated" in str(error)
        raise UnusableError("truncated" if cut else "undecodable") from error
    if pixels.shape[1::-1] != (header.width, header.height):
        raise UnusableError("undecodable")
    has_alpha = image.has_transparency_data
    return Decoded(
        pixels,
        None if has_alpha else profile,
        turned if isinstance(turned, int) else UPRIGHT,
        (header.width, header.height),
        is_plain=stored_mode == "RGB" and not has_alpha and not getattr(image, "is_animated", 0),
    )


def _pixels(image: Image.Image, profile: bytes | None, background: str) -> Pixels:
    """Of a few rows at a time: Pillow's pictures and arrays have several copies between them."""
    num_rows = max(1, MAX_BAND_AREA // image.width)
    if num_rows >= image.height:
        return _band(image, profile, background)
    first = _band(image.crop((0, 0, image.width, num_rows)), profile, background)
    pixels = np.empty((image.height, *first.shape[1:]), np.uint8)
    for top in range(0, image.height, num_rows):
        box = (0, top, image.width, min(image.height, top + num_rows))
        pixels[top : top + num_rows] = _band(image.crop(box), profile, background)
    return pixels


def _band(image: Image.Image, profile: bytes | None, background: str) -> Pixels:
    """Opaque pixels with their profile still to be applied; others in sRGB on the background."""
    if image.mode in _DEEP_GREY_MODES:
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode in ("I", "F"):
        # Of 32 bits nothing tells which value is white.
        raise UnusableError("undecodable")
    if image.has_transparency_data:
        is_grey = image.mode in ("1", "L", "LA", "La")
        channels = cv2.split(np.asarray(image.convert("LA" if is_grey else "RGBA")))
        colours = channels[0] if is_grey else cv2.merge(channels[2::-1])
        return over_background(to_srgb(colours, profile), channels[-1], background)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode == "CMYK":
        return np.asarray(image)
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
