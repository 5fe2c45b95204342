"""Copies of a corpus's pictures, planted, and pictures that are in none."""

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from infra.cluster import Workers
from pipeline.corpus import Manifest, iter_samples, read_manifest
from retrieval import embed, index
from retrieval.copies import MAX_FALSE_POSITIVES, CopyDetector, CopyVerdict, copy_verdict
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import Encoder, load_encoder
from retrieval.encoding.pictures import decode_picture
from retrieval.search import Retriever

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"
NUM_INSIDE = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Manifest]) -> str:
    root = str(tmp_path_factory.mktemp("copies") / "corpus")
    make_corpus(root, 2, NUM_INSIDE // 2)
    embed.run(embed.Config(root=root, encoder=EMBEDDED_ENCODER, workers=Workers(local=True)))
    index.run(index.Config(root=root))
    return root


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(EMBEDDED_ENCODER)


@pytest.fixture(scope="module")
def detector(root: str) -> CopyDetector:
    return CopyDetector(Retriever.open(root))


@pytest.fixture(scope="module")
def inside(root: str) -> list[tuple[str, Image.Image]]:
    """uid and picture of every tenth sample."""
    samples = [one for shard in read_manifest(root).shards for one in iter_samples(root, shard)]
    return [(one.uid, decode_picture(one.image)) for one in samples[::10]]


def outside(num: int) -> list[Image.Image]:
    """Flags: nothing like the faces that the corpus is of."""
    with (EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        names = [row["file_name"] for row in csv.DictReader(file) if "flag of" in row["caption"]]
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        return [decode_picture(archive.read(name)) for name in names[:num]]


def recompressed(picture: Image.Image, quality: int = 40) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return decode_picture(buffer.getvalue())


def cropped(picture: Image.Image) -> Image.Image:
    return picture.crop((4, 4, picture.width - 4, picture.height - 4))


def noised(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture, np.float32)
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def ask(detector: CopyDetector, encoder: Encoder, picture: Image.Image) -> CopyVerdict:
    verdict = detector.verdict(picture, encoder.encode_images([picture])[0])
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda picture: picture, 0.9),
        (lambda picture: picture.resize((96, 96), Image.Resampling.BICUBIC), 0.8),
        (recompressed, 0.8),
        (noised, 0.8),
        (cropped, 0.7),
        (ImageOps.mirror, 0.8),
    ],
    ids=["same", "resized", "recompressed", "noised", "cropped", "mirrored"],
)
def test_copies_are_flagged_and_named(
    detector: CopyDetector,
    encoder: Encoder,
    inside: list[tuple[str, Image.Image]],
    change: Callable[[Image.Image], Image.Image],
    share: float,
) -> None:
    verdicts = [(ask(detector, encoder, change(picture)), uid) for uid, picture in inside]
    assert np.mean([one.is_copy and one.uid == uid for one, uid in verdicts]) >= share


def test_what_is_not_in_the_corpus_is_not_flagged(detector: CopyDetector, encoder: Encoder) -> None:
    verdicts = [ask(detector, encoder, picture) for picture in outside(20)]
    assert not any(verdict.is_copy for verdict in verdicts)
    assert all("no copy" in verdict.evidence for verdict in verdicts)
    assert all(verdict.false_positive_rate > MAX_FALSE_POSITIVES for verdict in verdicts)


def test_the_position_is_told(
    detector: CopyDetector, encoder: Encoder, inside: list[tuple[str, Image.Image]]
) -> None:
    """Of a picture that is no mirror image of itself."""
    uid, picture = next(
        (uid, picture)
        for uid, picture in inside
        if ask(detector, encoder, ImageOps.mirror(picture)).position == "mirrored"
    )
    verdict = ask(detector, encoder, picture)
    assert (verdict.position, verdict.uid, verdict.hash_distance) == ("upright", uid, 0)


def test_the_rate_says_how_many_of_the_corpus_are_as_near(
    root: str, detector: CopyDetector, encoder: Encoder
) -> None:
    retriever = Retriever.open(root)
    rows = np.arange(retriever.num_rows)
    similarities, _ = retriever.neighbours(retriever.vectors(rows, "image"), 2, "image")
    for picture in outside(3):
        verdict = ask(detector, encoder, picture)
        # None of this corpus's pictures is a copy of another.
        as_near = int((similarities[:, 1] >= verdict.similarity).sum())
        assert verdict.false_positive_rate == pytest.approx(
            (as_near + 1) / (len(rows) + 1), abs=0.1
        )


def test_one_call_gives_the_same_verdict(
    root: str, detector: CopyDetector, encoder: Encoder, inside: list[tuple[str, Image.Image]]
) -> None:
    uid, picture = inside[3]
    vector = encoder.encode_images([picture])
    verdict = copy_verdict(Retriever.open(root), picture, vector)
    assert verdict == detector.verdict(picture, vector[0])
    assert verdict is not None
    assert verdict.to_json()["uid"] == uid == verdict.uid


def test_a_blank_picture_has_no_hash_and_is_no_copy(
    detector: CopyDetector, encoder: Encoder
) -> None:
    verdict = ask(detector, encoder, Image.new("RGB", (64, 64), "white"))
    assert verdict.hash_distance is None
    assert not verdict.is_copy
