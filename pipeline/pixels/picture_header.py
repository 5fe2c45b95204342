"""What a picture's first bytes say of it, before a pixel is decoded: its format and its size.

The content is sniffed, whatever a name or a Content-Type said. Reading a header takes no memory
that grows with the size it tells, so limits can be held against it first.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import simplejpeg
from PIL import AvifImagePlugin, Image, ImageFile

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
FORMATS: tuple[Format, ...] = get_args(Format)

Reason = Literal[
    "not an image",
    "truncated",
    "undecodable",
    "image too small",
    "image area too large",
    "aspect ratio too large",
    "too much memory",
]
"""All that a picture is ever rejected for; the limits' names are img2dataset's."""

DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's plugins, Python that reads hostile bytes, were seen to raise or may."""


class UnusableError(Exception):
    """A picture that is rejected; never leaves this layer."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Header:
    """What a file says of itself. The size is that of the stored pixels, before EXIF turns them."""

    format: Format
    width: int
    height: int


@dataclass(frozen=True)
class TurboHeader:
    width: int
    height: int
    space: str
    """YCbCr, RGB, Gray, CMYK or YCCK."""


def quiet_decoders() -> None:
    """Once a process: one thread a picture, and no word on stderr about broken metadata."""
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.filterwarnings("ignore", module=r"PIL\.")


def read_header(data: bytes) -> Header | None:
    """None where the first bytes are of no picture."""
    if data[:3] == b"\xff\xd8\xff":
        return _read_jpeg_header(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _read_webp_header(data)
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is not None and accept is not None and accept(data[:16]) is True:
            image = open_with_pillow(data, name)
            return None if image is None else Header(name, image.width, image.height)
    return None


def open_with_pillow(data: bytes, name: Format) -> ImageFile.ImageFile | None:
    """Pillow's picture with nothing decoded yet; None where its header can't be read."""
    factory, _ = Image.OPEN[name]
    try:
        # Not Image.open: its own bomb check warns where a limit of the user's should decide.
        image = factory(io.BytesIO(data), "")
    except DECODER_ERRORS:
        return None
    return image if min(image.size) > 0 else None


def read_turbo_header(data: bytes) -> TurboHeader | None:
    """None also for a few JPEGs that are whole: TurboJPEG's interface knows fewer ways to subsample
    than libjpeg itself, which Pillow uses."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError for a space of colours that it has no name for
        return None
    return TurboHeader(int(width), int(height), str(space))


def is_truncated(name: Format, data: bytes) -> bool:
    """Whether a file stops before its format's end mark, where the decoder itself would not tell.

    Bytes after the end mark are common and harmless.
    """
    if name == "PNG":
        return b"IEND\xaeB`\x82" not in data
    if name == "WEBP":
        return len(data) < 8 + int(struct.unpack("<I", data[4:8])[0])
    return False


def _read_jpeg_header(data: bytes) -> Header | None:
    header = read_turbo_header(data)
    if header is not None:
        return Header("JPEG", header.width, header.height)
    image = open_with_pillow(data, "JPEG")
    return None if image is None else Header("JPEG", image.width, image.height)


def _read_webp_header(data: bytes) -> Header | None:
    """By hand, for opening one with Pillow takes the memory of two whole pictures.

    Fields as in RFC 9649, sections 2.5 to 2.7.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        width = int.from_bytes(body[4:7], "little") + 1
        height = int.from_bytes(body[7:10], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width = int.from_bytes(body[6:8], "little") & 0x3FFF
        height = int.from_bytes(body[8:10], "little") & 0x3FFF
    else:
        return None
    return Header("WEBP", width, height) if width and height else None
