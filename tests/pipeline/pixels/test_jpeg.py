"""JPEG: reduced decoding, strictness, and what stands before the pixels."""

import io
import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.pixels.colour import Pixels
from pipeline.pixels.jpeg import UnsupportedJpegError, decode_jpeg, read_segments, reduction_for
from pipeline.pixels.picture_header import Reason, UnusableError
from pipeline.pixels.resize import resize
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings


def scenery(width: int, height: int) -> Pixels:
    """Detail at all sizes, fading with its fineness as in photos."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for side, strength in ((8, 60), (32, 25), (128, 10)):
        noise = rng.standard_normal((side, side, 3)) * strength
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + total, 0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "BGR", "420"))


def refused(data: bytes) -> Reason:
    with pytest.raises(UnusableError) as error:
        decode_jpeg(data, None)
    return error.value.reason


@pytest.mark.parametrize(
    ("stored", "wanted", "reduction"),
    [
        ((640, 480), (256, 192), 2),
        ((639, 480), (256, 192), 1),
        ((800, 600), (341, 256), 1),
        ((1600, 1200), (341, 256), 2),
        ((4000, 3000), (341, 256), 4),
        ((9000, 6000), (384, 256), 8),
        ((90_000, 60_000), (384, 256), 8),
        ((100, 100), (256, 256), 1),
        ((4000, 500), (2048, 256), 1),  # the side that is reduced less decides
    ],
)
def test_the_scale_leaves_more_than_is_wanted(
    stored: tuple[int, int], wanted: tuple[int, int], reduction: int
) -> None:
    assert reduction_for(stored, wanted) == reduction


@pytest.mark.parametrize("size", [(640, 480), (641, 479), (647, 487)])
@pytest.mark.parametrize("factor", [2.6, 3.3, 4.0, 5.3, 7.9, 8.1, 11.0])
def test_a_reduced_picture_looks_like_the_whole_one(size: tuple[int, int], factor: float) -> None:
    width, height = size
    data = jpeg(scenery(width, height))
    wanted = (int(width / factor), int(height / factor))
    whole = decode_jpeg(data, None)
    reduced = decode_jpeg(data, wanted)
    assert whole.pixels.shape == (height, width, 3)
    assert reduced.reduction > 1
    exact = cv2.resize(whole.pixels, wanted, interpolation=cv2.INTER_AREA)
    extent = (width / reduced.reduction, height / reduced.reduction)
    assert cv2.PSNR(resize(reduced.pixels, wanted, "area", extent), exact) > 38


def test_whole_decoding_is_opencvs_to_the_bit() -> None:
    data = jpeg(scenery(123, 77))
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert theirs is not None
    np.testing.assert_array_equal(decode_jpeg(data, None).pixels, theirs)


@pytest.mark.parametrize("num_missing", [1, 2, 10, 2000])
def test_a_picture_without_its_end_is_truncated(num_missing: int) -> None:
    assert refused(jpeg(scenery(200, 150))[:-num_missing]) == "truncated"


def test_damaged_data_is_refused_rather_than_shown_grey() -> None:
    data = jpeg(scenery(200, 150))
    middle = len(data) // 2
    assert refused(data[:middle] + data[middle + 500 :]) == "undecodable"


def test_a_few_bytes_before_the_end_mark_do_no_harm() -> None:
    data = jpeg(scenery(64, 48))
    padded = data[:-2] + bytes(5) + data[-2:]
    np.testing.assert_array_equal(decode_jpeg(padded, None).pixels, decode_jpeg(data, None).pixels)
    assert refused(data[:-2] + bytes(500) + data[-2:]) == "undecodable"


def test_scans_without_end_are_refused_before_they_cost_time() -> None:
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    # The first scan holds the mean of each block; repeated, it is a few kilobytes again and again.
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff", start + 2)
    while data[end + 1] in (0, *range(0xD0, 0xD8)):
        end = data.index(b"\xff", end + 2)
    bomb = data[:end] + data[start:end] * 300 + data[end:]
    assert refused(bomb) == "undecodable"


def test_grey_becomes_colour_and_is_known_for_it() -> None:
    grey = simplejpeg.encode_jpeg(scenery(32, 32)[:, :, :1].copy(), 90, "GRAY", "Gray")
    decoded = decode_jpeg(grey, None)
    assert decoded.pixels.shape == (32, 32, 3)
    assert not decoded.is_colour


def cmyk_jpeg(inks: tuple[int, int, int, int]) -> bytes:
    """As Adobe's programs write it, which Pillow follows: turned round, with their marker."""
    file = io.BytesIO()
    Image.new("CMYK", (24, 16), inks).save(file, "JPEG", quality=100)
    return file.getvalue()


def test_adobes_cmyk_is_turned_round_and_others_is_not() -> None:
    inks = (40, 80, 120, 160)
    adobes = cmyk_jpeg(inks)
    assert decode_jpeg(adobes, None).pixels[8, 12] == pytest.approx(inks, abs=1)
    start = adobes.index(b"\xff\xee")
    others = adobes[:start] + adobes[start + 16 :]
    turned = [255 - ink for ink in inks]
    assert decode_jpeg(others, None).pixels[8, 12] == pytest.approx(turned, abs=1)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def test_a_profile_is_put_together_from_its_chunks_in_their_order() -> None:
    head = b"ICC_PROFILE\0"
    data = jpeg(scenery(16, 16))
    chunks = segment(0xE2, head + b"\x02\x02" + b"second") + segment(0xE2, head + b"\x01\x02first ")
    found = read_segments(data[:2] + chunks + data[2:])
    assert found.profile == b"first second"
    assert found.exif == b""


@pytest.mark.parametrize("length", [0, 1, 2, 65535])
def test_lengths_that_lie_end_the_search(length: int) -> None:
    data = b"\xff\xd8" + struct.pack(">BBH", 0xFF, 0xE1, length) + b"Exif\0\0" + bytes(20)
    assert read_segments(data).profile is None


def test_a_jpeg_that_turbojpeg_does_not_know_is_left_to_pillow() -> None:
    """Chroma that is finer than the light: libjpeg can, its TurboJPEG interface has no name for."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 90, 90)).save(file, "JPEG", subsampling=0)
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 17] = 0x12
    with pytest.raises(UnsupportedJpegError):
        decode_jpeg(bytes(data), None)
    picture = PictureResizer(PixelSettings(resize_mode="no"))(bytes(data))
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (64, 48)
