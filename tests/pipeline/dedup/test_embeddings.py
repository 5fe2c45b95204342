"""Copies that only their embeddings tell."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from infra.errors import ConflictError, DamagedError
from tests.pipeline.dedup.planted import (
    HERE,
    NAMES,
    WriteCorpus,
    encoded,
    original,
    originals,
    rows_of,
    run,
)

ENCODER = "Carrara-S/emoji_clipart"


@pytest.fixture
def embedded(write_corpus: WriteCorpus) -> str:
    """Originals, copies cropped too far for a hash to tell, and a picture that isn't one."""
    from retrieval import embed

    copies = [("a copy", cropped(original(number))) for number in range(len(NAMES))]
    root = write_corpus([*originals(), ("damaged", b"no picture"), *copies])
    embed.run(embed.Config(root=root, encoder=ENCODER, device="cpu", workers=HERE))
    return root


def cropped(picture: Image.Image) -> bytes:
    return encoded(picture.crop((4, 3, 124, 125)))


def test_embeddings_find_what_hashes_miss(embedded: str) -> None:
    assert run(embedded).counts["kept"] >= 40
    summary = run(embedded, methods=("exact", "semantic"), eps=0.05, overwrite=True)
    rows = rows_of(embedded)
    copies = [(i, row["of"]) for i, row in enumerate(rows) if row["of"] is not None]
    assert len(copies) >= 16
    assert all({i, of} == {i % 21, 21 + i % 21} for i, of in copies)
    assert {rows[i]["duplicate_evidence"] for i, _ in copies} == {"semantic"}
    assert summary.counts["semantic"] == len(copies)
    with pytest.raises(ConflictError, match=r"eps = 0.05, now 0.3"):
        run(embedded, methods=("exact", "semantic"), eps=0.3)


def test_embeddings_find_held_out_pictures(embedded: str, tmp_path: Path) -> None:
    test_set = tmp_path / "test set"
    test_set.mkdir()
    for number in (3, 8):
        (test_set / f"{number}.jpg").write_bytes(cropped(original(number)))
    run(embedded, methods=("semantic",), eps=0.02, heldout=(str(test_set),))
    found = {i for i, row in enumerate(rows_of(embedded)) if row["in_heldout"]}
    assert {3 + 21, 8 + 21} <= found <= {3, 8, 3 + 21, 8 + 21}


def test_embeddings_of_another_corpus_are_refused(embedded: str, write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals(), "other")
    shutil.copytree(Path(embedded, "embeddings"), Path(root, "embeddings"))
    with pytest.raises(ConflictError, match=r"another state of the corpus.*carrara embed"):
        run(root, methods=("semantic",))


def test_damaged_embeddings_are_named(embedded: str) -> None:
    path = Path(embedded, "embeddings", ENCODER.replace("/", "__"), "img_emb", "img_emb_1.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedError, match=r"img_emb_1.npy: missing or damaged"):
        run(embedded, methods=("semantic",))
