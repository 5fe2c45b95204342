"""The whole stage, on corpora with planted copies."""

import hashlib
import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from infra.summary import Summary
from pipeline import score, select, verify
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    list_signals,
    read_columns,
    read_manifest,
    write_columns,
    write_manifest,
    write_shard,
)
from pipeline.dedup import stage
from pipeline.picture_hash import picture_hash
from pipeline.sample import Sample, sample_uid
from pipeline.signals.hashes import decode_pixels
from pipeline.takedown.tombstones import Tombstone, add_tombstones

PICTURES = Path(__file__).parents[3] / "examples" / "emoji" / "pictures.zip"
NAMES = (
    "1f34e 1f418 1f681 1f3e0 1f98b 1f3b8 1f6b2 1f451 1f4a1 1f433 1f345 1f380 1f40c 1f33b 1f96a "
    "1f682 1f9a9 1f344 1f9c0 1f3b2"
).split()
"""Emoji that look like no other of these."""
HERE = Workers(local=True)
ENCODER = "Carrara-S/emoji_clipart"

Picture = tuple[str, bytes]
"""Caption and bytes."""
WriteCorpus = Callable[..., str]


@cache
def original(number: int) -> Image.Image:
    """[128, 128] on white."""
    with zipfile.ZipFile(PICTURES) as archive:
        picture = Image.open(io.BytesIO(archive.read(f"{NAMES[number]}.png"))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=quality)
    return file.getvalue()


def same_pixels(picture: Image.Image) -> bytes:
    return encoded(Image.open(io.BytesIO(encoded(picture))), "PNG")


def watermarked(picture: Image.Image) -> bytes:
    marked = picture.copy()
    font = ImageFont.load_default(16)
    ImageDraw.Draw(marked, "RGBA").text((64, 64), "SAMPLE", (255, 255, 255, 150), font, anchor="mm")
    return encoded(marked)


COPIES: dict[str, tuple[Callable[[Image.Image], bytes], str, float]] = {
    "same bytes": (encoded, "bytes", 1.0),
    "same pixels": (same_pixels, "pixels", 1.0),
    "resized": (lambda picture: encoded(picture.resize((64, 64))), "perceptual", 0.9),
    "recompressed": (lambda picture: encoded(picture, quality=30), "perceptual", 0.9),
    "cropped": (lambda picture: encoded(picture.crop((1, 1, 128, 128))), "perceptual", 0.8),
    "watermarked": (watermarked, "perceptual", 0.9),
    "mirrored": (
        lambda picture: encoded(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "mirrored",
        0.9,
    ),
}
"""How a copy is made, the evidence that it leaves, and the recall that is asked for."""


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    """write_corpus(pictures, name="corpus", samples_per_shard=15) -> its root."""

    def write(pictures: list[Picture], name: str = "corpus", samples_per_shard: int = 15) -> str:
        root = str(tmp_path / name)
        shards = []
        for start in range(0, len(pictures), samples_per_shard):
            shard = f"{start // samples_per_shard:05d}"
            rows = [
                _row(f"{shard}{place:04d}", start + place, *picture)
                for place, picture in enumerate(pictures[start : start + samples_per_shard])
            ]
            images = [image for _, image in pictures[start : start + samples_per_shard]]
            samples = [
                Sample(row["key"], row["uid"], row["caption"], image, "jpg", row)
                for row, image in zip(rows, images, strict=True)
            ]
            table = pa.Table.from_pylist(rows, ROW_SCHEMA)
            shards.append(write_shard(root, shard, samples, table, {}))
        write_manifest(
            root,
            Manifest(
                stage="download",
                config={},
                config_digest="0" * 16,
                input_digest="0" * 16,
                shards=shards,
                counts={SUCCESS: len(pictures)},
            ),
        )
        return root

    return write


def _row(key: str, number: int, caption: str, image: bytes) -> dict[str, Any]:
    url = url_of(number)
    side = 128 + number  # a later one is larger
    return dict.fromkeys(ROW_SCHEMA.names) | {
        "key": key,
        "uid": sample_uid(url, caption),
        "url": url,
        "caption": caption,
        "status": SUCCESS,
        "sha256": hashlib.sha256(image).hexdigest(),
        **dict.fromkeys(["width", "height", "original_width", "original_height"], side),
    }


def url_of(number: int) -> str:
    return f"https://example.org/{number}.jpg"


def originals() -> list[Picture]:
    return [("a picture", encoded(original(number))) for number in range(len(NAMES))]


def with_copies(kind: str) -> list[Picture]:
    """The originals, and after them a copy of each."""
    make, _, _ = COPIES[kind]
    return originals() + [("a copy", make(original(number))) for number in range(len(NAMES))]


def run(root: str, **settings: Any) -> Summary:
    return stage.run(stage.Config(root=root, **{"workers": HERE, **settings}))


def rows_of(root: str) -> list[dict[str, Any]]:
    """The columns, with `of` the number of the sample that stays instead of this one."""
    rows: list[dict[str, Any]] = read_columns(root, "duplicates").to_pylist()
    numbers = {row["uid"]: number for number, row in enumerate(rows)}
    return [row | {"of": numbers.get(row["duplicate_of"])} for row in rows]


def files_of(root: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(root, "columns/duplicates").iterdir()}


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_and_nothing_else(write_corpus: WriteCorpus, kind: str) -> None:
    _, evidence, recall = COPIES[kind]
    root = write_corpus(with_copies(kind))
    summary = run(root)
    num = len(NAMES)
    copies = [(i, row) for i, row in enumerate(rows_of(root)) if row["of"] is not None]
    assert all(i % num == row["of"] % num for i, row in copies)  # precision 1
    assert len(copies) >= recall * num
    assert summary.counts["kept"] == summary.num_out == 2 * num - len(copies)
    assert Counter(row["duplicate_evidence"] for _, row in copies)[evidence] >= recall * num


def test_methods_find_their_own_evidence_only(write_corpus: WriteCorpus) -> None:
    root = write_corpus(with_copies("mirrored"))
    assert run(root, methods=("exact",)).counts == {"kept": 40}
    assert run(root, mirrored=False, overwrite=True).counts == {"kept": 40}
    assert run(root, overwrite=True).counts["mirrored"] >= 18


def test_one_grouping_over_all_evidence(write_corpus: WriteCorpus) -> None:
    picture = original(0)
    pictures = [("a picture", make(picture)) for make, _, _ in COPIES.values()]
    root = write_corpus(pictures + originals()[1:])
    run(root)
    rows = rows_of(root)
    # As well captioned as each other: the last is the largest.
    last = len(COPIES) - 1
    assert [row["of"] for row in rows[: last + 1]] == [last] * last + [None]
    assert {row["duplicate_group"] for row in rows[: last + 1]} == {rows[last]["uid"]}
    assert {row["duplicate_group"] for row in rows[last + 1 :]} == {None}


def test_the_better_captioned_survives_the_larger(write_corpus: WriteCorpus) -> None:
    image = encoded(original(0))
    root = write_corpus([("a red apple with a leaf", image), ("apple", image), ("a", image)])
    run(root)
    assert [row["of"] for row in rows_of(root)] == [None, 0, 0]


def test_words_beyond_a_sentence_do_not_count(write_corpus: WriteCorpus) -> None:
    image = encoded(original(0))
    root = write_corpus([("apple " * 300, image), ("a red apple " * 8, image)])
    run(root)
    assert [row["of"] for row in rows_of(root)] == [1, None]


def test_scored_similarity_of_caption_and_picture_counts_more_than_words(
    write_corpus: WriteCorpus,
) -> None:
    image = encoded(original(0))
    root = write_corpus([("buy cheap fruit online now", image), ("a red apple", image)])
    write_clip_columns(root, [0.1, 0.3])
    run(root)
    assert [row["of"] for row in rows_of(root)] == [1, None]
    write_clip_columns(root, [0.3, 0.1])
    with pytest.raises(ConflictError, match=r"clip = .*, now .*--overwrite"):
        run(root)


def write_clip_columns(root: str, similarities: list[float]) -> None:
    """As `score` does."""
    table = read_columns(root, "hashes") if "hashes" in list_signals(root) else None
    if table is None:
        score.run(score.Config(root=root, signals=("hashes",), workers=HERE))
        table = read_columns(root, "hashes")
    values = pa.array(similarities, pa.float32())
    write_columns(root, "clip", "00000", pa.table({"uid": table["uid"], "clip_similarity": values}))
    record = {
        "signal": "clip",
        "identity": {},
        "config_digest": str(similarities),
        "corpus_digest": read_manifest(root).digest,
        "files": {},
    }
    Path(root, "columns/clip/manifest.json").write_text(json.dumps(record))


def test_a_policy_drops_what_is_not_wanted_twice(write_corpus: WriteCorpus) -> None:
    root = write_corpus(with_copies("same bytes"))
    run(root)
    where = "duplicate_of IS NULL AND in_heldout IS NOT TRUE"
    summary = select.run(select.Config(root=root, name="unique", where=where))
    assert summary.num_out == len(NAMES)
    verify.run(verify.Config(root=root))


def test_the_same_command_again_finds_the_same(write_corpus: WriteCorpus) -> None:
    root = write_corpus(with_copies("resized"))
    first = run(root)
    before = files_of(root)
    again = run(root)
    assert again.counts == first.counts
    assert files_of(root) == before
    # Killed before the end: no manifest, and some files not there.
    Path(root, "columns/duplicates/manifest.json").unlink()
    Path(root, "columns/duplicates/00001.parquet").unlink()
    run(root)
    assert files_of(root) == before


def test_the_order_of_shards_does_not_decide_who_stays(write_corpus: WriteCorpus) -> None:
    pictures = with_copies("recompressed")
    roots = [write_corpus(pictures, "one", 40), write_corpus(pictures, "many", 7)]
    for root in roots:
        run(root)
    first, second = (read_columns(root, "duplicates").to_pylist() for root in roots)
    assert first == second


def test_other_settings_need_overwrite(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals())
    run(root)
    with pytest.raises(ConflictError, match=r"max_distance = 31, now 10"):
        run(root, max_distance=10)
    run(root, max_distance=10, overwrite=True)


def test_methods_are_the_same_in_any_order(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals()[:2])
    run(root, methods=("exact", "perceptual"))
    run(root, methods=("perceptual", "exact"))


def test_hashes_of_other_samples_are_noticed(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals(), samples_per_shard=10)
    score.run(score.Config(root=root, signals=("hashes",), workers=HERE))
    columns = Path(root, "columns/hashes")
    shutil.copy(columns / "00000.parquet", columns / "00001.parquet")
    with pytest.raises(DamagedError, match=r"hashes/00001.parquet: lists other samples"):
        run(root)


@pytest.fixture
def on_ray() -> Iterator[Workers]:
    import ray

    yield Workers(num_workers=1)
    ray.shutdown()


def test_ray_workers_write_the_same_bytes(write_corpus: WriteCorpus, on_ray: Workers) -> None:
    pictures = with_copies("watermarked")
    heldout = write_corpus(originals()[:3], "heldout")
    found = []
    for name, workers in (("here", HERE), ("ray", on_ray)):
        root = write_corpus(pictures, name)
        run(root, heldout=(heldout,), workers=workers)
        found.append(files_of(root))
    assert found[0] == found[1]


def test_what_was_taken_down_is_no_survivor(write_corpus: WriteCorpus) -> None:
    image = encoded(original(0))
    root = write_corpus([("a fine red apple", image), ("an apple", image), ("apple", image)])
    uid = sample_uid(url_of(0), "a fine red apple")
    add_tombstones(root, [Tombstone("uid", uid, None, "2026-01-01", "receipt")])
    summary = run(root)
    assert [row["of"] for row in rows_of(root)] == [None, None, 1]
    assert summary.details["taken down"] == 1
    other = sample_uid(url_of(1), "an apple")
    add_tombstones(root, [Tombstone("uid", other, None, "2026-01-02", "receipt")])
    with pytest.raises(ConflictError, match="tombstones = "):
        run(root)


def test_near_copies_of_a_picture_taken_down_are_no_survivors(write_corpus: WriteCorpus) -> None:
    root = write_corpus(with_copies("recompressed"))
    pixels = decode_pixels(encoded(original(0)))
    assert pixels is not None
    add_tombstones(root, [Tombstone("picture", picture_hash(pixels).hex, 31, "2026", "receipt")])
    summary = run(root)
    rows = rows_of(root)
    assert (rows[0]["of"], rows[20]["of"]) == (None, None)
    assert summary.details["taken down"] == 2


def test_pictures_too_plain_to_tell_apart_are_left_alone(write_corpus: WriteCorpus) -> None:
    flat = [("a colour", encoded(Image.new("RGB", (64, 64), name))) for name in ("red", "tan")]
    root = write_corpus([*flat, flat[0]])
    summary = run(root)
    assert summary.counts == {"kept": 2, "bytes": 1}
    assert summary.details["too plain to compare"] == 3


def test_pictures_that_can_not_be_decoded_are_rows_like_others(write_corpus: WriteCorpus) -> None:
    root = write_corpus([*originals(), ("damaged", b"no picture"), ("damaged, too", b"neither")])
    assert run(root).counts == {"kept": 22}


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


def test_a_shard_may_be_empty_but_not_the_corpus(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals()[:2], samples_per_shard=1)
    full = read_manifest(root)
    shard = write_shard(root, "00002", [], pa.Table.from_pylist([], ROW_SCHEMA), {})
    write_manifest(root, full.model_copy(update={"shards": [*full.shards, shard]}))
    assert run(root).counts == {"kept": 2}
    write_manifest(root, full.model_copy(update={"shards": [shard]}))
    with pytest.raises(InputError, match="no samples"):
        run(root)


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


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"heldout": ("{tmp}/nowhere",)}, InputError, "no pictures there; expected a folder"),
        ({"methods": ("semantic",)}, InputError, r"needs the embeddings.*run `carrara embed"),
        ({"spool": "{tmp}/nowhere"}, ConfigError, "no such folder here"),
    ],
)
def test_mistakes_are_one_line(
    write_corpus: WriteCorpus,
    tmp_path: Path,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    root = write_corpus(originals()[:2])
    filled = {
        name: tuple(one.format(tmp=tmp_path) for one in value)
        if isinstance(value, tuple)
        else value.format(tmp=tmp_path)
        for name, value in settings.items()
    }
    with pytest.raises(error, match=message) as caught:
        run(root, **filled)
    assert "\n" not in str(caught.value)
