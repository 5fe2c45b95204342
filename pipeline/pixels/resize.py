"""img2dataset's resize modes: which size a picture gets, and the pixels for it.

Sizes, centring and interpolations are those of img2dataset 1.47's Resizer, without its objects.
Reducing by "area" goes a quicker way to nearly the same pixels; docs/pixels.md has the figures.
"""

from dataclasses import dataclass
from typing import Literal

import cv2

from pipeline.pixels.colour import Pixels

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
Size = tuple[int, int]
"""Width and height."""
Extent = tuple[float, float]
"""Width and height, in pixels that may be parts."""

_INTERPOLATIONS: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}

LINEAR_UP_TO = 1.25
"""Reduced by so little, linear interpolation is nearer to the area's mean than what comes next."""
DOUBLED_UP_TO = 4.0
"""Reduced by more, points would be left out between those that are looked at."""
MAX_DOUBLED_AREA = 1 << 22
"""Pixels. A larger picture at twice its sides would take too much memory."""

_TURNS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class Resizing:
    """What a mode wants of all pictures."""

    image_size: int
    mode: ResizeMode
    only_if_bigger: bool
    upscale: Interpolation
    downscale: Interpolation

    def size_of(self, width: int, height: int) -> Size | None:
        """What a picture of this size is resized to, before crop or borders; None: it stays."""
        if self.mode == "no" or (self.only_if_bigger and not self.is_bigger(width, height)):
            return None
        scale = self.image_size / self._side(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def is_bigger(self, width: int, height: int) -> bool:
        return self._side(width, height) > self.image_size

    def interpolation(self, width: int, height: int) -> Interpolation:
        return self.downscale if self.is_bigger(width, height) else self.upscale

    def framed(self, pixels: Pixels) -> Pixels:
        """Cropped to the middle, or with white borders, where the mode says so."""
        height, width = pixels.shape[:2]
        side = self.image_size
        if self.mode == "center_crop":
            top, left = (height - side) // 2, (width - side) // 2
            return pixels[top : top + side, left : left + side]
        if self.mode == "border":
            below, right = side - height, side - width
            borders = (below // 2, below - below // 2, right // 2, right - right // 2)
            return cv2.copyMakeBorder(
                pixels, *borders, cv2.BORDER_CONSTANT, value=(255, 255, 255, 255)
            )
        return pixels

    def _side(self, width: int, height: int) -> int:
        pick = min if self.mode in ("keep_ratio", "center_crop") else max
        return pick(width, height)


def resize(pixels: Pixels, size: Size, interpolation: Interpolation, extent: Extent) -> Pixels:
    """`extent`: width and height of the picture in these pixels, the last of which may be a part.

    A JPEG of 477 rows decoded at half its scale has 239, of which the picture fills 238.5. To take
    it for 239 would shift what is seen by up to half a row, which costs 5 to 8 dB.
    """
    height, width = pixels.shape[:2]
    if size == (width, height) and extent == (width, height):
        return pixels
    least, factor = sorted((extent[0] / size[0], extent[1] / size[1]))
    if interpolation == "area" and least >= 1:
        if factor <= LINEAR_UP_TO:
            return _sampled(pixels, size, cv2.INTER_LINEAR, extent)
        if factor <= DOUBLED_UP_TO and size[0] * size[1] <= MAX_DOUBLED_AREA:
            # OpenCV is quick at linear interpolation and at the mean of 2 x 2, not at other areas.
            doubled = _sampled(pixels, (2 * size[0], 2 * size[1]), cv2.INTER_LINEAR, extent)
            return cv2.resize(doubled, size, interpolation=cv2.INTER_AREA)
    return _sampled(pixels, size, _INTERPOLATIONS[interpolation], extent)


def _sampled(pixels: Pixels, size: Size, interpolation: int, extent: Extent) -> Pixels:
    height, width = pixels.shape[:2]
    if (width, height) == extent:
        return cv2.resize(pixels, size, interpolation=interpolation)
    # Only where the size is left open does OpenCV keep to the factors.
    factor_x, factor_y = size[0] / extent[0], size[1] / extent[1]
    resized = cv2.resize(pixels, None, fx=factor_x, fy=factor_y, interpolation=interpolation)
    return resized[: size[1], : size[0]]


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """As EXIF's orientation asks: 2 mirrored, 3 upside down, 6 and 8 lying on a side, ..."""
    if orientation in (5, 7):
        pixels = cv2.transpose(pixels)
        orientation = 3 if orientation == 7 else 1
    if orientation in _TURNS:
        return cv2.rotate(pixels, _TURNS[orientation])
    if orientation in (2, 4):
        return cv2.flip(pixels, 1 if orientation == 2 else 0)
    return pixels
