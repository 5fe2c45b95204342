import gc
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from pydantic import ValidationError

from infra import storage
from infra.cluster import Workers
from infra.errors import ConflictError, InputError, ShortfallError
from infra.summary import Summary
from pipeline.corpus import iter_samples, read_manifest, read_rows
from pipeline.download import Config, run
from pipeline.downloading import worklist
from pipeline.downloading.pairs import open_pairs
from pipeline.downloading.shard_rows import shard_key
from pipeline.picture_hash import picture_hash
from pipeline.sample import sample_uid
from pipeline.takedown.tombstones import Tombstone, add_tombstones, url_digest

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

Pair = tuple[Any, Any]
HERE = Workers(local=True)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def download(tmp_path: Path) -> Callable[..., Summary]:
    """download(pairs, root="corpus", **settings) in this process, from a parquet list."""

    def call(pairs: Sequence[Pair], root: str = "corpus", **settings: Any) -> Summary:
        return run(config(tmp_path, pairs, root, **settings))

    return call


def config(folder: Path, pairs: Sequence[Pair], root: str, **settings: Any) -> Config:
    path = folder / f"{root}.parquet"
    urls, captions = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    defaults: dict[str, Any] = {
        "allow_hosts": ["127.0.0.1"],
        "image_size": 32,
        "number_sample_per_shard": 4,
        "thread_count": 4,
        "retries": 0,
        "workers": HERE,
    }
    return Config(url_list=str(path), root=str(folder / root), **defaults | settings)


def pictures(site: "Site", num: int) -> list[Pair]:
    return [(site.picture(i), f"picture {i}") for i in range(num)]


def picture_hits(site: "Site") -> list[int]:
    return [num for path, num in site.hits.items() if path.startswith("/picture/")]


def num_pictures_fetched(site: "Site") -> int:
    return sum(picture_hits(site))


def contents(root: Path) -> dict[str, str]:
    """sha256 of all that must come out the same: everything but the shards' times."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith("_stats.json")
    }


def read_webdataset(tars: list[str]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        # webdataset leaves its files to be closed by the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        gc.collect()
    return samples


def begin(settings: Config) -> None:
    """What a run leaves that was killed before its first shard."""
    pairs = open_pairs(settings.url_list, settings.columns)
    rows_a_slice = settings.number_sample_per_shard
    plan = worklist.Plan(
        input_digest=pairs.digest(),
        config=settings.identity(),
        config_digest=settings.digest(),
        num_rows=worklist.write_slices(settings.root, pairs, rows_a_slice),
        rows_a_slice=rows_a_slice,
    )
    worklist.write_plan(settings.root, plan)


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


PROGRAM = "import sys; from pipeline.download import Config, run\n"
PROGRAM += "run(Config.model_validate_json(sys.argv[1]))"


def test_a_driver_killed_in_the_middle_goes_on_where_it_stopped(
    site: "Site", tmp_path: Path
) -> None:
    pairs = pictures(site, 24)
    whole = run(config(tmp_path, pairs, "whole"))
    site.hits.clear()
    site.slow_s = 0.1
    settings = config(tmp_path, pairs, "killed", thread_count=1)
    done = tmp_path / "killed" / "download" / "done"
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, settings.model_dump_json()], cwd=REPOSITORY
    )
    wait_until(lambda: len(list(done.glob("*.json"))) >= 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    num_done = len(list(done.glob("*.json")))
    assert num_done < 6
    assert not (tmp_path / "killed" / "manifest.json").exists()
    site.slow_s = 0.0
    resumed = run(settings)
    assert resumed.details["corpus_digest"] == whole.details["corpus_digest"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert num_pictures_fetched(site) <= 24 + 4 * (6 - num_done)
    assert all(site.hits[f"/picture/{i}.jpg"] == 1 for i in range(4 * num_done - 4))


def test_killed_workers_change_nothing(site: "Site", tmp_path: Path) -> None:
    pairs = pictures(site, 24)
    whole = run(config(tmp_path, pairs, "whole"))
    site.slow_s = 0.1
    settings = config(tmp_path, pairs, "killed", thread_count=1, workers=Workers(num_workers=2))
    done = tmp_path / "killed" / "download" / "done"
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: bool(list(done.glob("*.json"))))
        for process in own_workers():
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(settings)
    killer.join()
    assert len(killed) == 2
    assert summary.details["corpus_digest"] == whole.details["corpus_digest"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def own_workers() -> list[int]:
    """Ray's worker processes that descend from this one, and from no other that runs here."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            )
            if b"ray::_Worker" in (folder / "cmdline").read_bytes():
                workers.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile

    def is_own(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return [process for process in workers if is_own(process)]


def test_a_shard_that_is_not_what_its_record_says_is_made_again(
    site: "Site", tmp_path: Path
) -> None:
    settings = config(tmp_path, pictures(site, 8), "corpus")
    run(settings)
    before = contents(tmp_path / "corpus")
    manifest = read_manifest(settings.root)
    (tmp_path / "corpus" / "manifest.json").unlink()
    begin(settings)
    for shard in manifest.shards:
        worklist.write_record(
            settings.root, worklist.ShardRecord(shard=shard, counts={"success": 4})
        )
    tar = tmp_path / "corpus" / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    site.hits.clear()
    run(settings)
    assert contents(tmp_path / "corpus") == before
    assert num_pictures_fetched(site) == 4


# What replaces a corpus


def test_a_list_that_gives_nothing_does_not_cost_the_old_corpus(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 6))
    (tmp_path / "corpus" / "columns").mkdir()
    before = contents(tmp_path / "corpus")
    with pytest.raises(ShortfallError, match="none of its 4 rows gave a picture"):
        download([(f"{site.url}/none.jpg?{i}", "gone") for i in range(4)], overwrite=True)
    assert contents(tmp_path / "corpus") == before
    assert (tmp_path / "corpus" / "columns").exists()
    assert not (tmp_path / "corpus" / "download").exists()


def test_an_overwrite_killed_half_way_leaves_the_old_corpus_and_goes_on(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 8))
    before = contents(tmp_path / "corpus")
    settings = config(tmp_path, pictures(site, 12), "corpus", thread_count=1, overwrite=True)
    site.slow_s = 0.1
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, settings.model_dump_json()], cwd=REPOSITORY
    )
    done = tmp_path / "corpus" / "download" / "done"
    wait_until(lambda: done.exists() and bool(list(done.glob("*.json"))))
    driver.kill()
    driver.wait()
    there = contents(tmp_path / "corpus")
    assert {name: digest for name, digest in there.items() if "download/" not in name} == before
    site.slow_s = 0.0
    site.hits.clear()
    resumed = run(settings)
    assert num_pictures_fetched(site) < 12
    fresh = download(pictures(site, 12), "fresh")
    assert resumed.details["corpus_digest"] == fresh.details["corpus_digest"]
    assert contents(tmp_path / "corpus") == contents(tmp_path / "fresh")


# What is not let in


def test_pictures_on_a_blocklist_are_refused_by_any_of_their_hashes(
    site: "Site", tmp_path: Path
) -> None:
    alike = picture_hash(np.asarray(Image.open(io.BytesIO(site.jpeg(2))).convert("RGB"))).hex
    made_up = tmp_path / "hashes.txt"
    made_up.write_text(
        f"md5:{hashlib.md5(site.jpeg(0)).hexdigest()}\n"
        f"sha256:{hashlib.sha256(site.jpeg(1)).hexdigest()}\n"
        f"pdq:{alike}\n"
    )
    urls = [site.picture(i) for i in range(5)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), tmp_path / "list.parquet")
    settings = Config(
        url_list=str(tmp_path / "list.parquet"),
        root=str(tmp_path / "corpus"),
        resize_mode="no",
        blocklist=(str(made_up),),
        allow_hosts=("127.0.0.1",),
        workers=HERE,
    )
    assert run(settings).counts == {"on a blocklist": 3, "success": 2}
    (shard,) = read_manifest(settings.root).shards
    assert [sample.caption for sample in iter_samples(settings.root, shard)] == urls[3:]


def test_bytes_with_another_hash_go_to_quarantine_with_their_distance(
    site: "Site", tmp_path: Path
) -> None:
    hashes = [hashlib.md5(site.jpeg(i)).hexdigest() for i in range(4)]
    near, far = (
        picture_hash(np.asarray(Image.open(io.BytesIO(site.jpeg(i))).convert("RGB"))).hex
        for i in (1, 7)
    )
    table = pa.table(
        {
            "url": [site.picture(i) for i in range(4)] + [f"{site.url}/page.jpg"],
            "caption": [str(i) for i in range(5)],
            "hash": [hashes[0].upper(), "0" * 32, "1" * 32, None, "2" * 32],
            "pdq": [near, near, far, far, near],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    settings = Config(
        url_list=str(tmp_path / "list.parquet"),
        root=str(tmp_path / "corpus"),
        resize_mode="no",
        verify_hash=("hash", "md5"),
        verify_picture_hash="pdq",
        allow_hosts=("127.0.0.1",),
        workers=HERE,
    )
    assert run(settings).counts == {"hash mismatch": 3, "success": 2}
    (shard,) = read_manifest(settings.root).shards
    assert [sample.caption for sample in iter_samples(settings.root, shard)] == ["0", "3"]
    quarantine = tmp_path / "corpus" / "quarantine" / "shards"
    rows = pq.read_table(quarantine / "00000.parquet").to_pylist()
    assert [(row["caption"], row["expected_hash"]) for row in rows] == [
        ("1", "0" * 32),
        ("2", "1" * 32),
        ("4", "2" * 32),
    ]
    assert rows[0]["picture_distance"] <= 31 < rows[1]["picture_distance"]
    assert rows[2]["picture_distance"] is None
    assert [row["error_message"] for row in rows] == ["hash mismatch"] * 2 + ["not an image"]
    samples = read_webdataset([str(quarantine / "00000.tar")])
    assert [sample["txt"] for sample in samples] == [b"1", b"2"]
    again = run(settings.model_copy(update={"root": str(tmp_path / "again")}))
    assert again.counts == {"hash mismatch": 3, "success": 2}
    assert contents(tmp_path / "again") == contents(tmp_path / "corpus")


def test_what_was_taken_down_does_not_come_back(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    stones = [
        Tombstone("url", url_digest(site.picture(0)), None, "", ""),
        Tombstone("sha256", hashlib.sha256(site.jpeg(1)).hexdigest(), None, "", ""),
        Tombstone("uid", sample_uid(site.picture(2), "picture 2"), None, "", ""),
    ]
    add_tombstones(str(tmp_path / "corpus"), stones)
    assert download(pictures(site, 4)).counts == {"taken down": 3, "success": 1}
    assert site.hits["/picture/0.jpg"] == site.hits["/picture/2.jpg"] == 0


def test_too_few_successes_stop_the_run_with_the_reasons(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    pairs = pictures(site, 20) + [(f"{site.url}/none.jpg?{i}", "gone") for i in range(1300)]
    settings: dict[str, Any] = {"number_sample_per_shard": 1500, "thread_count": 16}
    settings["opt_outs"] = ()
    message = r"20 of the first 1,000 rows gave a picture, under --min-success-rate 0.05: http 404"
    with pytest.raises(ShortfallError, match=message):
        download(pairs, **settings)
    assert sum(site.hits.values()) < 1300
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    assert download(pairs, **settings, min_success_rate=0.0).num_out == 20


def test_names_that_do_not_resolve_are_said_before_the_rows_fail(
    download: Callable[..., Summary],
) -> None:
    pairs = [(f"http://host-{i}.invalid/a.jpg", "a") for i in range(40)]
    with pytest.raises(ShortfallError, match="DNS fails") as caught:
        download(pairs)
    assert "\n" not in str(caught.value)


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


# What is refused


def test_another_list_into_the_same_place_is_a_conflict(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 4))
    before = contents(tmp_path / "corpus")
    other = config(tmp_path, pictures(site, 5), "other")
    other = other.model_copy(update={"root": str(tmp_path / "corpus")})
    with pytest.raises(ConflictError, match="another list") as caught:
        run(other)
    assert "--overwrite" in str(caught.value)
    assert contents(tmp_path / "corpus") == before


def test_another_configuration_is_a_conflict_that_names_the_settings(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 4))
    before = contents(tmp_path / "corpus")
    with pytest.raises(ConflictError, match="image_size = 32, now 16"):
        download(pictures(site, 4), image_size=16)
    assert contents(tmp_path / "corpus") == before


def test_shards_of_another_program_are_not_written_over(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    (tmp_path / "corpus" / "shards").mkdir(parents=True)
    (tmp_path / "corpus" / "shards" / "00000.tar").write_bytes(b"theirs")
    with pytest.raises(ConflictError, match="unknown origin"):
        download(pictures(site, 4))
    assert (tmp_path / "corpus" / "shards" / "00000.tar").read_bytes() == b"theirs"


def test_overwrite_replaces_the_corpus_and_what_was_made_from_it(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 8))
    (tmp_path / "corpus" / "columns" / "caption").mkdir(parents=True)
    add_tombstones(str(tmp_path / "corpus"), [Tombstone("uid", "0" * 32, None, "", "")])
    download(pictures(site, 4), overwrite=True)
    fresh = download(pictures(site, 4), "fresh")
    (tmp_path / "corpus" / "tombstones.parquet").unlink()
    assert contents(tmp_path / "corpus") == contents(tmp_path / "fresh")
    assert read_manifest(str(tmp_path / "corpus")).digest == fresh.details["corpus_digest"]


def test_a_list_that_breaks_half_way_leaves_the_old_corpus_as_it_was(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 4))
    shards = contents(tmp_path / "corpus")
    bad = tmp_path / "bad.csv"
    filler = "".join(f"http://a/{i}.jpg,{'x' * 100}\n" for i in range(20_000))
    bad.write_bytes(b"url,caption\n" + filler.encode() + b"http://a/b.jpg,caf\xe9\n")
    settings = config(tmp_path, pictures(site, 4), "corpus", overwrite=True)
    settings = settings.model_copy(update={"number_sample_per_shard": 10_000})
    with pytest.raises(InputError, match="can't be read as csv"):
        run(settings.model_copy(update={"url_list": str(bad)}))
    kept = contents(tmp_path / "corpus")
    assert {name: kept[name] for name in shards} == shards


def test_a_list_none_of_whose_rows_works_falls_short_and_says_why(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    pairs = [(f"{site.url}/none-{i}.jpg", "gone") for i in range(3)] + [(None, "no URL")]
    with pytest.raises(
        ShortfallError, match=r"none of its 4 rows .* http 404 \(3\), null url \(1\)"
    ):
        download(pairs)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    with pytest.raises(ShortfallError):
        download(pairs)
    assert site.hits["/none-0.jpg"] == 2


def test_a_bad_list_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(Config(url_list=str(tmp_path / "no.parquet"), root=str(tmp_path / "corpus")))
    assert not (tmp_path / "corpus").exists()


def test_a_shard_that_cannot_be_made_is_named_and_made_by_the_next_run(
    site: "Site", tmp_path: Path
) -> None:
    settings = config(
        tmp_path, pictures(site, 8), "corpus", workers=Workers(num_workers=1, max_retries=0)
    )
    begin(settings)
    in_the_way = tmp_path / "corpus" / "shards" / "00001.parquet" / "file"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    with pytest.raises(ShortfallError, match=r"1 of 2 shards failed: 00001 .*\(Is a directory"):
        run(settings)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    in_the_way.unlink()
    in_the_way.parent.rmdir()
    site.hits.clear()
    assert run(settings).counts == {"success": 8}
    assert num_pictures_fetched(site) == 4


@pytest.mark.parametrize("name", ["key", "uid", "status", "fault"])
def test_columns_of_the_corpus_cannot_be_additional(name: str) -> None:
    with pytest.raises(ValidationError, match="already"):
        Config(url_list="a", root="b", save_additional_columns=(name,))


def test_where_and_how_fast_do_not_change_what_it_is() -> None:
    one = Config(url_list="a", root="b")
    two = Config(url_list="c", root="d", thread_count=1, timeout=3.0, workers=HERE)
    assert one.digest() == two.digest()
    assert one.digest() != Config(url_list="a", root="b", image_size=512).digest()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
