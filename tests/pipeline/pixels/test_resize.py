"""Resizing against img2dataset's own Resizer, which it stands in for."""

import contextlib
import io
import os
import warnings
from typing import Any, cast, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.pixels.colour import Pixels
from pipeline.pixels.pixel_settings import Interpolation, ResizeMode
from pipeline.pixels.resize import resize, upright
from pipeline.pixels.resizer import Picture, PictureResizer, PixelSettings

MODES = get_args(ResizeMode)
SIZE = 32
SIDES = [(1, 1), (3, 200), (31, 32), (32, 32), (33, 32), (32, 40), (64, 64), (90, 60), (61, 127)]
SIDES += [(150, 37), (300, 211), (400, 1)]


@pytest.fixture(scope="module")
def img2dataset() -> Any:
    """Its resizer module, with stdout left alone and no word about newer versions."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import img2dataset.resizer as module
    module.SuppressStdoutStderr = contextlib.nullcontext
    return module


def scenery(width: int, height: int, seed: int = 0) -> Pixels:
    """Smooth like a photo, with every channel different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def png(pixels: Pixels) -> bytes:
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def psnr(ours: Pixels, theirs: Pixels) -> float:
    return cv2.PSNR(ours, theirs)


def options(**changed: Any) -> dict[str, Any]:
    return {
        "image_size": SIZE,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": False,
    } | changed


def theirs(module: Any, data: bytes, **changed: Any) -> tuple[bytes, tuple[int, ...], str | None]:
    given_options = {"encode_format": "png", "encode_quality": 1} | options(**changed)
    encoded, *sizes, error = module.Resizer(**given_options)(io.BytesIO(data))
    return encoded, tuple(sizes), error


def ours(data: bytes, **changed: Any) -> Picture:
    given_options = {"encode_format": "png", "encode_quality": 1} | options(**changed)
    picture = PictureResizer(PixelSettings(**given_options))(data)
    assert isinstance(picture, Picture), picture
    return picture


def decoded(data: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_sizes_and_pixels_are_img2datasets(
    img2dataset: Any, mode: str, only_if_bigger: bool, interpolation: str
) -> None:
    changed = {
        "resize_mode": mode,
        "resize_only_if_bigger": only_if_bigger,
        "upscale_interpolation": interpolation,
        "downscale_interpolation": interpolation,
    }
    for width, height in SIDES:
        data = png(scenery(width, height))
        expected, sizes, error = theirs(img2dataset, data, **changed)
        assert error is None
        picture = ours(data, **changed)
        assert (
            picture.width,
            picture.height,
            picture.original_width,
            picture.original_height,
        ) == sizes
        pixels = decoded(picture.data)
        assert pixels.shape == decoded(expected).shape
        if interpolation == "area":
            assert psnr(pixels, decoded(expected)) > 38, (width, height)
        else:
            np.testing.assert_array_equal(pixels, decoded(expected), f"{width} x {height}")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(1, 300),
    mode=st.sampled_from(MODES),
    only_if_bigger=st.booleans(),
)
def test_every_size_becomes_the_size_that_img2dataset_makes_of_it(
    img2dataset: Any, width: int, height: int, size: int, mode: str, only_if_bigger: bool
) -> None:
    data = png(np.zeros((height, width, 3), np.uint8))
    changed = {"image_size": size, "resize_mode": mode, "resize_only_if_bigger": only_if_bigger}
    changed |= {"upscale_interpolation": "nearest"}
    _, sizes, error = theirs(img2dataset, data, **changed)
    assert error is None
    picture = ours(data, **changed)
    assert (picture.width, picture.height) == sizes[:2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stored", "quality"), [("jpg", 95), ("jpg", 40), ("png", 6), ("webp", 80)]
)
def test_what_needs_no_resizing_is_encoded_to_the_same_bytes(
    img2dataset: Any, stored: str, quality: int
) -> None:
    changed = {"resize_mode": "no", "encode_format": stored, "encode_quality": quality}
    data = cv2.imencode(".jpg", scenery(70, 50))[1].tobytes()
    assert ours(data, **changed).data == theirs(img2dataset, data, **changed)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["no", "border", "keep_ratio"])
@pytest.mark.parametrize("side", [20, 50])
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("name", [".jpg", ".png", ".webp"])
def test_bytes_are_kept_where_img2dataset_keeps_them(
    img2dataset: Any, mode: str, side: int, only_if_bigger: bool, name: str
) -> None:
    changed = {"resize_mode": mode, "resize_only_if_bigger": only_if_bigger, "skip_reencode": True}
    changed |= {"encode_format": "jpg", "encode_quality": 95}
    data = cv2.imencode(name, scenery(side, side))[1].tobytes()
    kept = theirs(img2dataset, data, **changed)[0] == data
    assert (ours(data, **changed).data == data) == kept


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "limits", [{"min_image_size": 61}, {"max_image_area": 5399}, {"max_aspect_ratio": 1.49}]
)
def test_limits_are_refused_in_img2datasets_words(img2dataset: Any, limits: dict[str, Any]) -> None:
    data = png(scenery(90, 60))
    rejected = PictureResizer(PixelSettings(**limits))(data)
    assert not isinstance(rejected, Picture)
    assert rejected.reason == theirs(img2dataset, data, **limits)[2]


@pytest.mark.parametrize("factor", [1.02, 1.2, 1.3, 1.9, 2.0, 2.6, 3.9, 4.1, 7.0])
def test_reducing_is_the_mean_over_areas(factor: float) -> None:
    """The exact mean is OpenCV's own INTER_AREA."""
    pixels = scenery(480, 360)
    size = (round(480 / factor), round(360 / factor))
    exact = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    assert psnr(resize(pixels, size, "area", (480, 360)), exact) > 45


def test_a_part_of_a_row_is_counted_as_a_part() -> None:
    """A slope of 1 level a row, whose last row is there by half only."""
    slope = np.repeat(np.arange(101, dtype=np.uint8)[:, None, None], 100, axis=1)
    slope = np.repeat(slope, 3, axis=2)
    half = resize(slope, (50, 50), "area", (100.0, 100.5))[:, 25, 0]
    rows = 100.5 / 50
    wanted = rows * (np.arange(50) + 0.5) - 0.5
    np.testing.assert_allclose(half, wanted, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_turns_back_what_was_turned(orientation: int) -> None:
    pixels = scenery(5, 3)
    turned: dict[int, Pixels] = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }
    stored = np.ascontiguousarray(turned[orientation])
    np.testing.assert_array_equal(upright(stored, orientation), pixels)


def test_a_row_of_pixels_is_not_blown_up_beyond_the_limit() -> None:
    line = io.BytesIO()
    Image.new("RGB", (20_000, 2)).save(line, "PNG")
    resizer = PictureResizer(PixelSettings(resize_mode="keep_ratio"))
    refused = cast(Any, resizer(line.getvalue()))
    assert refused.reason == "image area too large"
