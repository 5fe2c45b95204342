"""Colours against the formulas of CIE and sRGB (IEC 61966-2-1), not against a colour engine."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.icc_profiles import (
    ADOBE_RGB,
    D50,
    DISPLAY_P3,
    SRGB,
    Primaries,
    Triple,
    cmyk_profile,
    grey_profile,
    rgb_profile,
)
from pipeline.pixels.colour import Pixels, is_srgb, over_background, to_srgb

ROUNDING = 2
"""Levels: profiles hold 16-bit numbers, gammas in 256ths, engines 8-bit steps."""


def srgb_of_xyz(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] XYZ at D50 -> [3] RGB in [0, 255]."""
    linear = np.linalg.solve(np.array(SRGB).T, xyz).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(255 * encoded)


def srgb_of_lab(lab: Triple) -> NDArray[np.float64]:
    lightness, a, b = lab
    f = np.array([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, 0.0])
    f[2] = f[1] - b / 200
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array(D50)
    return srgb_of_xyz(xyz)


def patch(colour: Sequence[int]) -> NDArray[np.uint8]:
    return np.full((4, 6, len(colour)), colour, np.uint8)


def rgb_at_middle(pixels: Pixels) -> list[int]:
    assert pixels.shape == (4, 6, 3)
    return [int(value) for value in pixels[2, 3, ::-1]]


@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3])
@pytest.mark.parametrize(
    "colour", [(200, 120, 90), (60, 140, 80), (128, 128, 128), (255, 255, 255)]
)
def test_wide_gamut_colours_become_srgb(primaries: Primaries, colour: Triple) -> None:
    gamma = 563 / 256
    linear = (np.array(colour) / 255) ** gamma
    wanted = srgb_of_xyz(np.array(primaries).T @ linear)
    stored = patch([int(value) for value in colour[::-1]])
    profile = rgb_profile(primaries, gamma)
    assert not is_srgb(profile)
    assert rgb_at_middle(to_srgb(stored, profile)) == pytest.approx(wanted, abs=ROUNDING)


def test_a_colour_beyond_srgb_becomes_the_nearest_at_its_edge() -> None:
    green = to_srgb(patch((0, 255, 0)), rgb_profile(ADOBE_RGB, 2.2))
    assert rgb_at_middle(green) == [0, 255, 0]


def test_a_profile_of_srgb_changes_nothing() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = patch((13, 99, 240))
    assert is_srgb(profile)
    assert to_srgb(stored, profile) is stored


def test_srgb_colours_with_another_gamma_are_no_srgb() -> None:
    assert not is_srgb(rgb_profile(SRGB, 1.8))


def test_a_grey_profile_is_applied() -> None:
    wanted = srgb_of_xyz(np.array(D50) * (100 / 255) ** 1.8)
    grey = to_srgb(np.full((4, 6), 100, np.uint8), grey_profile(461 / 256))
    assert rgb_at_middle(grey) == pytest.approx(wanted, abs=ROUNDING)


def test_grey_without_a_profile_becomes_three_equal_channels() -> None:
    assert rgb_at_middle(to_srgb(np.full((4, 6), 77, np.uint8), None)) == [77, 77, 77]


@pytest.mark.parametrize(
    ("inks", "rgb"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((51, 102, 204, 51), (163, 122, 41)),  # 255 (1 - 0.2) (1 - 0.2), ...
    ],
)
def test_cmyk_without_a_profile_takes_light_away(
    inks: tuple[int, ...], rgb: tuple[int, ...]
) -> None:
    assert rgb_at_middle(to_srgb(patch(inks), None)) == pytest.approx(rgb, abs=1)


LAB_OF_INKS: dict[tuple[int, ...], Triple] = {
    (0, 0, 0, 0): (100.0, 0.0, 0.0),
    (1, 0, 0, 0): (60.0, -20.0, -30.0),
    (0, 1, 0, 0): (50.0, 50.0, 5.0),
    (0, 0, 1, 0): (90.0, -5.0, 60.0),
}


def press(inks: Sequence[int]) -> Triple:
    return LAB_OF_INKS.get(tuple(inks), (0.0, 0.0, 0.0))


@pytest.mark.parametrize(("inks", "lab"), LAB_OF_INKS.items())
def test_cmyk_with_a_profile_has_its_presss_colours(inks: tuple[int, ...], lab: Triple) -> None:
    pixels = patch([255 * ink for ink in inks])
    shown = rgb_at_middle(to_srgb(pixels, cmyk_profile(press)))
    assert shown == pytest.approx(srgb_of_lab(lab), abs=ROUNDING)


@pytest.mark.parametrize(
    "profile",
    [b"", b"not a profile", rgb_profile(ADOBE_RGB, 2.2)[:200], grey_profile(1.8), bytes(128)],
)
def test_a_profile_that_is_broken_or_of_another_space_is_left_out(profile: bytes) -> None:
    stored = patch((13, 99, 240))
    assert is_srgb(profile)
    assert rgb_at_middle(to_srgb(stored, profile)) == [240, 99, 13]


@pytest.mark.parametrize("alpha", [0, 1, 127, 128, 254, 255])
def test_transparent_pixels_are_mixed_with_the_background(alpha: int) -> None:
    above, below = np.array([250, 3, 90]), np.array([0x20, 0x80, 0xFF])
    wanted = np.rint((above * alpha + below * (255 - alpha)) / 255)
    mixed = over_background(patch((90, 3, 250)), np.full((4, 6), alpha, np.uint8), "#2080ff")
    assert rgb_at_middle(mixed) == wanted.tolist()
