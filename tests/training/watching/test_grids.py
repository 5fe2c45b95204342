"""Grids beside the nearest pictures: one drawn by heart is framed in red, another is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from retrieval.index import Config as IndexConfig
from retrieval.index import run as index
from training.config import Config, WatchConfig
from training.diffusion import make_objective
from training.layers import Backbone
from training.log import read_events, read_metrics
from training.model import TrainedModel
from training.sheet import GAP, LINE_HEIGHT, MIN_SIDE
from training.space import make_space, unit_range
from training.text import make_captions
from training.train import run
from training.watching.examples import Example
from training.watching.grids import FRAME_SHARE, Row, publish_grid
from training.watching.nearest import open_finder

CPU = torch.device("cpu")
FRAME = MIN_SIDE // FRAME_SHARE
"""Its width on the sheet."""


class ByHeart(Backbone):
    """Knows a picture, and draws it from whatever noise and for whatever caption."""

    def __init__(self, x_0: Tensor) -> None:
        super().__init__()
        self.x_0 = x_0

    def forward(self, x_t: Tensor, *_: Tensor) -> Tensor:
        return self.x_0.expand_as(x_t)


def model_that_knows(picture: Tensor, config: Config) -> TrainedModel:
    return TrainedModel(
        config=config,
        step=7,
        network=ByHeart(picture),
        objective=make_objective(config, CPU),
        space=make_space(config, CPU),
        captions=make_captions(config, CPU),
        device=CPU,
    )


def cells(sheet: Image.Image, num_columns: int, row: int = 0) -> list[np.ndarray]:
    """The pictures of a row, as they stand there."""
    top = GAP + row * (MIN_SIDE + LINE_HEIGHT + GAP)
    lefts = [GAP + column * (MIN_SIDE + GAP) for column in range(num_columns)]
    pixels = np.asarray(sheet.convert("RGB"))
    return [pixels[top : top + MIN_SIDE, left : left + MIN_SIDE] for left in lefts]


def is_framed(cell: np.ndarray) -> bool:
    """In red all around; enlarging softens what touches the picture."""
    width = FRAME - 3
    edges = (cell[:width], cell[-width:], cell[:, :width], cell[:, -width:])
    return all(bool((edge[..., 0] > 250).all() and (edge[..., 1:] < 5).all()) for edge in edges)


@pytest.fixture
def config(searchable: str, config_of: Callable[..., Config], tmp_path: Path) -> Config:
    watch = WatchConfig(grid_pictures=2, grid_steps=2, sampler="ddim")
    changes = {"image_size": 64, "prediction": "x_0", "held_out": 0.0, "watch": watch}
    return config_of(str(tmp_path / "run"), root=searchable, **changes)


def told_of(config: Config) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        (Path(config.run) / "samples" / "step-000007.json").read_text()
    )
    return told


@pytest.mark.parametrize("how", ["embeddings", "index"])
def test_picture_drawn_by_heart_is_framed_beside_the_one_it_copies(
    how: str, searchable: str, example: Example, config: Config
) -> None:
    if how == "index":
        index(IndexConfig(root=searchable))
    finder = open_finder(searchable, CPU)
    assert type(finder).__name__ == f"{how.capitalize()}Finder"
    model = model_that_knows(unit_range(example.pixels), config)
    grid = publish_grid(model, [Row("a cat", "asked for", None)], finder)
    assert grid.num_copies == 2
    told = told_of(config)
    assert told["nearest"] == "shown"
    (row,) = told["rows"]
    for picture in row["pictures"]:
        assert picture["nearest"] == example.uid
        assert picture["is_copy"] is True
        assert "a copy of" in picture["evidence"]
    with Image.open(grid.url) as sheet:
        shown = cells(sheet, 4)  # each drawn picture, and its nearest
    assert all(is_framed(cell) for cell in shown)
    inside = [cell[2 * FRAME : -2 * FRAME, 2 * FRAME : -2 * FRAME].astype(int) for cell in shown]
    assert abs(inside[0] - inside[1]).mean() < 3  # drawn, and from the corpus


def test_picture_that_is_no_copy_stands_beside_its_nearest_without_a_frame(
    searchable: str, config: Config
) -> None:
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    finder = open_finder(searchable, CPU)
    grid = publish_grid(model_that_knows(noise, config), [Row("a cat", "asked for", None)], finder)
    assert grid.num_copies == 0
    (row,) = told_of(config)["rows"]
    assert [picture["is_copy"] for picture in row["pictures"]] == [False, False]
    assert all(-1 <= picture["similarity"] < 1 for picture in row["pictures"])
    with Image.open(grid.url) as sheet:
        assert sheet.width == GAP + 4 * (MIN_SIDE + GAP)
        assert not any(is_framed(cell) for cell in cells(sheet, 4))


def test_run_on_a_corpus_with_embeddings_shows_the_nearest(
    searchable: str, tiny_config: Callable[..., Config]
) -> None:
    watch = WatchConfig(
        held_out_every=0, grid_every=4, corpus_captions=1, grid_pictures=2, grid_steps=2
    )
    config = tiny_config(root=searchable, held_out=0.0, num_steps=4, watch=watch)
    run(config)
    told = json.loads((Path(config.run) / "samples" / "step-000004.json").read_text())
    assert told["nearest"] == "shown"
    assert all(len(picture["nearest"]) == 32 for row in told["rows"] for picture in row["pictures"])
    assert read_metrics(config.run)[-1]["grid_step"] == 4
    assert read_metrics(config.run)[-1]["grid_copies"] == 0  # after four steps it knows nothing
    assert not any(event["event"] == "no nearest pictures" for event in read_events(config.run))
    with Image.open(Path(config.run) / "samples" / "step-000004.png") as sheet:
        assert sheet.width == GAP + 4 * (MIN_SIDE + GAP)
