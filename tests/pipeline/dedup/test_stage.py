"""The whole stage, on corpora with planted copies."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from benchmarks.made_corpus import write_made_shard
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from pipeline import score, select, verify
from pipeline.corpus import (
    list_signals,
    read_columns,
    read_manifest,
    write_columns,
    write_manifest,
)
from pipeline.picture_hash import picture_hash
from pipeline.sample import sample_uid
from pipeline.signals.hashes import decode_pixels
from pipeline.takedown.tombstones import Tombstone, add_tombstones
from tests.pipeline.dedup.planted import (
    COPIES,
    HERE,
    NAMES,
    WriteCorpus,
    encoded,
    files_of,
    original,
    originals,
    rows_of,
    run,
    url_of,
    with_copies,
)


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


def test_a_shard_may_be_empty_but_not_the_corpus(write_corpus: WriteCorpus) -> None:
    root = write_corpus(originals()[:2], samples_per_shard=1)
    full = read_manifest(root)
    shard = write_made_shard(root, "00002", [])
    write_manifest(root, full.model_copy(update={"shards": [*full.shards, shard]}))
    assert run(root).counts == {"kept": 2}
    write_manifest(root, full.model_copy(update={"shards": [shard]}))
    with pytest.raises(InputError, match="no samples"):
        run(root)


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
