"""A picture's bytes -> its pixels as stored, 8 bits deep, and what is left to do to them.

JPEGs go by jpeg.py, all other formats by Pillow. Of several frames or pages the first is taken;
palettes are looked up, of 16 bits the upper 8 stay, and what is transparent is laid over the
background, for which a profile has to be applied at once; else it waits until the picture is small.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageFile

from pipeline.colour import Pixels, over_background, to_srgb
from pipeline.exif import ORIENTATION, UPRIGHT
from pipeline.jpeg import UnsupportedJpegError, decode_jpeg
from pipeline.picture_header import (
    DECODER_ERRORS,
    Header,
    UnusableError,
    is_truncated,
    open_with_pillow,
)
from pipeline.resize import Extent, Size

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
            pass  # Pillow may know it
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
        pixels, alpha = _split(image)
    except DECODER_ERRORS as error:
        # Pillow has no error of its own for files that end too soon, but says so.
        cut = "truncated" in str(error)
        raise UnusableError("truncated" if cut else "undecodable") from error
    if pixels.shape[1::-1] != (header.width, header.height):
        raise UnusableError("undecodable")
    if alpha is not None:
        pixels, profile = over_background(to_srgb(pixels, profile), alpha, background), None
    return Decoded(
        pixels,
        profile if isinstance(profile, bytes) else None,
        turned if isinstance(turned, int) else UPRIGHT,
        (header.width, header.height),
        is_plain=stored_mode == "RGB" and alpha is None and not getattr(image, "is_animated", 0),
    )


def _split(image: ImageFile.ImageFile) -> tuple[Pixels, Pixels | None]:
    """Pixels without transparency, and how opaque each is where not all are."""
    picture: Image.Image = image
    if picture.mode in _DEEP_GREY_MODES:
        return (np.asarray(picture) >> 8).astype(np.uint8), None
    if picture.mode in ("L", "1", "LA", "La") and picture.has_transparency_data:
        grey, alpha = np.moveaxis(np.asarray(picture.convert("LA")), 2, 0)
        return np.ascontiguousarray(grey), _unless_opaque(np.ascontiguousarray(alpha))
    if picture.has_transparency_data:
        channels = np.asarray(picture.convert("RGBA"))
        colours = cv2.cvtColor(channels, cv2.COLOR_RGBA2BGR)
        return colours, _unless_opaque(np.ascontiguousarray(channels[:, :, 3]))
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L")), None
    if picture.mode == "CMYK":
        return np.asarray(picture), None
    if picture.mode in ("I", "F"):
        # Of 32 bits nothing tells which value is white.
        raise UnusableError("undecodable")
    return cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR), None


def _unless_opaque(alpha: Pixels) -> Pixels | None:
    return None if alpha.min() == 255 else alpha
