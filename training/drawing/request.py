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

    def about(self) -> dict[str, Any]:
        """What decides the pictures, for their text: of RUN its name alone, for they are shown
        around."""
        names = ["checkpoint", "weights", "sampler", "num_steps", "guidance_scale", "negative"]
        names += ["rescale", "seed"]
        if self.init_image is not None:
            names += ["strength", "num_resamples"]
        if self.augmentation:
            names += ["augmentation"]
        run = self.run.rstrip("/").rpartition("/")[2]
        return {"run": run} | {name: getattr(self, name) for name in names}

    def beginning(self, size: int) -> "Beginning | None":
        """The picture to begin from, if any, cut to the model's size as training cuts its own."""
        from training.model import Beginning

        if self.init_image is None:
            return None
        pixels = torch.from_numpy(_square(self.init_image, size)).permute(2, 0, 1)
        anew = None
        if self.mask is not None:
            anew = torch.from_numpy(_square(self.mask, size).mean(2) > WHITE)
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
    """A picture a caption, `[n, 3, S, S]` in [-1, 1] on the CPU; `first` is the first's number.

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
        begin=request.beginning(model.config.image_size),
        small=None if small is None else torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1,
        augmentation=request.augmentation,
        on_step=on_step,
    )


def _square(data: bytes, size: int) -> np.ndarray:
    """A picture's file -> its middle, `[S, S, 3]` uint8."""
    picture = ImageOps.fit(decode_picture(data), (size, size), Image.Resampling.BICUBIC)
    return np.array(picture)
