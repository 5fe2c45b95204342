"""What pictures are to become: img2dataset's options, by its names and with its defaults.

Apart from pixels.py, for that loads OpenCV, which a stage's configuration must not.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from infra.config import Settings

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
EncodeFormat = Literal["jpg", "png", "webp"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]

MAX_IMAGE_AREA = 1024 * 1024 * 1024 // 4 // 3
"""89 megapixels, a quarter of a GiB of RGB: from there on Pillow, too, warns of a bomb."""


class PixelSettings(Settings):
    """img2dataset's options, by its names and with its defaults, except `max_image_area`'s."""

    image_size: int = Field(default=256, ge=1)
    """Side in pixels that pictures are resized to."""
    resize_mode: ResizeMode = "border"
    """no; border: longest side, then white borders; keep_ratio: shortest side; keep_ratio_largest:
    longest side; center_crop: shortest side, then the middle."""
    resize_only_if_bigger: bool = False
    """Leave smaller pictures at their size."""
    upscale_interpolation: Interpolation = "lanczos"
    """How pictures are enlarged."""
    downscale_interpolation: Interpolation = "area"
    """How pictures are reduced."""
    encode_quality: int = Field(default=95, ge=0, le=100)
    """Of JPEG and WebP; for PNG the compression, 0 to 9."""
    encode_format: EncodeFormat = "jpg"
    """What pictures are stored as."""
    skip_reencode: bool = False
    """Keep the bytes as fetched where the picture needed no resizing and has the format already."""
    min_image_size: int = Field(default=0, ge=0)
    """Reject pictures whose shorter side has fewer pixels."""
    max_image_area: int = Field(default=MAX_IMAGE_AREA, ge=1)
    """Reject pictures of more pixels, by their header, before they are decoded."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Reject pictures whose longer side is more than so many times the shorter."""
    background: str = Field(default="#ffffff", pattern="^#[0-9a-fA-F]{6}$")
    """What shows through where a picture is transparent."""

    @model_validator(mode="after")
    def _check_png_quality(self) -> Self:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(
                f"encode_quality {self.encode_quality}: for png it is the compression, 0 to 9"
            )
        return self
