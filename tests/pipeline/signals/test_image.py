import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from pipeline.corpus import read_manifest
from pipeline.signals.image import ImageSignal, _look_at, entropy, share_of_border, sharpness

EMOJI = Path(__file__).parents[3] / "examples" / "emoji" / "pictures.zip"


def test_entropy_of_equally_many_levels_is_their_logarithm() -> None:
    levels = np.arange(16, dtype=np.uint8).repeat(16).reshape(16, 16)
    assert entropy(levels) == pytest.approx(4.0)
    assert entropy(np.full((8, 8), 7, np.uint8)) == 0


def test_blurring_lowers_sharpness() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    picture = Image.fromarray(noise)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))
    assert sharpness(blurred) < sharpness(noise) / 10


def test_a_blurred_copy_of_a_picture_scores_less_sharp_and_a_framed_one_more_border() -> None:
    with zipfile.ZipFile(EMOJI) as archive:
        picture = Image.open(io.BytesIO(archive.read("1f34e.png"))).convert("RGB")
    copies = {
        "sharp": picture,
        "soft": picture.filter(ImageFilter.GaussianBlur(1)),
        "softer": picture.filter(ImageFilter.GaussianBlur(2)),
        "framed": ImageOps.expand(picture, 20, "white"),
    }
    scores = {name: _look_at(png(copy)) for name, copy in copies.items()}
    sharpness_of = {name: one["sharpness"] or 0.0 for name, one in scores.items()}
    assert sharpness_of["sharp"] > 2 * sharpness_of["soft"] > 4 * sharpness_of["softer"] > 0
    assert (scores["framed"]["share_of_border"] or 0) > 0.3 + (
        scores["sharp"]["share_of_border"] or 0
    )


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_border_is_the_area_around_the_content() -> None:
    page = np.full((100, 100), 255, np.uint8)
    page[25:75, 25:75] = 0
    assert share_of_border(page) == pytest.approx(0.75)
    assert share_of_border(np.full((10, 10), 3, np.uint8)) == 1


def test_pictures_smaller_than_the_filter_have_no_sharpness() -> None:
    assert sharpness(np.zeros((2, 9), np.uint8)) == 0


def test_a_shard_gives_sizes_and_pixels_scores(small_corpus: str) -> None:
    shard = read_manifest(small_corpus).shards[1]
    table = ImageSignal(small_corpus, {})(shard)
    assert table.num_rows == shard.num_samples
    assert set(table["original_short_side"].to_pylist()) == {480}
    assert table["original_aspect"][0].as_py() == pytest.approx(640 / 480)
    assert all(0 < value < 8 for value in table["entropy"].to_pylist())


def test_a_picture_that_cannot_be_decoded_scores_null(tmp_path: Path) -> None:
    assert _look_at(png(Image.new("RGB", (64, 64)))[:60])["entropy"] is None
    assert _look_at(b"<html>")["sharpness"] is None
    assert not list(tmp_path.iterdir())
