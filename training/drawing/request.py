"""What is asked of a model for a set of pictures, as it travels to the workers that draw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from infra.errors import ConfigError
from retrieval.encoding.pictures import decode_picture

if TYPE_CHECKING:
    from training.model import Beginning, TrainedModel
    from training.samplers import OnStep


@dataclass(frozen=True)
class Request:
    run: str
    checkpoint: int
    """Its step."""
    weights: str
    """16 hex digits that name its averaged weights, wherever they lie."""
    sampler: str
    num_steps: int
    guidance_scale: float
    negative: str
    rescale: float
    seed: int
    batch_size: int
    device: str
    init_image: bytes | None = None
    """A picture's file, to begin from."""
    strength: float = 1.0
    mask: bytes | None = None
    """A picture's file: white where to draw anew."""
    num_resamples: int = 0
    augmentation: float = 0.0
    shape: tuple[int, int] | None = None
    """Height and width; none: the square that the run was trained in."""

    def about(self) -> dict[str, Any]:
        """What decides the pictures, for their text: of RUN its name alone, for they are shown
        around."""
        names = ["checkpoint", "weights", "sampler", "num_steps", "guidance_scale", "negative"]
        names += ["rescale", "seed"]
        if self.init_image is not None:
            names += ["strength", "num_resamples"]
        if self.augmentation:
            names += ["augmentation"]
        about: dict[str, Any] = {"run": self.run.rstrip("/").rpartition("/")[2]}
        about |= {name: getattr(self, name) for name in names}
        if self.mask is not None and self.num_resamples:
            about["sampler"] = "repaint"  # which has a sampler of its own
        if self.shape is not None:
            about["height"], about["width"] = self.shape
        return about

    def beginning(self, image_size: int) -> "Beginning | None":
        """The picture to begin from, if any, cut as training cuts its own; of a square of
        `image_size` where no other shape is asked for."""
        from training.model import Beginning

        if self.init_image is None:
            return None
        shape = self.shape or (image_size, image_size)
        pixels = torch.from_numpy(_middle(self.init_image, shape)).permute(2, 0, 1)
        anew = None
        if self.mask is not None:
            anew = torch.from_numpy(_middle(self.mask, shape).mean(2) > WHITE)
        return Beginning(pixels, self.strength, anew, self.num_resamples)


WHITE = 127
"""What is lighter, of 255, is white in a mask."""


def draw(
    model: "TrainedModel",
    request: Request,
    captions: Sequence[str],
    *,
    first: int = 0,
    small: np.ndarray | None = None,
    on_step: "OnStep | None" = None,
) -> Tensor:
    """A picture a caption, `[n, 3, H, W]` in [-1, 1] on the CPU; `first` is the first's number.

    `small` [n, s, s, 3] uint8 is what a super-resolution stage enlarges, and only it takes.
    Raises ConfigError where it is missing or too much.
    """
    upscale_from = model.config.space.upscale_from
    if (small is None) != (upscale_from is None):
        what = (
            f"enlarges pictures of {upscale_from} pixels: expected --small, a folder or corpus "
            "of them"
            if small is None
            else "is no super-resolution stage: expected no --small"
        )
        raise ConfigError(f"{request.run}: {what}")
    return model.draw(
        captions,
        sampler=request.sampler,
        num_steps=request.num_steps,
        guidance_scale=request.guidance_scale,
        negative=request.negative,
        rescale=request.rescale,
        seed=request.seed,
        first=first,
        batch_size=request.batch_size,
        shape=request.shape,
        begin=request.beginning(model.config.image_size),
        small=None if small is None else torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1,
        augmentation=request.augmentation,
        on_step=on_step,
    )


def _middle(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """A picture's file -> as much of its middle as has this shape, `[H, W, 3]` uint8."""
    picture = ImageOps.fit(decode_picture(data), shape[::-1], Image.Resampling.BICUBIC)
    return np.array(picture)
