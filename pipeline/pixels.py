"""A picture's bytes as fetched -> the bytes that a shard keeps, within limits.

The content is sniffed, whatever its name or header said; the size is read from the file's header
and held against the limits before a pixel is decoded (a 1.8 MB PNG can unfold to 3.5 GB); a file
cut short is rejected rather than filled up with grey. img2dataset's Resizer decodes, resizes and
encodes, so its modes mean here what they mean there. Orientation, deep colour and colour profiles
are not looked at yet: that belongs between `read_header` and the Resizer.
"""

import contextlib
import io
import os
import struct
import warnings
from dataclasses import dataclass, field
from typing import Literal, Self

from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from infra.config import Settings

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
EncodeFormat = Literal["jpg", "png", "webp"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

MAX_IMAGE_AREA = 1024 * 1024 * 1024 // 4 // 3
"""89 megapixels, a quarter of a GiB of RGB: from there on Pillow, too, warns of a bomb."""


class PixelSettings(Settings):
    """img2dataset's options, by its names and with its defaults, except `max_image_area`'s."""

    image_size: int = Field(default=256, ge=1)
    """Side in pixels that pictures are resized to."""
    resize_mode: ResizeMode = "border"
    """no; border: longest side, then white borders; keep_ratio: shortest side; keep_ratio_largest:
    longest side; center_crop: shortest side, then the middle."""
    resize_only_if_bigger: bool = False
    """Leave smaller pictures at their size."""
    upscale_interpolation: Interpolation = "lanczos"
    """How pictures are enlarged."""
    downscale_interpolation: Interpolation = "area"
    """How pictures are reduced."""
    encode_quality: int = Field(default=95, ge=0, le=100)
    """Of JPEG and WebP; for PNG the compression, 0 to 9."""
    encode_format: EncodeFormat = "jpg"
    """What pictures are stored as."""
    skip_reencode: bool = False
    """Keep the bytes as fetched where the picture needed no resizing and has the format already."""
    min_image_size: int = Field(default=0, ge=0)
    """Reject pictures whose shorter side has fewer pixels."""
    max_image_area: int = Field(default=MAX_IMAGE_AREA, ge=1)
    """Reject pictures of more pixels, by their header, before they are decoded."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Reject pictures whose longer side is more than so many times the shorter."""

    @model_validator(mode="after")
    def _check_png_quality(self) -> Self:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(
                f"encode_quality {self.encode_quality}: for png it is the compression, 0 to 9"
            )
        return self


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded."""

    format: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    data: bytes = field(repr=False)
    width: int
    height: int
    original_width: int
    original_height: int


@dataclass(frozen=True)
class Rejected:
    reason: str
    """One of a small closed set, to be counted: "not an image", "truncated", ..."""


class PictureResizer:
    """img2dataset's Resizer behind the checks that it lacks; any number of threads may call it."""

    def __init__(self, settings: PixelSettings) -> None:
        # Else albumentations asks the network for its newest version at every import.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import cv2

        # img2dataset imports imghdr and passes albumentations a parameter renamed since; Pillow
        # speaks of every broken TIFF header.
        warnings.filterwarnings("ignore", "'imghdr' is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "value is deprecated, use fill", DeprecationWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
        from img2dataset import resizer

        # The Resizer points the whole process's stdout and stderr at /dev/null for every picture,
        # which is not safe with threads and swallows other people's output.
        resizer.SuppressStdoutStderr = contextlib.nullcontext
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._settings = settings
        self._resize = resizer.Resizer(
            image_size=settings.image_size,
            resize_mode=settings.resize_mode,
            resize_only_if_bigger=settings.resize_only_if_bigger,
            upscale_interpolation=settings.upscale_interpolation,
            downscale_interpolation=settings.downscale_interpolation,
            encode_quality=settings.encode_quality,
            encode_format=settings.encode_format,
            skip_reencode=settings.skip_reencode,
            min_image_size=settings.min_image_size,
            max_image_area=settings.max_image_area,
            max_aspect_ratio=settings.max_aspect_ratio or float("inf"),
        )

    def __call__(self, data: bytes) -> Picture | Rejected:
        header = read_header(data)
        if header is None:
            return Rejected("not an image")
        reason = over_limit(header, self._settings)
        if reason is None and is_truncated(header.format, data):
            reason = "truncated"
        if reason is not None:
            return Rejected(reason)
        encoded, width, height, original_width, original_height, error = self._resize(
            io.BytesIO(data)
        )
        if error is not None:
            # Its messages of a failed decode name memory sizes and source lines: not to be counted.
            known = {"image too small", "image area too large", "aspect ratio too large"}
            return Rejected(error if error in known else "undecodable")
        return Picture(encoded, width, height, original_width, original_height)


def read_header(data: bytes) -> Header | None:
    """Format and size as the first bytes tell them; None where they are of no picture."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(data[:16]) is not True):
            continue
        try:
            # Not Image.open: its own bomb check warns where a limit of the user's should decide.
            image = factory(io.BytesIO(data), "")
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error):
            return None
        return Header(name, image.width, image.height)
    return None


def over_limit(header: Header, settings: PixelSettings) -> str | None:
    """The limit that a picture of this size breaks, in img2dataset's words."""
    short, long = sorted((header.width, header.height))
    if short < max(1, settings.min_image_size):
        return "image too small"
    if short * long > settings.max_image_area:
        return "image area too large"
    if settings.max_aspect_ratio is not None and long / short > settings.max_aspect_ratio:
        return "aspect ratio too large"
    return None


def is_truncated(name: str, data: bytes) -> bool:
    """Whether a file stops before its format's end mark; decoders fill up the rest without a word.

    Bytes after the end mark are common and harmless.
    """
    if name == "JPEG":
        return data.rfind(b"\xff\xd9") <= _jpeg_scan_offset(data)
    if name == "PNG":
        return b"IEND\xaeB`\x82" not in data
    if name == "WEBP":
        return len(data) < 8 + int(struct.unpack("<I", data[4:8])[0])
    return False


def _jpeg_scan_offset(data: bytes) -> int:
    """Where the pixels begin: segments before may hold a thumbnail with an end mark of its own."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xDA:
            return offset
        if marker == 0xFF:
            offset += 1
        else:
            offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return len(data)
