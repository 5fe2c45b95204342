"""A picture's bytes -> the pixels that an encoder was trained to see: open_clip's, by quicker ways.

open_clip decodes with Pillow, resizes with Pillow and crops or pads. Here libjpeg-turbo decodes,
at a reduced scale where the picture is much larger than the encoder's input, and torch resizes with
the same filter in 8 bits. Where nothing was reduced the pixels are Pillow's to within 1 of 255; the
tests hold what a reduction costs, in pixels and in the similarity of the embeddings.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from infra.errors import InputError
from pipeline.pixels.exif import UPRIGHT
from pipeline.pixels.jpeg import decode_jpeg
from pipeline.pixels.picture_header import UnusableError, read_turbo_header
from pipeline.pixels.pixel_settings import MAX_IMAGE_AREA
from retrieval.encoding.pictures import decode_picture

Pixels = NDArray[np.uint8]
"""[H, W, 3], RGB."""

MAX_ASPECT_RATIO = 32
"""Of pictures that are resized whole where only their middle is kept."""

ROUNDED_UP = 1 + 1e-12
"""torch rounds a size down that it works out from a factor; so much saves 223.9999... from it."""


@dataclass(frozen=True)
class Preprocess:
    """What a model's configuration says of its input; safe to call from threads."""

    height: int
    width: int
    mode: str
    """As open_clip names them: "shortest" side to its size, then the middle; "longest" side, then
    borders; "squash" to the size, whatever the shape was."""
    interpolation: str
    fill: int
    """Of the borders."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the channels, each in [0, 1]: what the encoder takes off and divides by."""

    @classmethod
    def of_model(cls, model: torch.nn.Module) -> "Preprocess":
        settings = open_clip.get_model_preprocess_cfg(model)
        cfg = open_clip.transform.PreprocessCfg(**settings)
        height, width = (cfg.size, cfg.size) if isinstance(cfg.size, int) else cfg.size
        # open_clip takes everything else for bicubic, and for shapes that aren't square this too.
        is_linear = cfg.interpolation == "bilinear"
        if cfg.resize_mode == "shortest" and height != width:
            is_linear = False
        return cls(
            height=height,
            width=width,
            mode=cfg.resize_mode,
            interpolation="bilinear" if is_linear else "bicubic",
            fill=cfg.fill_color if cfg.resize_mode == "longest" else 0,
            mean=_three(cfg.mean),
            std=_three(cfg.std),
        )

    def __call__(self, data: bytes) -> Pixels:
        """Raises InputError, with the reason, for bytes that can't be decoded whole."""
        header = read_turbo_header(data) if data[:3] == b"\xff\xd8\xff" else None
        if header is None or not self._is_ordinary(header.height, header.width):
            return self.of_picture(decode_picture(data))
        height, width = self._resized(header.height, header.width)
        try:
            jpeg = decode_jpeg(data, (width, height))
        except UnusableError as error:
            raise InputError(f"undecodable picture ({error})") from error
        if jpeg.orientation != UPRIGHT or jpeg.pixels.shape[2:] != (3,):
            # Lying on a side, CMYK, grey with a profile: too rare for a way of their own.
            return self.of_picture(decode_picture(data))
        extent = (header.height / jpeg.reduction, header.width / jpeg.reduction)
        pixels = self._scaled(np.asarray(jpeg.pixels, np.uint8), extent, (height, width))
        return self._cropped(pixels)[:, :, ::-1]  # from OpenCV's order of channels

    def of_picture(self, picture: Image.Image) -> Pixels:
        # A copy, for torch warns of memory that it may not write to.
        pixels = np.array(picture.convert("RGB"))
        if not self._is_ordinary(*pixels.shape[:2]):
            pixels = np.ascontiguousarray(_middle(pixels))
        height, width = pixels.shape[:2]
        return self._cropped(self._scaled(pixels, (height, width), self._resized(height, width)))

    def _is_ordinary(self, height: int, width: int) -> bool:
        """Neither a bomb nor made one by resizing, as a line of 60,000 pixels is, made 224 high."""
        is_cropped = self.mode == "shortest"
        is_long = is_cropped and max(height, width) > MAX_ASPECT_RATIO * min(height, width)
        return height * width <= MAX_IMAGE_AREA and not is_long

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of this size is resized to, rounded as open_clip's transforms round it."""
        if self.mode == "squash":
            return self.height, self.width
        if self.mode == "shortest" and self.height == self.width:
            long = int(self.height * max(height, width) / min(height, width))
            return (self.height, long) if height <= width else (long, self.height)
        pick = max if self.mode == "longest" else min
        ratio = pick(height / self.height, width / self.width)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _scaled(self, pixels: Pixels, extent: tuple[float, float], size: tuple[int, int]) -> Pixels:
        """`extent`: height and width of the picture in these pixels, the last of which may be a
        part: a JPEG of 477 rows decoded at half its scale has 239, and fills 238.5 of them."""
        if pixels.shape[:2] == size:
            return pixels
        # Channels last, as they lie, is also the order that torch is quickest with.
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        target: dict[str, Any] = {"size": size}
        if pixels.shape[:2] != extent:
            factors = (new / old * ROUNDED_UP for new, old in zip(size, extent, strict=True))
            target = {"scale_factor": tuple(factors)}
        resized = interpolate(batch, mode=self.interpolation, antialias=True, **target)
        scaled: Pixels = resized[0].permute(1, 2, 0).numpy()
        return scaled[: size[0], : size[1]]

    def _cropped(self, pixels: Pixels) -> Pixels:
        """The middle; where the picture is smaller, borders."""
        height, width = pixels.shape[:2]
        if (height, width) == (self.height, self.width):
            return pixels
        below, right = max(self.height - height, 0), max(self.width - width, 0)
        if below or right:
            borders = ((below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0))
            pixels = np.pad(pixels, borders, constant_values=self.fill)
            height, width = pixels.shape[:2]
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return pixels[top : top + self.height, left : left + self.width]


def _middle(pixels: Pixels) -> Pixels:
    """Without the ends that a crop throws away: in any case much more than it keeps."""
    height, width = pixels.shape[:2]
    top, left = (
        max(0, (side - MAX_ASPECT_RATIO * min(height, width)) // 2) for side in (height, width)
    )
    return pixels[top : height - top, left : width - left]


def _three(values: Any) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (float(values),) * 3
