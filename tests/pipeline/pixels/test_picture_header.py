"""What a file says of itself, believed or not, before a pixel is decoded."""

import io
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from PIL import Image

from pipeline.pixels.picture_header import Format, Header, is_truncated, quiet_decoders, read_header
from pipeline.pixels.resizer import PictureResizer, PixelSettings, Rejected

EXIF = b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 0)


@pytest.fixture(autouse=True)
def no_word_of_broken_metadata() -> None:
    quiet_decoders()


def file_of(name: str, mode: str = "RGB", **options: Any) -> bytearray:
    file = io.BytesIO()
    Image.new(mode, (90, 60)).save(file, name, **options)
    return bytearray(file.getvalue())


def lying(name: Format) -> bytes:
    """A small file that says it is 16,000 x 16,000."""
    match name:
        case "PNG":
            data = file_of(name)
            data[16:24] = struct.pack(">II", 16000, 16000)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        case "GIF":
            data = file_of(name)
            data[6:10] = struct.pack("<HH", 16000, 16000)
        case "BMP":
            data = file_of(name)
            data[18:26] = struct.pack("<ii", 16000, 16000)
        case "WEBP":
            data = file_of(name, "RGBA", exif=EXIF)
            assert data[12:16] == b"VP8X"
            data[24:30] = (15999).to_bytes(3, "little") * 2
        case "JPEG":
            data = file_of(name)
            frame = data.index(b"\xff\xc0")
            data[frame + 5 : frame + 9] = struct.pack(">HH", 16000, 16000)
        case "TIFF":
            data = file_of(name)
            for tag in (0x100, 0x101):
                entry = data.index(struct.pack("<HH", tag, 4), 8)
                data[entry + 8 : entry + 12] = struct.pack("<I", 16000)
        case "AVIF":
            data = file_of(name)
            extents = data.index(b"ispe")
            data[extents + 8 : extents + 16] = struct.pack(">II", 16000, 16000)
    return bytes(data)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_size_that_lies_is_refused_before_it_takes_memory(name: Format) -> None:
    data = lying(name)
    resizer = PictureResizer(PixelSettings())
    tracemalloc.start()
    try:
        assert read_header(data) == Header(name, 16000, 16000)
        assert resizer(data) == Rejected("image area too large")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("mode", "options", "kind"),
    [
        ("RGB", {}, b"VP8 "),
        ("RGB", {"lossless": True}, b"VP8L"),
        ("RGBA", {"lossless": True, "exif": EXIF}, b"VP8X"),
    ],
)
def test_all_kinds_of_webp_tell_their_size(mode: str, options: dict[str, Any], kind: bytes) -> None:
    data = bytes(file_of("WEBP", mode, **options))
    assert data[12:16] == kind
    assert read_header(data) == Header("WEBP", 90, 60)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("num_bytes", range(0, 40, 3))
def test_a_few_bytes_are_no_picture(name: str, num_bytes: int) -> None:
    data = bytes(file_of(name))[:num_bytes]
    header = read_header(data)
    # GIF and BMP have told all about their size by then.
    assert header is None or header == Header(header.format, 90, 60)


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
def test_what_stops_before_its_end_mark_is_truncated(name: Format) -> None:
    whole = bytes(file_of(name))
    assert not is_truncated(name, whole)
    assert not is_truncated(name, whole + b"trailer")
    assert is_truncated(name, whole[:-2])
