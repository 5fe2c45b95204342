import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import InputError
from training import sample


def draw(run: str, output: Path, **changes: object) -> Image.Image:
    settings: dict[str, object] = {"captions": ("red heart", "a cat"), "num_images": 2}
    settings |= {"num_steps": 5} | changes
    sample.run(sample.Config(run=run, output=str(output), **settings))
    with Image.open(output) as image:
        image.load()
        return image


def test_grid_strip_and_their_metadata_are_written(trained_run: str, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    grid = draw(trained_run, tmp_path / "grid.png", strip=str(strip), seed=5)
    assert grid.width > 2 * 128
    assert grid.height > 2 * 128
    assert json.loads(grid.info["captions"]) == ["red heart", "a cat"]
    assert grid.info["seed"] == "5"
    assert grid.info["checkpoint"] == "12"
    with Image.open(strip) as opened:
        assert opened.width > 5 * 128  # a frame for each of the five steps


def test_same_seed_same_pictures_other_seed_others(trained_run: str, tmp_path: Path) -> None:
    first, again, other = (
        np.asarray(draw(trained_run, tmp_path / f"{i}.png", seed=seed))
        for i, seed in enumerate((1, 1, 2))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_caption_and_checkpoint_change_the_picture(trained_run: str, tmp_path: Path) -> None:
    plain = np.asarray(draw(trained_run, tmp_path / "a.png", checkpoint=12))
    older = np.asarray(draw(trained_run, tmp_path / "b.png", checkpoint=8))
    assert not np.array_equal(plain, older)


def test_batches_leave_the_strip_in_order(trained_run: str, tmp_path: Path) -> None:
    strips = []
    for size in (1, 64):
        strip = tmp_path / f"strip-{size}.png"
        draw(trained_run, tmp_path / "x.png", strip=str(strip), batch_size=size, num_images=1)
        with Image.open(strip) as opened:
            strips.append(opened.size)
    assert strips[0] == strips[1]


def test_mistakes_are_named(trained_run: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no captions: expected at least one"):
        draw(trained_run, tmp_path / "x.png", captions=())
    with pytest.raises(InputError, match="a caption is empty"):
        draw(trained_run, tmp_path / "x.png", captions=("cat", " "))
    with pytest.raises(InputError, match="no checkpoint of step 5; there are: 8, 12"):
        draw(trained_run, tmp_path / "x.png", checkpoint=5)
    with pytest.raises(InputError, match="no training run here"):
        draw(str(tmp_path), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
