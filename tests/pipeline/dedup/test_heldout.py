"""Held-out pictures are found out in a corpus, wherever they lie."""

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from infra.errors import ConflictError
from pipeline.corpus import list_signals
from pipeline.dedup.embeddings import Embeddings, Unit
from pipeline.dedup.heldout import PICTURES_A_BATCH, read_heldout
from pipeline.picture_hash import Pixels
from tests.pipeline.dedup.planted import (
    COPIES,
    HERE,
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


def num_pictures_held() -> int:
    # By type: what else is held may warn when it is asked for its class.
    return sum(issubclass(type(one), Image.Image) for one in gc.get_objects())


class MeanColour:
    """An encoder that says what it was given at once, and how many pictures were held by then."""

    weights_digest = "none"
    batches: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, name: str) -> None:
        del name
        self.preprocess = SimpleNamespace(of_picture=lambda picture: np.asarray(picture)[:1, :1])

    def encode_pixels(self, pixels: Pixels) -> Unit:
        self.batches.append((len(pixels), num_pictures_held()))
        return pixels[:, 0, 0].astype(np.float32)


def test_held_out_pictures_are_embedded_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test set of large photos would fill memory."""
    monkeypatch.setattr("pipeline.dedup.heldout.ENCODER", f"{__name__}:MeanColour")
    num = 2 * PICTURES_A_BATCH + 3
    for number in range(num):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "050.jpg").write_bytes(b"nothing")
    monkeypatch.setattr(MeanColour, "batches", [])
    gc.collect()
    num_before = num_pictures_held()
    embeddings = Embeddings(
        encoder="mean", weights_digest="none", corpus_digest="", dim=3, parts=[], files={}
    )
    heldout = read_heldout([str(tmp_path)], embeddings, HERE)
    assert heldout.vectors[:, 0].tolist() == list(range(num))
    assert heldout.num_unreadable == 1
    assert [size for size, _ in MeanColour.batches] == [PICTURES_A_BATCH - 1, PICTURES_A_BATCH, 4]
    assert max(num_held for _, num_held in MeanColour.batches) <= num_before + 2
