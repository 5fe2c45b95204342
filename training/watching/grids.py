"""Pictures on the way: the same captions and noise every time, the nearest of the corpus beside.

Writes  RUN/samples/step-000500.png, a row a caption: a drawn picture, its nearest, and so on, with
        a red frame around what is a copy; step-000500.json says it in words
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infra import storage
from training.config import Config
from training.data import decode
from training.drawing.png import png_bytes
from training.model import TrainedModel
from training.sheet import draw_grid, to_picture
from training.space import UpscaleSpace, unit_range
from training.watching.examples import Example, to_tensor
from training.watching.nearest import Finder, Nearest

SEED = 0
"""Not the run's: runs of other seeds are compared too."""
BATCH_SIZE = 64
FRAME_SHARE = 16
"""A frame is this part of the picture's side."""


@dataclass(frozen=True)
class Row:
    """One caption, and where it is from: "trained on", "held out" or "asked for"."""

    caption: str
    source: str
    pixels: Tensor | None
    """uint8 [3, S, S], its own picture where it has one."""


def make_rows(config: Config, seen: Sequence[Example], held_out: Sequence[Example]) -> list[Row]:
    """What every grid of a run shows. A super-resolution stage has nothing to enlarge for captions
    without a picture: those are left out."""
    num = config.watch.corpus_captions
    rows = [Row(one.caption, "trained on", one.pixels) for one in seen[:num]]
    rows += [Row(one.caption, "held out", one.pixels) for one in held_out[:num]]
    if config.space.upscale_from is None:
        rows += [Row(caption, "asked for", None) for caption in config.watch.grid_captions]
    return rows


@dataclass(frozen=True)
class Grid:
    url: str
    png: bytes
    num_copies: int | None
    """Drawn pictures that copy one of the corpus; None: it could not be told."""


def publish_grid(model: TrainedModel, rows: Sequence[Row], finder: "Finder | str") -> Grid:
    """`finder`, or why there is none."""
    watch, num = model.config.watch, model.config.watch.grid_pictures
    pictures = _draw(model, rows)
    found: list[Nearest | None] = [None] * len(pictures)
    if not isinstance(finder, str):
        found = [*finder.nearest([to_picture(picture) for picture in pictures])]
    shown = [_pair(*pair) for pair in zip(pictures, found, strict=True)]
    parts = [slice(i * num, (i + 1) * num) for i in range(len(rows))]
    labels = [_label(row, found[part]) for row, part in zip(rows, parts, strict=True)]
    cells = [[cell for pair in shown[part] for cell in pair] for part in parts]
    about: dict[str, Any] = {
        "checkpoint": model.step,
        "captions": [row.caption for row in rows],
        "sampler": watch.sampler,
        "num_steps": watch.grid_steps,
        "guidance_scale": watch.guidance_scale,
        "seed": SEED,
    }
    url = storage.join(model.config.run, "samples", f"step-{model.step:06d}.png")
    png = png_bytes(draw_grid(labels, cells), about)
    storage.publish_bytes(url, png)
    told = {
        **about,
        "nearest": finder if isinstance(finder, str) else "shown",
        "rows": [_told(row, found[part]) for row, part in zip(rows, parts, strict=True)],
    }
    storage.publish_text(url.removesuffix("png") + "json", json.dumps(told, indent=2) + "\n")
    copies = [nearest.is_copy for nearest in found if nearest is not None]
    return Grid(url, png, None if isinstance(finder, str) else sum(copies))


def _draw(model: TrainedModel, rows: Sequence[Row]) -> Tensor:
    """`grid_pictures` a row, [n, 3, S, S] in [-1, 1]."""
    watch = model.config.watch
    small = None
    if isinstance(model.space, UpscaleSpace):
        own = [unit_range(row.pixels[None]) for row in rows if row.pixels is not None]
        small = F.avg_pool2d(_repeated(own, watch.grid_pictures), model.space.scale)
    return model.draw(
        [row.caption for row in rows for _ in range(watch.grid_pictures)],
        num_steps=min(watch.grid_steps, model.schedule.num_timesteps),
        sampler=watch.sampler,
        guidance_scale=watch.guidance_scale,
        seed=SEED,
        batch_size=BATCH_SIZE,
        small=small,
    )


def _repeated(pictures: Sequence[Tensor], num: int) -> Tensor:
    return torch.cat([*pictures]).repeat_interleave(num, dim=0)


def _pair(picture: Tensor, nearest: Nearest | None) -> list[Tensor]:
    if nearest is None:
        return [picture]
    side = picture.shape[-1]
    other = unit_range(to_tensor(decode(nearest.image, side)))
    return [_framed(picture), _framed(other)] if nearest.is_copy else [picture, other]


def _framed(picture: Tensor) -> Tensor:
    """In red."""
    width = max(1, picture.shape[-1] // FRAME_SHARE)
    framed = picture.clone()
    for edge in (slice(None, width), slice(-width, None)):
        for part in (framed[:, edge], framed[:, :, edge]):
            part[0], part[1:] = 1.0, -1.0
    return framed


def _label(row: Row, found: Sequence[Nearest | None]) -> str:
    label = f"{row.caption} ({row.source})"
    told = [
        f"{nearest.similarity:.2f}{' copy' if nearest.is_copy else ''}"
        for nearest in found
        if nearest is not None
    ]
    return f"{label}; nearest: {', '.join(told)}" if told else label


def _told(row: Row, found: Sequence[Nearest | None]) -> dict[str, Any]:
    return {
        "caption": row.caption,
        "source": row.source,
        "pictures": [
            None
            if nearest is None
            else {
                "nearest": nearest.uid,
                "similarity": nearest.similarity,
                "is_copy": nearest.is_copy,
                "evidence": nearest.evidence,
            }
            for nearest in found
        ],
    }
