import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from infra.cluster import Workers
from infra.errors import ConfigError, InputError
from training import sample, train
from training.config import Config, DataConfig, SpaceConfig
from training.drawing.png import png_bytes

LOCAL = Workers(local=True)


def draw(run: str, output: Path, **changes: object) -> Image.Image:
    settings: dict[str, object] = {"captions": ("red heart", "a cat"), "num_images": 2}
    settings |= {"num_steps": 5} | changes
    sample.run(sample.Config(run=run, output=str(output), **settings))
    with Image.open(output) as image:
        image.load()
        return image


def draw_set(run: str, output: Path, **settings: object) -> None:
    settings = {"captions": ("red heart", "a cat"), "num_steps": 2} | settings
    sample.run(sample.Config(run=run, output=str(output), **settings))


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


def test_an_animation_is_written_in_every_format_and_ends_as_the_grid(
    trained_run: str, tmp_path: Path
) -> None:
    for suffix in ("gif", "webp", "apng"):
        animation = tmp_path / f"x.{suffix}"
        draw(trained_run, tmp_path / "grid.png", animation=str(animation), num_images=1)
        with Image.open(animation) as moving:
            frames = [
                np.asarray(f.convert("RGB"), np.int16) for f in ImageSequence.Iterator(moving)
            ]
            assert 3 <= len(frames) <= 5  # one a step; equal ones may be one
            last = frames[-1]
        grid = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"), np.int16)
        assert np.abs(last - grid).mean() < (0.01 if suffix == "apng" else 12)
    with pytest.raises(ConfigError, match=r"--animation x\.mp4: expected a name that ends in"):
        draw(trained_run, tmp_path / "y.png", animation="x.mp4")


def test_a_picture_to_begin_from_and_a_mask_are_read_from_files(
    trained_run: str, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    Image.new("L", (16, 16), 0).save(tmp_path / "black.png")
    begun: dict[str, object] = {"init_image": str(tmp_path / "red.png"), "num_images": 1}
    grid = draw(trained_run, tmp_path / "a.png", mask=str(tmp_path / "black.png"), **begun)
    assert grid.getpixel((40, 40)) == (255, 0, 0)  # nothing was to be drawn anew
    assert grid.info["sampler"] == "ddpm"
    mask = str(tmp_path / "black.png")
    grid = draw(trained_run, tmp_path / "a.png", mask=mask, num_resamples=2, **begun)
    assert grid.info["sampler"] == "repaint"
    strip = str(tmp_path / "strip.png")
    draw(trained_run, tmp_path / "b.png", strength=0.4, strip=strip, **begun)
    with Image.open(strip) as opened:
        assert opened.width < 3 * (128 + 16)  # two of the five steps were left to take
    with pytest.raises(ConfigError, match="says where to draw a picture anew; expected --init-ima"):
        draw(trained_run, tmp_path / "c.png", mask=str(tmp_path / "black.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png: not a picture"):
        draw(trained_run, tmp_path / "c.png", init_image=str(tmp_path / "text.png"))
    with pytest.raises(InputError, match=r"none\.png: no such picture"):
        draw(trained_run, tmp_path / "c.png", init_image=str(tmp_path / "none.png"))
    with pytest.raises(ConfigError, match="shows a grid's pictures; expected --layout grid"):
        draw(trained_run, tmp_path / "set", layout="files", strip="x.png")


def test_a_run_that_was_trained_in_more_shapes_than_the_square_draws_in_them(
    trained_run: str, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    data = DataConfig(max_aspect_ratio=2.0, side_multiple=8)
    run = str(tmp_path / "run")
    train.run(config_of(run=run, image_size=32, data=data, num_steps=2, checkpoint_every=2))
    Image.new("RGB", (96, 32), "red").save(tmp_path / "red.png")
    Image.new("L", (48, 24), 0).save(tmp_path / "black.png")
    settings: dict[str, object] = {"layout": "files", "num_images": 1, "workers": LOCAL}
    draw_set(run, tmp_path / "wide", aspect_ratio=1.9, **settings)
    with Image.open(tmp_path / "wide" / "00000000.png") as picture:
        assert picture.size == (40, 24)
        assert (picture.info["width"], picture.info["height"]) == ("40", "24")
    begun = {"init_image": str(tmp_path / "red.png"), "mask": str(tmp_path / "black.png")}
    draw_set(run, tmp_path / "tall", aspect_ratio=0.6, **begun, **settings)
    with Image.open(tmp_path / "tall" / "00000001.png") as picture:
        assert picture.size == (24, 40)
        assert picture.getcolors() == [(24 * 40, (255, 0, 0))]
    draw_set(run, tmp_path / "square", **settings)
    with Image.open(tmp_path / "square" / "00000000.png") as picture:
        assert picture.size == (32, 32)
        assert "width" not in picture.info
    grid = draw(run, tmp_path / "grid.png", aspect_ratio=0.6)
    assert grid.height > 2 * 200
    with pytest.raises(ConfigError, match=r"--aspect-ratio 1\.9: expected from 1 to 1, the shapes"):
        draw(trained_run, tmp_path / "x.png", aspect_ratio=1.9)
    with pytest.raises(ConfigError, match=r"--aspect-ratio 0\.4: expected from 0\.5 to 2, the sh"):
        draw(run, tmp_path / "x.png", aspect_ratio=0.4)


def test_a_super_resolution_stage_enlarges_what_another_run_drew(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    stage = str(tmp_path / "stage")
    space = SpaceConfig(upscale_from=8)
    train.run(config_of(run=stage, space=space, num_steps=2, checkpoint_every=2))
    with pytest.raises(ConfigError, match="enlarges pictures of 8 pixels: expected --small"):
        draw(stage, tmp_path / "x.png")
    small = tmp_path / "small"
    small.mkdir()
    for i, caption in enumerate(("red heart", "a cat")):
        picture = Image.new("RGB", (8, 8), "red" if i else "blue")
        (small / f"{i}.png").write_bytes(png_bytes(picture, {"caption": caption}))
    grid = draw(stage, tmp_path / "x.png", captions=(), small=str(small))
    assert json.loads(grid.info["captions"]) == ["red heart", "a cat"]
    with pytest.raises(ConfigError, match="its pictures bring their captions"):
        draw(stage, tmp_path / "y.png", small=str(small))
