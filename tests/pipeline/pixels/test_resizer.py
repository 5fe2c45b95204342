import io
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.icc_profiles import ADOBE_RGB, rgb_profile
from pipeline.pixels.picture_header import Format, Header, Reason, read_header
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings, Rejected

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def encode(
    name: str, width: int = 90, height: int = 60, mode: str = "RGB", **options: Any
) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, name, **options)
    return file.getvalue()


def resize(data: bytes, **settings: Any) -> Picture | Rejected:
    return PictureResizer(PixelSettings(**{"image_size": 32} | settings))(data)


def png_that_says(width: int, height: int) -> bytes:
    """A PNG's header and no more than a few bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", FORMATS)
def test_size_and_format_are_read_from_the_content(name: Format) -> None:
    assert read_header(encode(name)) == Header(name, 90, 60)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_a_jpeg(name: str) -> None:
    picture = resize(encode(name))
    assert isinstance(picture, Picture)
    assert (picture.original_width, picture.original_height) == (90, 60)
    assert Image.open(io.BytesIO(picture.data)).format == "JPEG"


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("no", (90, 60)),
        ("border", (32, 32)),
        ("keep_ratio", (48, 32)),
        ("keep_ratio_largest", (32, 21)),
        ("center_crop", (32, 32)),
    ],
)
def test_resize_modes_mean_what_they_mean_in_img2dataset(mode: str, size: tuple[int, int]) -> None:
    picture = resize(encode("PNG"), resize_mode=mode)
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == size
    assert Image.open(io.BytesIO(picture.data)).size == size


@pytest.mark.parametrize(("stored", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_pictures_are_stored_in_the_format_asked_for(stored: str, name: str) -> None:
    picture = resize(encode("BMP"), encode_format=stored, encode_quality=9)
    assert isinstance(picture, Picture)
    assert Image.open(io.BytesIO(picture.data)).format == name


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert resize(encode("PNG")) == resize(encode("PNG"))


RESIZE_SOME = """
import hashlib, io
import numpy as np
from PIL import Image
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings

noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
digest = hashlib.sha256()
for side in (300, 640, 1100):
    file = io.BytesIO()
    Image.fromarray(noise).resize((side, side - 77)).save(file, "JPEG")
    for size in (40, 160, 256, 400):
        picture = PictureResizer(PixelSettings(image_size=size))(file.getvalue())
        assert isinstance(picture, Picture)
        digest.update(picture.data)
print(digest.hexdigest())
"""


def test_a_processor_with_fewer_vector_instructions_makes_the_same_bytes() -> None:
    fewer = {"OPENCV_CPU_DISABLE": "AVX2,AVX,FP16", "OPENCV_IPP": "sse42", "JSIMD_FORCESSE2": "1"}
    digests = {
        subprocess.run(
            [sys.executable, "-c", RESIZE_SOME],
            env=os.environ | changed,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for changed in ({}, fewer)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"GIF", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF"]
)
def test_what_is_no_picture_is_rejected(data: bytes) -> None:
    assert resize(data) == Rejected("not an image")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_picture_cut_short_is_rejected(name: str, share: float) -> None:
    data = encode(name)
    assert resize(data[: int(len(data) * share)]) in (
        Rejected("truncated"),
        Rejected("not an image"),
        Rejected("undecodable"),
    )


def test_a_cut_jpeg_with_a_whole_thumbnail_is_still_cut() -> None:
    exif = Image.Exif()
    exif[0x010E] = "\u00ff\u00d9" * 10
    data = encode("JPEG", exif=b"Exif\0\0" + b"\xff\xd8thumbnail\xff\xd9" + exif.tobytes())
    assert isinstance(resize(data), Picture)
    assert resize(data[:-300]) == Rejected("truncated")


def test_bytes_after_the_end_do_no_harm() -> None:
    assert isinstance(resize(encode("JPEG") + b"trailer"), Picture)
    assert isinstance(resize(encode("PNG") + b"trailer"), Picture)


def test_a_bomb_is_rejected_by_its_header() -> None:
    assert resize(png_that_says(25_000, 25_000)) == Rejected("image area too large")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_image_area": 90 * 60 - 1}, "image area too large"),
        ({"min_image_size": 61}, "image too small"),
        ({"max_aspect_ratio": 1.4}, "aspect ratio too large"),
    ],
)
def test_limits_are_counted_in_img2datasets_words(settings: dict[str, Any], reason: Reason) -> None:
    assert resize(encode("PNG"), **settings) == Rejected(reason)


def test_pictures_at_the_limit_pass() -> None:
    limits = {"max_image_area": 90 * 60, "min_image_size": 60, "max_aspect_ratio": 1.5}
    assert isinstance(resize(encode("PNG"), **limits), Picture)


def test_a_png_quality_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 9"):
        PixelSettings(encode_format="png", encode_quality=95)


def test_threads_share_a_resizer() -> None:
    wide = rgb_profile(ADOBE_RGB, 2.2)
    pictures = [encode(name) for name in FORMATS] + [encode("JPEG", icc_profile=wide)]
    resizer = PictureResizer(PixelSettings(image_size=32))
    alone = [resizer(data) for data in pictures]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(resizer, pictures * 8)) == alone * 8
