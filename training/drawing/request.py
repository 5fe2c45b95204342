"""What is asked of a model for a set of pictures, as it travels to the workers that draw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from retrieval.encoding.pictures import decode_picture

if TYPE_CHECKING:
    from training.model import TrainedModel
    from training.samplers import OnStep


@dataclass(frozen=True)
class Request:
    run: str
    checkpoint: int
    """Its step."""
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

    def about(self) -> dict[str, Any]:
        """What decides the pictures, for their text; that of pictures begun from is theirs."""
        names = ("run", "checkpoint", "sampler", "num_steps", "guidance_scale", "negative")
        about = {name: getattr(self, name) for name in (*names, "rescale", "seed")}
        return about | ({} if self.init_image is None else {"strength": self.strength})


def draw(
    model: "TrainedModel",
    request: Request,
    captions: Sequence[str],
    *,
    first: int = 0,
    on_step: "OnStep | None" = None,
) -> Tensor:
    """A picture a caption, `[n, 3, S, S]` in [-1, 1] on the CPU; `first` is the first's number."""
    return model.draw(
        captions,
        sampler=request.sampler,
        num_steps=request.num_steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        first=first,
        batch_size=request.batch_size,
        on_step=on_step,
    )


def _pixels(data: bytes, size: int) -> Tensor:
    """A picture's file -> `[3, S, S]` in [-1, 1]: its middle, as in training."""
    square = ImageOps.fit(decode_picture(data), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1


def _mask(data: bytes, size: int) -> Tensor:
    """`[1, S, S]`: 1 where the mask is white, 0 where it is black."""
    square = ImageOps.fit(decode_picture(data), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square.convert("L")) > 127)[None].float()
