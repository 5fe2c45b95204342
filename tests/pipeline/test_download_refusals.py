"""Pictures that are not let in, and lists that give too few of them."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import ConflictError, InputError, ShortfallError
from infra.summary import Summary
from pipeline.corpus import iter_samples, read_manifest
from pipeline.download import Config, run
from pipeline.downloading import worklist
from pipeline.downloading.download_workers import make_downloader
from pipeline.picture_hash import picture_hash
from pipeline.sample import sample_uid
from pipeline.takedown.tombstones import Tombstone, add_tombstones, url_digest
from tests.pipeline.downloads import HERE, begin, config, contents, pictures, read_webdataset

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


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


def test_a_blocklist_is_known_by_what_it_holds(
    site: "Site", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hashes.txt").write_text("0" * 32)
    (tmp_path / "moved.txt").write_text("0" * 32)
    monkeypatch.chdir(tmp_path)
    settings = config(tmp_path, pictures(site, 2), "corpus", blocklist=["hashes.txt"])
    assert settings.blocklist == (str(tmp_path / "hashes.txt"),)
    run(settings)
    run(settings.model_copy(update={"blocklist": (str(tmp_path / "moved.txt"),)}))
    (tmp_path / "hashes.txt").write_text("1" * 32)
    with pytest.raises(ConflictError, match=r"another configuration \(blocklist"):
        run(settings)
    of_ones_own = Config(url_list="a", root="b", blocklist=("my_module:MyList",))
    assert of_ones_own.blocklist == ("my_module:MyList",)
    assert of_ones_own.identity()["blocklist"] == ["my_module:MyList"]


def test_a_takedown_by_likeness_counts_from_the_next_shard_on(site: "Site", tmp_path: Path) -> None:
    settings = config(tmp_path, pictures(site, 8), "corpus", resize_mode="no")
    begin(settings)
    plan = worklist.read_plan(settings.root)
    assert plan is not None
    first, second = worklist.slices(settings.root, plan)
    alike = picture_hash(np.asarray(Image.open(io.BytesIO(site.jpeg(5))).convert("RGB"))).hex
    with make_downloader(settings, plan) as downloader:
        assert isinstance(downloader(first), worklist.ShardRecord)
        add_tombstones(settings.root, [Tombstone("picture", alike, 31, "", "")])
        record = downloader(second)
    assert isinstance(record, worklist.ShardRecord)
    assert record.counts == {"success": 3, "taken down": 1}


def test_pictures_on_a_disk_are_refused_with_a_way_to_have_them(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(ShortfallError, match=r"python -m http\.server") as caught:
        run(config(tmp_path, [(f"file://{tmp_path}/1.jpg", "")], "corpus"))
    assert "\n" not in str(caught.value)


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


def test_a_short_list_of_which_too_little_came_falls_short_with_all_of_it_there(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    pairs = pictures(site, 1) + [(f"{site.url}/none.jpg?{i}", "gone") for i in range(39)]
    for _ in range(2):  # the second time it is found complete
        with pytest.raises(ShortfallError, match=r"1 of its 40 rows .*: http 404 \(39\)"):
            download(pairs)
        assert read_manifest(str(tmp_path / "corpus")).num_samples == 1
    assert download(pairs, min_success_rate=0.0).num_out == 1


def test_names_that_do_not_resolve_are_said_before_the_rows_fail(
    download: Callable[..., Summary],
) -> None:
    pairs = [(f"http://host-{i}.invalid/a.jpg", "a") for i in range(40)]
    with pytest.raises(ShortfallError, match="DNS fails") as caught:
        download(pairs)
    assert "\n" not in str(caught.value)


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
