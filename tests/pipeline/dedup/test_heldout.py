"""Held-out pictures are found out in a corpus, wherever they lie."""

from pathlib import Path

import pytest
from PIL import Image

from infra.errors import ConflictError
from pipeline.corpus import list_signals
from tests.pipeline.dedup.planted import (
    COPIES,
    WriteCorpus,
    encoded,
    original,
    originals,
    rows_of,
    run,
    same_pixels,
)


def test_a_held_out_folder_is_found_out(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    root = write_corpus(originals())
    test_set = tmp_path / "test set" / "deeper"
    test_set.mkdir(parents=True)
    (test_set / "0.jpg").write_bytes(encoded(original(0)))
    (test_set / "1.PNG").write_bytes(same_pixels(original(1)))
    (test_set / "2.webp").write_bytes(encoded(original(2).resize((100, 90)), "WEBP"))
    mirrored = original(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (test_set / "3.jpg").write_bytes(encoded(mirrored))
    (test_set / "damaged.jpg").write_bytes(b"nothing")
    (test_set / "labels.csv").write_text("0,apple")
    summary = run(root, heldout=(str(tmp_path / "test set"),))
    assert [row["in_heldout"] for row in rows_of(root)] == [True] * 4 + [False] * 16
    assert summary.counts == {"kept": 20, "in held-out": 4}
    assert summary.details["held-out pictures that can't be decoded"] == 1
    assert summary.details["held-out pictures"] == 4


def test_a_held_out_corpus_is_found_out(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals())
    others = [("a test", COPIES["recompressed"][0](original(number))) for number in (5, 7)]
    heldout = write_corpus(others, "heldout")
    run(root, heldout=(heldout,), methods=("perceptual",))
    assert [i for i, row in enumerate(rows_of(root)) if row["in_heldout"]] == [5, 7]
    assert list_signals(heldout) == []  # nothing is written there


def test_without_held_out_sets_nothing_is_said_of_them(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals())
    run(root)
    assert {row["in_heldout"] for row in rows_of(root)} == {None}


def test_another_held_out_set_needs_overwrite(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals())
    sets = [write_corpus(originals()[:num], f"heldout-{num}") for num in (1, 2)]
    run(root, heldout=(sets[0],))
    with pytest.raises(ConflictError, match="heldout = "):
        run(root, heldout=(sets[1],))
