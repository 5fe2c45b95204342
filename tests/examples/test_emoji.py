"""The shipped emoji corpus: pictures and captions agree, and stay within what they promise."""

import csv
import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (EMOJI / "captions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_picture_has_one_caption_and_every_caption_a_picture(
    rows: list[dict[str, str]],
) -> None:
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        assert archive.testzip() is None
        assert sorted(row["file_name"] for row in rows) == archive.namelist()
    assert len(rows) == 1911


def test_every_picture_decodes_to_64_pixels() -> None:
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        for name in archive.namelist():
            with Image.open(io.BytesIO(archive.read(name))) as picture:
                picture.load()
                assert picture.size == (64, 64), name


def test_captions_are_distinct_and_readable(rows: list[dict[str, str]]) -> None:
    captions = [row["caption"] for row in rows]
    assert len({caption.lower() for caption in captions}) == len(captions)
    for caption in captions:
        assert 2 <= len(caption) <= 80, caption
        assert caption == caption.strip(), caption
        assert "_" not in caption, caption
        assert not caption.isupper() or len(caption) < 4, caption
    assert "flag of Egypt" in captions
    assert "grinning face" in captions


def test_the_corpus_fits_its_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in EMOJI.iterdir()) <= 10_000_000


def test_its_licences_stand_beside_it() -> None:
    assert "Apache License" in (EMOJI / "LICENSE.noto-emoji").read_text("utf-8")
    assert "Cal Henderson" in (EMOJI / "LICENSE.emoji-datasource").read_text("utf-8")
