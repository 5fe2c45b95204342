"""Whole files of all formats through the resizer: every pixel is known beforehand."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.icc_profiles import ADOBE_RGB, cmyk_profile, grey_profile, rgb_profile
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
ROUNDING = 3
"""Levels that JPEG's and AVIF's own colours may be off by at their best quality."""


def file_of(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **LOSSLESS[name] | options)
    return file.getvalue()


def shown(data: bytes, **settings: Any) -> NDArray[np.uint8]:
    """[H, W, 3] RGB of the picture as stored, losslessly."""
    given = {"resize_mode": "no", "encode_format": "png", "encode_quality": 1} | settings
    picture = PictureResizer(PixelSettings(**given))(data)
    assert isinstance(picture, Picture), picture
    image = Image.open(io.BytesIO(picture.data))
    assert image.mode == "RGB"
    assert image.size == (picture.width, picture.height)
    return np.asarray(image)


def quarters() -> Image.Image:
    """48 x 32: red and green above blue and white."""
    image = Image.new("RGB", (48, 32), RED)
    image.paste(GREEN, (24, 0, 48, 16))
    image.paste(BLUE, (0, 16, 24, 32))
    image.paste(WHITE, (24, 16, 48, 32))
    return image


TURN_BACK = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What the camera did; the orientation asks for the opposite."""


# Orientation


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_turned_upright(name: str, orientation: int) -> None:
    turn = TURN_BACK[orientation]
    stored = quarters() if turn is None else quarters().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(stored, name, exif=exif)
    np.testing.assert_allclose(shown(data), np.asarray(quarters()), atol=ROUNDING)


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("keep_ratio", (12, 8)),
        ("keep_ratio_largest", (8, 5)),
        ("border", (8, 8)),
        ("center_crop", (8, 8)),
    ],
)
def test_a_turned_picture_is_resized_as_it_is_seen(mode: str, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(quarters().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    picture = PictureResizer(PixelSettings(resize_mode=mode, image_size=8))(data)
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == size
    assert (picture.original_width, picture.original_height) == (48, 32)
    corner = shown(data, resize_mode="keep_ratio", image_size=8)[0, 0]
    assert corner == pytest.approx(RED, abs=ROUNDING)


# Depth


def test_a_16_bit_grey_png_keeps_its_gradient() -> None:
    levels = np.arange(0, 65536, 256, dtype=np.uint16) + 77
    stored = np.tile(levels, (3, 1))
    data = file_of(Image.fromarray(stored), "PNG")
    wanted = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (3, 1, 3))
    np.testing.assert_array_equal(shown(data), wanted)


@pytest.mark.parametrize("name", [".png", ".tiff"])
def test_16_bit_colours_keep_their_gradient(name: str) -> None:
    levels = np.arange(0, 65536, 256, dtype=np.uint16) + 77
    stored = np.tile(np.stack([levels, levels[::-1], levels // 2], axis=-1)[None], (3, 1, 1))
    is_written, data = cv2.imencode(name, stored)
    assert is_written
    wanted = (stored[:, :, ::-1] >> 8).astype(np.uint8)
    np.testing.assert_allclose(shown(data.tobytes()), wanted, atol=1)


def test_a_16_bit_grey_tiff_keeps_its_gradient() -> None:
    levels = np.tile(np.arange(0, 65536, 256, dtype=np.uint16), (3, 1))
    pixels = shown(file_of(Image.fromarray(levels), "TIFF"))
    np.testing.assert_array_equal(pixels[0, :, 0], np.arange(256))


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (8, 8), 1)
    image.putpixel((3, 5), 0)
    pixels = shown(file_of(image, "PNG"))
    assert pixels[5, 3].tolist() == [0, 0, 0]
    assert pixels[3, 5].tolist() == [255, 255, 255]


# Colours


@pytest.mark.parametrize("name", LOSSLESS)
def test_grey_becomes_three_channels(name: str) -> None:
    pixels = shown(file_of(Image.new("L", (16, 16), 100), name))
    np.testing.assert_allclose(pixels, 100, atol=1)


@pytest.mark.parametrize("name", LOSSLESS)
def test_colours_come_out_in_their_order(name: str) -> None:
    pixels = shown(file_of(quarters(), name))
    np.testing.assert_allclose(pixels, np.asarray(quarters()), atol=ROUNDING)


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_is_what_its_inks_leave_of_white(name: str) -> None:
    pixels = shown(file_of(Image.new("CMYK", (16, 16), (51, 102, 204, 51)), name))
    np.testing.assert_allclose(pixels[8, 8], (163, 122, 41), atol=2)


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_has_its_colours(name: str) -> None:
    # A press whose cyan is Lab (53.3, 80, 67), which is next to sRGB's own red.
    def press(inks: Any) -> tuple[float, float, float]:
        return {(0, 0, 0, 0): (100.0, 0.0, 0.0), (1, 0, 0, 0): (53.3, 80.0, 67.0)}.get(
            tuple(inks), (0.0, 0.0, 0.0)
        )

    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = file_of(image, name, icc_profile=cmyk_profile(press))
    pixels = shown(data)[8, 8]
    assert pixels[0] >= 250
    assert max(pixels[1:]) <= 24


@pytest.mark.parametrize(
    ("name", "mode"),
    [("JPEG", "RGB"), *((n, m) for n in ("PNG", "WEBP", "TIFF", "AVIF") for m in ("RGB", "RGBA"))],
)
def test_wide_colours_become_srgb(name: str, mode: str) -> None:
    stored = Image.new(mode, (16, 16), (200, 120, 90))
    data = file_of(stored, name, icc_profile=rgb_profile(ADOBE_RGB, 563 / 256))
    # AdobeRGB's (200, 120, 90): linear by 2.2, through both matrices of colour.py's tests, sRGB's
    # curve back.
    np.testing.assert_allclose(shown(data)[8, 8], (224, 121, 88), atol=ROUNDING)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_pictures_profile_is_applied(mode: str) -> None:
    image = Image.new(mode, (16, 16), 100 if mode == "L" else (100, 255))
    # (100 / 255) ^ 1.8 of the light, by sRGB's curve.
    pixels = shown(file_of(image, "PNG", icc_profile=grey_profile(1.8)))
    np.testing.assert_allclose(pixels[8, 8], 119, atol=2)


def test_a_reduced_jpeg_has_its_profile_applied() -> None:
    image = Image.new("RGB", (640, 480), (200, 120, 90))
    data = file_of(image, "JPEG", icc_profile=rgb_profile(ADOBE_RGB, 563 / 256))
    pixels = shown(data, resize_mode="keep_ratio", image_size=32)
    assert pixels.shape == (32, 43, 3)
    np.testing.assert_allclose(pixels[16, 16], (224, 121, 88), atol=ROUNDING)


# Transparency


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("background", ["#ffffff", "#204080"])
def test_half_transparent_colours_are_mixed_with_the_background(name: str, background: str) -> None:
    data = file_of(Image.new("RGBA", (16, 16), (200, 100, 0, 128)), name)
    below = np.frombuffer(bytes.fromhex(background[1:]), np.uint8).astype(float)
    wanted = (np.array([200, 100, 0]) * 128 + below * 127) / 255
    pixels = shown(data, background=background)
    np.testing.assert_allclose(pixels[8, 8], wanted, atol=2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_parts_show_white_in_every_way_png_says_it(mode: str) -> None:
    """P, RGB and L name one colour (of the palette) as the transparent one, in a tRNS chunk."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (90, 90, 90, 255)
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        data = file_of(image.convert(mode), "PNG")
    else:
        keys: dict[str, Any] = {"P": 0, "RGB": (0, 0, 0), "L": 0}
        flat = Image.fromarray(pixels[:, :, 0]) if mode == "P" else image.convert(mode)
        if mode == "P":
            flat.putpalette([level for level in range(256) for _ in range(3)])
        assert flat.mode == mode
        data = file_of(flat, "PNG", transparency=keys[mode])
    seen = shown(data)
    assert seen[2, 1].tolist() == [255, 255, 255]
    assert seen[2, 6].tolist() == [90, 90, 90]


def test_a_transparent_gif_shows_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (4, 0, 8, 8))
    seen = shown(file_of(image, "GIF", transparency=0))
    assert seen[2, 1].tolist() == [255, 255, 255]
    assert seen[2, 6].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "CMYK"])
def test_a_picture_of_many_bands_is_seamless(mode: str) -> None:
    """Beyond 4 megapixels the work is done some rows at a time."""
    levels = np.tile(np.arange(2600, dtype=np.uint16)[:, None] // 11, (1, 2000)).astype(np.uint8)
    image = Image.fromarray(levels)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    elif mode == "CMYK":
        blank = Image.new("L", image.size)
        image = Image.merge("CMYK", (blank, blank, blank, Image.fromarray(255 - levels)))
    else:
        image = image.convert(mode)
    data = file_of(image, "TIFF" if mode == "CMYK" else "PNG")
    wanted = np.broadcast_to(levels[:, :, None], (2600, 2000, 3))
    np.testing.assert_array_equal(shown(data), wanted)


def test_borders_stay_white_whatever_the_background() -> None:
    data = file_of(Image.new("RGBA", (16, 8), (0, 0, 0, 0)), "PNG")
    pixels = shown(data, resize_mode="border", image_size=16, background="#ff0000")
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[8, 8].tolist() == [255, 0, 0]


# Palettes, frames


@pytest.mark.parametrize("name", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes_are_looked_up(name: str) -> None:
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    np.testing.assert_array_equal(shown(file_of(image, name)), np.asarray(quarters()))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "AVIF", "TIFF", "PNG"])
def test_of_many_frames_the_first_is_taken(name: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = file_of(frames[0], name, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(shown(data), np.asarray(frames[0]), atol=ROUNDING)


def test_a_page_of_another_size_changes_nothing() -> None:
    pages = [Image.new("RGB", (24, 16), RED), Image.new("L", (300, 200))]
    data = file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert shown(data).shape == (16, 24, 3)


# Keeping the bytes


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize(
    ("image", "options", "is_kept"),
    [
        (quarters(), {}, True),
        (quarters(), {"progressive": True}, True),
        (quarters(), {"exif": exif(1)}, True),
        (quarters(), {"exif": exif(6)}, False),
        (quarters(), {"icc_profile": rgb_profile(ADOBE_RGB, 2.2)}, False),
        (quarters(), {"icc_profile": b"broken"}, True),
        (quarters().convert("L"), {}, False),
        (quarters().convert("CMYK"), {}, False),
    ],
)
def test_bytes_are_kept_only_where_nothing_had_to_be_put_right(
    image: Image.Image, options: dict[str, Any], is_kept: bool
) -> None:
    data = file_of(image, "JPEG", **options)
    picture = PictureResizer(PixelSettings(resize_mode="no", skip_reencode=True))(data)
    assert isinstance(picture, Picture)
    assert (picture.data == data) == is_kept


def test_an_animation_is_not_kept_whole() -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in (RED, GREEN)]
    data = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    settings = {"resize_mode": "no", "skip_reencode": True, "encode_format": "webp"}
    picture = PictureResizer(PixelSettings(**settings))(data)
    assert isinstance(picture, Picture)
    assert picture.data != data
    assert not getattr(Image.open(io.BytesIO(picture.data)), "is_animated", False)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_transparent_colour_of_16_bits_leaves_others_opaque() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0x1234, 0x5678, 0x9ABC) * 4 for _ in range(4))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(shown(data)[2, 2], (0x12, 0x56, 0x9A))
