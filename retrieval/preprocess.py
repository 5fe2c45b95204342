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
from retrieval.pictures import decode_picture

Pixels = NDArray[np.uint8]
"""[H, W, 3], RGB."""

ROUNDED_UP = 1 + 1e-12
"""torch rounds a size down that it works out from a factor; so much saves 223.9999... from it."""


@dataclass(frozen=True)
class Preprocess:
    """What a model's configuration says of its input; safe to call from threads."""

    height: int
    width: int
    mode: str
    """"shortest": to the shorter side, then the middle; "longest": to the longer side, then borders;
    "squash": to the size, whatever the shape was."""
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
        if header is not None and header.width * header.height <= MAX_IMAGE_AREA:
            height, width = self._resized(header.height, header.width)
            try:
                jpeg = decode_jpeg(data, (width, height))
            except UnusableError as error:
                raise InputError(f"undecodable picture ({error})") from error
            # Pictures that lie on a side, CMYK and grey with a profile are rare.
            if jpeg.orientation == UPRIGHT and jpeg.pixels.shape[2:] == (3,):
                extent = (header.height / jpeg.reduction, header.width / jpeg.reduction)
                # Its channels come in OpenCV's order.
                return self._fitted(jpeg.pixels, extent, (height, width))[:, :, ::-1]
        return self.of_picture(decode_picture(data))

    def of_picture(self, picture: Image.Image) -> Pixels:
        # A copy, for torch warns of memory that it may not write to.
        pixels = np.array(picture.convert("RGB"))
        extent = pixels.shape[:2]
        return self._fitted(pixels, extent, self._resized(*extent))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of this size is resized to, rounded as open_clip's transforms round it."""
        if self.mode == "squash":
            return self.height, self.width
        if self.mode == "shortest" and self.height == self.width:
            long = int(self.height * max(height, width) / min(height, width))
            return (self.height, long) if height <= width else (long, self.height)
        pick = max if self.mode == "longest" else min
        ratio = pick(height / self.height, width / self.width)
        return round(height / ratio), round(width / ratio)

    def _fitted(self, pixels: Pixels, extent: tuple[float, float], size: tuple[int, int]) -> Pixels:
        """`extent`: height and width of the picture in these pixels, the last of which may be a
        part: a JPEG of 477 rows decoded at half its scale has 239, and fills 238.5 of them."""
        return self._cropped(self._scaled(pixels, extent, size))

    def _scaled(self, pixels: Pixels, extent: tuple[float, float], size: tuple[int, int]) -> Pixels:
        if extent == size:
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


def _three(values: Any) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (float(values),) * 3
