"""Stored colours -> sRGB, as 8-bit BGR, OpenCV's order of channels.

A profile is applied only where it differs from sRGB, which most embedded ones do not; transforms
are kept, for the web uses few. A profile that is broken, or of another kind of picture than the one
it came with, is left out, as browsers do.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import cv2
import numpy as np
from cv2.typing import MatLike
from PIL import Image, ImageCms

Pixels = MatLike
"""uint8: [H, W] grey, [H, W, 3] BGR or [H, W, 4] CMYK with 0 for no ink."""

SAME_AS_SRGB = 2
"""Levels of 255 by which a profile may move a colour and still be taken for sRGB: makers' tables
and curves of sRGB differ by so much."""

MAX_PROFILE_BYTES = 4 << 20
"""Printing profiles have up to about 3 MB; what is larger is left out."""

MAX_BAND_AREA = 1 << 22
"""Pixels."""

_PILLOW_MODES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_PROFILE_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}
_DEVICE_CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """[H, W, 3] BGR in sRGB."""
    transform = _transform(profile, pixels) if profile else None
    if transform is not None:
        return in_bands(
            lambda band: cv2.cvtColor(_apply(transform, band), cv2.COLOR_RGB2BGR), pixels
        )
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    if pixels.shape[2] == 4:
        return _from_bare_cmyk(pixels)
    return pixels


def is_srgb(profile: bytes | None) -> bool:
    """Whether BGR pixels with this profile stay as they are."""
    return not profile or _transform(profile, np.zeros((1, 1, 3), np.uint8)) is None


def over_background(pixels: Pixels, alpha: Pixels, background: str) -> Pixels:
    """BGR laid over "#rrggbb", rounded to the nearest."""
    if alpha.min() == 255:
        return pixels
    colour = np.frombuffer(bytes.fromhex(background.lstrip("#")), np.uint8)[::-1]
    share = cv2.merge([alpha, alpha, alpha])
    ground = np.empty_like(pixels)
    ground[:] = colour
    above = cv2.multiply(pixels, share, dtype=cv2.CV_16U)
    below = cv2.multiply(ground, cv2.bitwise_not(share), dtype=cv2.CV_16U)
    return cv2.convertScaleAbs(cv2.add(above, below), alpha=1 / 255)


def in_bands(function: Callable[..., Pixels], *pixels: Pixels) -> Pixels:
    """[H, W, 3] of the function's answers to a few rows at a time: what it takes of memory on its
    way is bounded."""
    height, width = pixels[0].shape[:2]
    num_rows = max(1, MAX_BAND_AREA // width)
    if num_rows >= height:
        return function(*pixels)
    whole = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, num_rows):
        rows = slice(top, top + num_rows)
        whole[rows] = function(*(each[rows] for each in pixels))
    return whole


def _from_bare_cmyk(pixels: Pixels) -> Pixels:
    """Without a profile, ink takes light away in proportion: red is (1 - C) (1 - K)."""
    cyan, magenta, yellow, light = cv2.split(cv2.bitwise_not(pixels))
    return cv2.merge([cv2.multiply(ink, light, scale=1 / 255) for ink in (yellow, magenta, cyan)])


def _transform(profile: bytes, pixels: Pixels) -> ImageCms.ImageCmsTransform | None:
    space = _PROFILE_SPACES[1 if pixels.ndim == 2 else pixels.shape[2]]
    fits = profile[16:20] == space and profile[12:16] in _DEVICE_CLASSES
    return _cached_transform(profile) if fits and len(profile) <= MAX_PROFILE_BYTES else None


@lru_cache(maxsize=32)
def _cached_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Relative colorimetric with black point compensation, as in Adobe's programs by default."""
    mode = _PILLOW_MODES[profile[16:20]]
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        probe = levels[None]
        wanted = cv2.cvtColor(probe, cv2.COLOR_GRAY2RGB)
    else:
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        wanted = cv2.cvtColor(probe, cv2.COLOR_BGR2RGB)
    return int(cv2.absdiff(_apply(transform, probe), wanted).max()) <= SAME_AS_SRGB


def _apply(transform: ImageCms.ImageCmsTransform, pixels: Pixels) -> Pixels:
    """[H, W, 3] RGB."""
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        image = Image.fromarray(pixels)
    elif pixels.ndim == 3:
        height, width = pixels.shape[:2]
        image = Image.frombytes("CMYK", (width, height), pixels.tobytes())
    else:
        image = Image.fromarray(pixels)
    return np.asarray(cast(Image.Image, ImageCms.applyTransform(image, transform)))
