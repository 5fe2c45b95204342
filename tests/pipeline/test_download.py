import hashlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from infra import storage
from infra.cluster import Workers
from infra.errors import ConflictError
from infra.summary import Summary
from pipeline.corpus import iter_samples, read_manifest, read_rows
from pipeline.download import Config, run
from pipeline.downloading.shard_rows import shard_key
from pipeline.sample import sample_uid
from tests.pipeline.downloads import (
    HERE,
    config,
    contents,
    picture_hits,
    pictures,
    read_webdataset,
)

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

# What is written


def test_shards_are_read_by_webdataset(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 6))
    tars = [str(tmp_path / "corpus" / "shards" / f"0000{i}.tar") for i in range(2)]
    samples = read_webdataset(tars)
    assert [sample["__key__"] for sample in samples] == [
        f"{shard:05d}{place}" for shard, place in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    ]
    for i, sample in enumerate(samples):
        assert Image.open(io.BytesIO(sample["jpg"])).size == (32, 32)
        assert sample["txt"].decode() == f"picture {i}"
        row = json.loads(sample["json"])
        assert row["url"] == site.picture(i)
        assert row["uid"] == sample_uid(site.picture(i), f"picture {i}")
        assert row["sha256"] == hashlib.sha256(site.jpeg(i)).hexdigest()
        assert (row["original_width"], row["original_height"]) == (48, 32)


def test_layout_and_vocabulary_are_img2datasets(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    """Against img2dataset itself, same list, same settings: all it has, ours has."""
    pairs = [*pictures(site, 2), (f"{site.url}/none.jpg", "gone"), (f"{site.url}/page.jpg", "page")]
    download(pairs, number_sample_per_shard=10)
    theirs = tmp_path / "theirs"
    options: dict[str, Any] = {
        "url_list": str(tmp_path / "corpus.parquet"),
        "output_folder": str(theirs),
        "input_format": "parquet",
        "caption_col": "caption",
        "output_format": "webdataset",
        "image_size": 32,
        "number_sample_per_shard": 10,
        "thread_count": 2,
        "processes_count": 1,
    }
    program = f"import img2dataset\nif __name__ == '__main__': img2dataset.download(**{options!r})"
    script = tmp_path / "theirs.py"
    script.write_text(program)
    subprocess.run(
        [sys.executable, str(script)],
        check=True,
        capture_output=True,
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"},
    )
    ours = tmp_path / "corpus" / "shards"
    their_rows, our_rows = (pq.read_table(place / "00000.parquet") for place in (theirs, ours))
    assert set(their_rows.column_names) <= set(our_rows.column_names)
    shared = ["url", "caption", "key", "status", "width", "original_height", "exif"]
    assert sorted(map(str, our_rows.select(shared).to_pylist())) == sorted(
        map(str, their_rows.select(shared).to_pylist())
    )
    their_stats, our_stats = (
        json.loads((place / "00000_stats.json").read_text()) for place in (theirs, ours)
    )
    assert our_stats.keys() == their_stats.keys()
    for name in ("count", "successes", "failed_to_download", "failed_to_resize"):
        assert our_stats[name] == their_stats[name]
    their_samples, our_samples = (
        {sample["__key__"]: sample for sample in read_webdataset([str(place / "00000.tar")])}
        for place in (theirs, ours)
    )
    assert their_samples.keys() == our_samples.keys()
    for key, sample in their_samples.items():
        their_size, our_size = (
            Image.open(io.BytesIO(one["jpg"])).size for one in (sample, our_samples[key])
        )
        assert their_size == our_size
        assert json.loads(sample["json"]).keys() <= json.loads(our_samples[key]["json"]).keys()


def test_every_row_is_accounted_for_with_its_reason(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    pairs = [
        *pictures(site, 3),
        (site.picture(0), "picture 0"),
        (site.picture(0), "the same picture in other words"),
        (f"{site.url}/none.jpg", "gone"),
        (f"{site.url}/page.jpg", "a page"),
        (f"{site.url}/cut.jpg", "half a picture"),
        (f"{site.url}/drip", "slow"),
        (f"{site.url}/größe.jpg", "not ASCII"),
        ("file:///etc/hostname", "a file"),
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        (None, "no URL"),
        (None, "no URL"),
        (site.picture(4), None),
        (site.picture(4), ""),
    ]
    summary = download(pairs, timeout=1.0)
    assert summary.counts == {
        "success": 5,
        "duplicate": 1,
        "http 404": 2,
        "not an image": 1,
        "truncated": 1,
        "timeout": 1,
        "refused scheme": 1,
        "refused address": 1,
        "null url": 2,
        "null caption": 1,
    }
    assert (summary.num_in, summary.num_out) == (len(pairs), 5)
    manifest = read_manifest(str(tmp_path / "corpus"))
    assert manifest.counts == summary.counts
    rows = [
        row
        for shard in manifest.shards
        for row in read_rows(str(tmp_path / "corpus"), shard).to_pylist()
    ]
    assert [(row["url"], row["caption"]) for row in rows] == pairs
    assert {row["status"] for row in rows} == {"success", "failed_to_download", "failed_to_resize"}
    assert all((row["error_message"] is None) == (row["status"] == "success") for row in rows)
    samples = [
        s for shard in manifest.shards for s in iter_samples(str(tmp_path / "corpus"), shard)
    ]
    assert len(samples) == 5
    assert len({sample.uid for sample in samples}) == 5


def test_duplicates_are_found_across_shards_and_the_first_is_kept(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download([*pictures(site, 6), *reversed(pictures(site, 6))])
    manifest = read_manifest(str(tmp_path / "corpus"))
    assert [shard.num_samples for shard in manifest.shards] == [4, 2, 0]
    assert manifest.counts == {"success": 6, "duplicate": 6}
    assert max(picture_hits(site)) == 1


def test_additional_columns_are_kept(site: "Site", tmp_path: Path) -> None:
    lines = [json.dumps({"u": site.picture(1), "c": "one", "licence": "CC0", "score": 0.5})]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    run(
        Config(
            url_list=str(tmp_path / "list.jsonl"),
            root=str(tmp_path / "corpus"),
            url_column="u",
            caption_column="c",
            save_additional_columns=("licence", "score"),
            allow_hosts=("127.0.0.1",),
            workers=HERE,
        )
    )
    (shard,) = read_manifest(str(tmp_path / "corpus")).shards
    (sample,) = iter_samples(str(tmp_path / "corpus"), shard)
    assert (sample.metadata["licence"], sample.metadata["score"]) == ("CC0", 0.5)


def test_nothing_but_the_corpus_is_left_behind(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 5))
    files = {
        str(path.relative_to(tmp_path / "corpus")) for path in (tmp_path / "corpus").rglob("*")
    }
    shards = {
        f"shards/0000{i}{suffix}" for i in (0, 1) for suffix in (".tar", ".parquet", "_stats.json")
    }
    assert files == {"manifest.json", "shards"} | shards


def test_list_and_corpus_may_be_on_s3(site: "Site", s3_bucket: str, tmp_path: Path) -> None:
    settings = config(tmp_path, pictures(site, 6), "local")
    storage.publish_bytes(f"{s3_bucket}/list.parquet", Path(settings.url_list).read_bytes())
    local = run(settings)
    there = {"url_list": f"{s3_bucket}/list.parquet", "root": f"{s3_bucket}/corpus"}
    remote = run(settings.model_copy(update=there))
    assert remote.details["corpus_digest"] == local.details["corpus_digest"]
    # SeaweedFS lists a folder for a while after the last file in it is gone.
    assert storage.list_names(f"{s3_bucket}/corpus/download/slices") == []
    assert len(storage.list_names(f"{s3_bucket}/corpus/shards")) == 6
    assert run(settings.model_copy(update=there)).counts == {"success": 6}
    assert max(picture_hits(site)) == 2
    with pytest.raises(ConflictError):
        run(settings.model_copy(update=there | {"image_size": 16}))


# The same bytes


def test_neither_workers_nor_threads_nor_arrival_change_a_byte(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    pairs = [*pictures(site, 9), (f"{site.url}/none.jpg", "gone")]
    one = download(pairs, "one", thread_count=1)
    site.slow_s = 0.05
    two = download(pairs, "two", thread_count=8, workers=Workers(num_workers=2))
    assert one.details["corpus_digest"] == two.details["corpus_digest"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_finished_corpus_is_not_fetched_again(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    first = download(pictures(site, 5))
    before = contents(tmp_path / "corpus")
    hits = dict(site.hits)
    second = download(pictures(site, 5), timeout=3.0, thread_count=2)
    assert second.counts == first.counts
    assert contents(tmp_path / "corpus") == before
    assert dict(site.hits) == hits


# What it reads


def test_a_txt_is_a_url_a_line(site: "Site", tmp_path: Path) -> None:
    lines = [site.picture(1), "", f"  {site.url}/a,b.jpg", f"{site.url}/größe.jpg", site.picture(2)]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    summary = run(
        Config(
            url_list=str(tmp_path / "list.txt"),
            root=str(tmp_path / "corpus"),
            oom_shard_count=3,
            number_sample_per_shard=100,
            allow_hosts=("127.0.0.1",),
            workers=HERE,
        )
    )
    assert summary.counts == {"success": 2, "http 404": 2}
    (shard,) = read_manifest(str(tmp_path / "corpus")).shards
    samples = list(iter_samples(str(tmp_path / "corpus"), shard))
    assert [(sample.key, sample.caption) for sample in samples] == [("00000", ""), ("00003", "")]


def test_keys_are_img2datasets() -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.downloader import compute_key

    for rows_a_shard in (1, 2, 9, 10, 11, 1000, 1001, 10_000):
        oom = math.ceil(math.log10(rows_a_shard))
        for place in (0, rows_a_shard - 1):
            for shard in (0, 7, 123_456):
                ours = shard_key(place, shard, rows_a_shard, 5)
                assert ours == compute_key(place, shard, oom, 5)


@pytest.mark.parametrize("name", ["key", "uid", "status", "fault"])
def test_columns_of_the_corpus_cannot_be_additional(name: str) -> None:
    with pytest.raises(ValidationError, match="already"):
        Config(url_list="a", root="b", save_additional_columns=(name,))


def test_where_and_how_fast_do_not_change_what_it_is() -> None:
    one = Config(url_list="a", root="b")
    two = Config(url_list="c", root="d", thread_count=1, timeout=3.0, workers=HERE)
    assert one.digest() == two.digest()
    assert one.digest() != Config(url_list="a", root="b", image_size=512).digest()
