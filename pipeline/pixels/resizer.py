"""A picture's bytes as fetched -> the bytes that a shard keeps: upright 8-bit sRGB, within limits.

The content is sniffed, whatever its name or header said; the size is read from the file's header
and held against the limits before a pixel is decoded (a 1.8 MB PNG can unfold to 3.5 GB); a file
cut short is rejected rather than filled up with grey. Options, sizes and encodings are those of
img2dataset's Resizer. What it leaves wrong is put right: orientation, 16 bits, CMYK, palettes,
transparency, grey, colour profiles, animations.
"""

from dataclasses import dataclass, field

import cv2

from pipeline.pixels.colour import Pixels, is_srgb, to_srgb
from pipeline.pixels.decode import Decoded, decode
from pipeline.pixels.exif import UPRIGHT
from pipeline.pixels.picture_header import (
    Header,
    Reason,
    UnusableError,
    quiet_decoders,
    read_header,
)
from pipeline.pixels.pixel_settings import MAX_IMAGE_AREA, EncodeFormat
from pipeline.pixels.pixel_settings import PixelSettings as PixelSettings
from pipeline.pixels.resize import Resizing, Size, resize, upright

MAX_SIDES: dict[EncodeFormat, int] = {"jpg": 65_500, "png": 65_535, "webp": 16_383}
"""That can be stored: libjpeg's JPEG_MAX_DIMENSION, libwebp's WEBP_MAX_DIMENSION; for PNG our own,
far below the format's."""

_STORED_AS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_QUALITIES = {
    "jpg": cv2.IMWRITE_JPEG_QUALITY,
    "png": cv2.IMWRITE_PNG_COMPRESSION,
    "webp": cv2.IMWRITE_WEBP_QUALITY,
}


@dataclass(frozen=True)
class Picture:
    data: bytes = field(repr=False)
    width: int
    height: int
    original_width: int
    original_height: int
    """Of the upright picture, as a viewer sees it."""


@dataclass(frozen=True)
class Rejected:
    reason: Reason


class PictureResizer:
    """Any number of threads may call it; hostile bytes are best left to processes of their own."""

    def __init__(self, settings: PixelSettings) -> None:
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        quiet_decoders()
        self._settings = settings
        self._resizing = Resizing(
            image_size=settings.image_size,
            mode=settings.resize_mode,
            only_if_bigger=settings.resize_only_if_bigger,
            upscale=settings.upscale_interpolation,
            downscale=settings.downscale_interpolation,
        )
        self._extension = f".{settings.encode_format}"
        self._parameters = [_QUALITIES[settings.encode_format], settings.encode_quality]

    def __call__(self, data: bytes) -> Picture | Rejected:
        try:
            return self._picture(data)
        except UnusableError as error:
            return Rejected(error.reason)
        except MemoryError:
            return Rejected("too much memory")
        except cv2.error as error:
            if error.code != cv2.Error.StsNoMem:
                raise
            return Rejected("too much memory")

    def _picture(self, data: bytes) -> Picture:
        header = read_header(data)
        if header is None:
            raise UnusableError("not an image")
        width, height = header.width, header.height
        size = self._resizing.size_of(width, height)
        self._check_limits(header, size or (width, height))
        interpolation = self._resizing.interpolation(width, height)
        # Other interpolations look at single pixels, of which a reduced picture has only means.
        wanted = size if interpolation == "area" else None
        decoded = decode(data, header, wanted, self._settings.background)
        pixels = decoded.pixels
        if size is not None:
            pixels = resize(pixels, size, interpolation, decoded.extent)
        pixels = upright(to_srgb(pixels, decoded.profile), decoded.orientation)
        if size is not None:
            pixels = self._resizing.framed(pixels)
        keep = size is None and self._settings.skip_reencode and self._is_as_wanted(header, decoded)
        lies_on_side = decoded.orientation >= 5
        return Picture(
            data if keep else self._encode(pixels),
            width=pixels.shape[1],
            height=pixels.shape[0],
            original_width=height if lies_on_side else width,
            original_height=width if lies_on_side else height,
        )

    def _check_limits(self, header: Header, size: Size) -> None:
        """In img2dataset's words. What the picture would become is limited, too: a row of ten
        thousand pixels, made 256 high, has 655 million."""
        settings = self._settings
        short, long = sorted((header.width, header.height))
        if short < settings.min_image_size:
            raise UnusableError("image too small")
        if short * long > settings.max_image_area:
            raise UnusableError("image area too large")
        if settings.max_aspect_ratio is not None and long / short > settings.max_aspect_ratio:
            raise UnusableError("aspect ratio too large")
        if size[0] * size[1] > MAX_IMAGE_AREA or max(size) > MAX_SIDES[settings.encode_format]:
            raise UnusableError("image area too large")

    def _is_as_wanted(self, header: Header, decoded: Decoded) -> bool:
        return (
            header.format == _STORED_AS[self._settings.encode_format]
            and decoded.is_plain
            and decoded.orientation == UPRIGHT
            and is_srgb(decoded.profile)
        )

    def _encode(self, pixels: Pixels) -> bytes:
        is_encoded, data = cv2.imencode(self._extension, pixels, self._parameters)
        assert is_encoded
        return data.tobytes()
