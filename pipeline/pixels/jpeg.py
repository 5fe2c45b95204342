"""JPEG by libjpeg-turbo: decoded at a reduced scale where that is enough, and strictly.

Most pictures on the web are JPEGs, so this is the path that decides the speed. Between
the scan's coefficients and the pixels libjpeg can leave out the upper half, three quarters or seven
eighths of the frequencies: a reduction for less than nothing.
"""

import re
from dataclasses import dataclass

import simplejpeg

from pipeline.pixels.colour import Pixels
from pipeline.pixels.exif import orientation_of
from pipeline.pixels.picture_header import UnusableError, read_turbo_header
from pipeline.pixels.resize import Size

REDUCTIONS = {8: 16.0, 4: 8.0, 2: 2.5}
"""By how much a picture may be reduced while it is decoded -> how many times the wanted size its
sides must have for it. These are libjpeg-turbo's scales with vector instructions; 3/8, 5/8 and so
on save no time. What is left out are the frequencies above, cut off sharply where a mean over areas
fades them out: from 2.5 times on that costs less than the encoding at quality 95 that follows (32
to 47 dB against 30 to 39, on photos with the sharpest edges and on soft ones). The further halves
save little, so they must cost less still: twice the wanted size remains, 37 dB or more."""

MAX_SCANNED_PIXELS = 1 << 31
"""Of all scans together. A progressive file may repeat its scans without end, a few bytes each."""

MAX_PADDING_BYTES = 16
"""Some telephones write a few bytes between the last scan and its end mark."""

_HARMLESS = re.compile(
    r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9"
    r"|Invalid SOS parameters for sequential JPEG"
    r"|Unknown Adobe color transform code"
    r"|Warning: unknown JFIF revision number"
)
"""libjpeg's warnings (its jerror.h) of which no pixel speaks."""

_START_OF_SCAN = b"\xff\xda"
_APP1, _APP2, _APP14, _SOS = 0xE1, 0xE2, 0xEE, 0xDA
_SEQUENTIAL = (0xC0, 0xC1)
"""Frames whose first scan is their last if it has all their components."""
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a length after them."""
_EXIF, _ICC, _ADOBE = b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe"


class UnsupportedJpegError(Exception):
    """libjpeg could decode it, its TurboJPEG interface can't."""


@dataclass(frozen=True)
class Segments:
    """What stands before the first scan."""

    exif: bytes
    profile: bytes | None
    has_adobe_marker: bool
    has_many_scans: bool
    """Or may have: only then must the rest of the file be searched for them."""


@dataclass(frozen=True)
class Jpeg:
    pixels: Pixels
    profile: bytes | None
    orientation: int
    reduction: int
    is_colour: bool
    """Stored as three channels, not as grey or CMYK."""


def decode_jpeg(data: bytes, wanted: Size | None) -> Jpeg:
    """Whole, or reduced as far as REDUCTIONS allows for the size wanted."""
    header = read_turbo_header(data)
    if header is None:
        raise UnsupportedJpegError
    width, height = header.width, header.height
    segments = read_segments(data)
    if segments.has_many_scans:
        refuse_endless_scans(data, (width, height))
    reduction = reduction_for((width, height), wanted) if wanted else 1
    is_grey = header.space == "Gray"
    is_cmyk = header.space in ("CMYK", "YCCK")
    channels = "CMYK" if is_cmyk else "GRAY" if is_grey and segments.profile else "BGR"
    pixels = _decode(data, channels, (-(-width // reduction), -(-height // reduction)), reduction)
    if is_cmyk and segments.has_adobe_marker:
        pixels = 255 - pixels  # Adobe stores how much paper is left
    return Jpeg(
        pixels[:, :, 0] if channels == "GRAY" else pixels,
        segments.profile,
        orientation_of(segments.exif),
        reduction,
        is_colour=not is_cmyk and not is_grey,
    )


def reduction_for(stored: Size, wanted: Size) -> int:
    ratio = min(stored[0] / wanted[0], stored[1] / wanted[1])
    return next((by for by, least in REDUCTIONS.items() if ratio >= least), 1)


def refuse_endless_scans(data: bytes, size: Size) -> None:
    if size[0] * size[1] * data.count(_START_OF_SCAN) > MAX_SCANNED_PIXELS:
        raise UnusableError("undecodable")


def _decode(data: bytes, channels: str, size: Size, reduction: int) -> Pixels:
    scale = {} if reduction == 1 else {"min_width": size[0], "min_height": size[1], "min_factor": 2}
    for strict in (True, False):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(data, channels, strict=strict, **scale)
        except ValueError as error:
            if strict and _is_harmless(str(error)):
                continue
            is_cut = str(error).startswith("Premature end of JPEG file")
            raise UnusableError("truncated" if is_cut else "undecodable") from error
        break
    if pixels.shape[1::-1] != size:
        raise UnusableError("undecodable")
    return pixels


def _is_harmless(warning: str) -> bool:
    match = _HARMLESS.match(warning)
    return match is not None and int(match[1] or 0) <= MAX_PADDING_BYTES


def read_segments(data: bytes) -> Segments:
    """Segments' lengths are believed only as far as the file goes."""
    exif, has_adobe_marker, num_in_frame, num_in_scan = b"", False, 0, 0
    profile: dict[int, bytes] = {}
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == _SOS:
            num_in_scan = int.from_bytes(data[offset + 4 : offset + 5])
            break
        if marker == 0xFF or marker in _STANDALONE:
            offset += 1 if marker == 0xFF else 2
            continue
        start, end = offset + 4, offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == _APP1 and not exif and data.startswith(_EXIF, start):
            exif = data[start + len(_EXIF) : end]
        elif marker == _APP2 and data.startswith(_ICC, start):
            number = data[start + len(_ICC) : start + len(_ICC) + 1]
            profile.setdefault(int.from_bytes(number), data[start + len(_ICC) + 2 : end])
        elif marker in _SEQUENTIAL:
            num_in_frame = int.from_bytes(data[start + 5 : start + 6])
        elif marker == _APP14 and data.startswith(_ADOBE, start):
            has_adobe_marker = True
        offset = max(end, offset + 2)
    # Chunks are numbered from 1 (ICC.1:2022, annex B.4); where one is missing, the rest is broken.
    parts = [profile[number] for number in sorted(profile)]
    return Segments(
        exif,
        b"".join(parts) or None,
        has_adobe_marker,
        has_many_scans=num_in_scan == 0 or num_in_scan != num_in_frame,
    )
