import io
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from infra.cluster import Workers
from pipeline import score
from pipeline.corpus import iter_samples, read_columns, read_manifest
from pipeline.picture_hash import MATCH, distance, from_hex, picture_hash
from pipeline.signals.hashes import HashesSignal, hash_picture


def encoded(picture: Image.Image, kind: str = "PNG", **settings: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def noise(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)


def test_every_sample_is_hashed_as_its_pixels_are(small_corpus: str) -> None:
    score.run(score.Config(root=small_corpus, signals=("hashes",), workers=Workers(local=True)))
    table = read_columns(small_corpus, "hashes")
    shard = read_manifest(small_corpus).shards[0]
    sample = next(iter_samples(small_corpus, shard))
    pixels = np.asarray(Image.open(io.BytesIO(sample.image)))
    row = table.filter(pc.equal(table["uid"], sample.uid)).to_pylist()[0]
    assert row["picture_hash"] == picture_hash(pixels).hex
    assert row["picture_hash_mirrored"] == picture_hash(pixels[:, ::-1]).hex
    assert table.num_rows == 24


def test_the_same_pixels_have_the_same_digest_in_any_file() -> None:
    picture = noise()
    png, bmp = hash_picture(encoded(picture)), hash_picture(encoded(picture, "BMP"))
    assert png == bmp
    assert hash_picture(encoded(noise(1)))["pixel_sha256"] != png["pixel_sha256"]


def test_the_shape_is_part_of_the_pixels() -> None:
    flat = [Image.new("RGB", size, "red") for size in ((8, 32), (16, 16))]
    first, second = (hash_picture(encoded(picture))["pixel_sha256"] for picture in flat)
    assert first != second


def test_a_copy_on_its_side_is_hashed_upright() -> None:
    picture = noise()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be shown turned by 90 degrees clockwise
    file = io.BytesIO()
    picture.rotate(90, expand=True).save(file, "PNG", exif=exif)
    assert hash_picture(file.getvalue()) == hash_picture(encoded(picture))


def test_transparent_parts_are_white() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (16, 16, 40, 48))
    page = Image.new("RGB", (64, 64), "white")
    page.paste((255, 0, 0), (16, 16, 40, 48))
    assert hash_picture(encoded(picture)) == hash_picture(encoded(page))


def test_recompression_changes_the_pixels_and_hardly_the_hash() -> None:
    one = hash_picture(encoded(noise()))
    other = hash_picture(encoded(noise(), "JPEG", quality=70))
    assert one["pixel_sha256"] != other["pixel_sha256"]
    hashes = [from_hex(str(row["picture_hash"])) for row in (one, other)]
    assert distance(*hashes) <= MATCH


def test_a_picture_that_can_not_be_decoded_has_no_hashes(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"):
        cut = encoded(noise(), kind)
        assert set(hash_picture(cut[: len(cut) // 2]).values()) == {None}, kind
    assert set(hash_picture(b"<!doctype html>")) == set(
        HashesSignal(str(tmp_path), {}).schema.names
    )
