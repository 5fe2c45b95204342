"""What was made of the samples that go follows: columns, selections, copies, packed corpora."""

import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from infra.errors import DamagedError
from pipeline import pack, report, score, select, verify
from pipeline.corpus import Shard, read_columns
from pipeline.dedup import stage as dedup
from pipeline.takedown.receipts import read_receipts
from pipeline.takedown.tombstones import TAKEN_DOWN, read_tombstones
from tests.pipeline.takedown.forgotten import HERE, KEY, URL, files, run, samples, turned_copy

EMOJI = Path(__file__).parents[3] / "examples" / "emoji"


def test_columns_and_selections_are_as_if_made_without_it(root: str) -> None:
    run(root, url=(URL,))
    followed = files(root)
    signals = ("caption", "image")
    score.run(score.Config(root=root, signals=signals, workers=HERE, overwrite=True))
    select.run(select.Config(root=root, name="long", where="num_words > 1"))
    anew = files(root)
    for name in followed:
        assert followed[name][0] == anew[name][0], name


def test_what_comes_after_finds_everything_done(root: str) -> None:
    run(root, url=(URL,))
    before = files(root)
    score.run(score.Config(root=root, signals=("caption", "image"), workers=HERE))
    columns = {name: old for name, old in before.items() if name.endswith("0.parquet")}
    assert columns.items() <= files(root).items()


def test_a_signal_that_was_still_being_scored_goes_on(root: str) -> None:
    folder = Path(root, "columns/caption")
    (folder / "manifest.json").unlink()
    (folder / "00001.parquet").unlink()
    run(root, url=(URL,))
    assert pq.read_table(folder / "00000.parquet").num_rows == 3
    score.run(score.Config(root=root, signals=("caption",), workers=HERE))
    assert verify.run(verify.Config(root=root)).counts["columns intact"] == 6


@pytest.mark.parametrize("name", ["columns/caption/00000.parquet", "selections/long.parquet"])
def test_what_is_damaged_is_not_taken_for_good(root: str, name: str) -> None:
    whole, manifest = Path(root, name).read_bytes(), Path(root, "manifest.json").read_bytes()
    Path(root, name).write_bytes(b"spoilt" + whole)
    with pytest.raises(DamagedError, match=rf"{name}: other bytes than its manifest says"):
        run(root, url=(URL,))
    assert Path(root, "manifest.json").read_bytes() == manifest
    Path(root, name).write_bytes(whole)
    assert run(root, url=(URL,)).counts == {"rows found": 1, "by url": 1}
    verify.run(verify.Config(root=root))


def test_pages_that_may_show_it_are_removed(root: str) -> None:
    """Each was written by its own command, whatever name that gives it."""
    tried = select.Config(root=root, name="tried", where="num_words > 2", dry_run=True)
    pages = [
        report.run(report.Config(root=root)).outputs["page"],
        select.run(tried).outputs["page"],
    ]
    caption = samples(root)[KEY].caption
    assert all(Path(page).is_relative_to(root) for page in pages)
    assert any(caption in Path(page).read_text(encoding="utf-8") for page in pages)
    run(root, url=(URL,))
    assert [page for page in pages if Path(page).exists()] == []
    assert set(read_receipts(root)[0].removed) >= {Path(page).name for page in pages}


def test_a_packed_corpus_follows_when_it_is_named(root: str, tmp_path: Path) -> None:
    packed = str(tmp_path / "packed")
    pack.run(pack.Config(root=root, output=packed, selection="long", samples_per_shard=3))
    uid = next(iter(samples(packed).values())).uid
    image = tmp_path / "copy.png"
    turned_copy(next(iter(samples(packed).values())).image).save(image)
    summary = run(root, near=(str(image),), also=(packed,))
    assert summary.counts["rows found"] == 2
    assert uid not in {sample.uid for place in (root, packed) for sample in samples(place).values()}
    assert read_tombstones(packed).reason(uid=uid) == TAKEN_DOWN
    assert len(read_receipts(packed)) == len(read_receipts(root)) == 1


@pytest.fixture
def deduplicated(tmp_path: Path) -> str:
    """Four copies of one picture and another picture, over two shards; and what dedup found."""
    with zipfile.ZipFile(EMOJI / "pictures.zip") as pictures:
        files = pictures.namelist()
        same, other = pictures.read(files[0]), pictures.read(files[9])
    names = ("width", "height", "original_width", "original_height")
    sides: dict[str, Any] = dict.fromkeys(names, 72)
    place = str(tmp_path / "corpus")
    shards: list[Shard] = []
    for shard, images in (("00000", (same, same, other)), ("00001", (same, same))):
        first = sum(one.num_samples for one in shards)
        made = [
            made_sample(
                f"{shard}{number:04d}",
                f"https://example.org/{number}.png",
                f"caption {number}",
                image,
                "png",
                **sides,
            )
            for number, image in enumerate(images, first)
        ]
        shards.append(write_made_shard(place, shard, made))
    write_made_manifest(place, shards)
    dedup.run(dedup.Config(root=place, workers=HERE))
    return place


def test_copies_of_what_goes_get_another_to_stand_for_them(deduplicated: str) -> None:
    root = deduplicated

    def duplicates() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = read_columns(root, "duplicates").to_pylist()
        return rows

    survivor = next(row["duplicate_of"] for row in duplicates() if row["duplicate_of"])
    run(root, uid=(survivor,))
    (heir,) = {row["duplicate_of"] for row in duplicates()} - {None}
    assert heir != survivor
    assert [row["duplicate_of"] for row in duplicates()].count(heir) == 2
    (stands,) = (row for row in duplicates() if row["uid"] == heir)
    assert stands["duplicate_of"] is stands["duplicate_evidence"] is None
    assert stands["duplicate_group"] == heir
    assert verify.run(verify.Config(root=root)).counts["tombstones kept"] == 1

    before = files(root)
    dedup.run(dedup.Config(root=root, workers=HERE))  # finds its work done
    after = files(root)
    for name in before:
        if name.startswith("columns/") and name.endswith(".parquet"):
            assert before[name] == after[name], name


def test_a_near_copy_is_found_by_the_hashes_that_were_scored(
    deduplicated: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    turned_copy(next(iter(samples(deduplicated).values())).image).save(copy)
    before = files(deduplicated)
    summary = run(deduplicated, near=(str(copy),))
    assert summary.counts == {"rows found": 4, "by near": 4}
    assert len(samples(deduplicated)) == 1
    assert (
        before["columns/hashes/00001.parquet"]
        != files(deduplicated)["columns/hashes/00001.parquet"]
    )
