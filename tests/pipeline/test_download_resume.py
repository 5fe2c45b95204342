"""Downloads that were killed, or left with a shard that is no good, go on where they stopped."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.cluster import Workers
from infra.errors import ShortfallError
from infra.summary import Summary
from pipeline.corpus import read_manifest
from pipeline.download import run
from pipeline.downloading import worklist
from tests.pipeline.downloads import (
    begin,
    config,
    contents,
    num_pictures_fetched,
    pictures,
    start_driver,
    wait_until,
)

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def test_a_driver_killed_in_the_middle_goes_on_where_it_stopped(
    site: "Site", tmp_path: Path
) -> None:
    pairs = pictures(site, 24)
    whole = run(config(tmp_path, pairs, "whole"))
    site.hits.clear()
    site.slow_s = 0.1
    settings = config(tmp_path, pairs, "killed", thread_count=1)
    done = tmp_path / "killed" / "download" / "done"
    driver = start_driver(settings)
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


def test_killed_workers_change_nothing(
    site: "Site", tmp_path: Path, own_processes: Callable[[bytes], list[int]]
) -> None:
    pairs = pictures(site, 24)
    whole = run(config(tmp_path, pairs, "whole"))
    site.slow_s = 0.1
    settings = config(tmp_path, pairs, "killed", thread_count=1, workers=Workers(num_workers=2))
    done = tmp_path / "killed" / "download" / "done"
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: bool(list(done.glob("*.json"))))
        for process in own_processes(b"ray::_Worker"):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(settings)
    killer.join()
    assert killed  # one, where the other had not started yet
    assert summary.details["corpus_digest"] == whole.details["corpus_digest"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


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


def test_an_overwrite_killed_half_way_leaves_the_old_corpus_and_goes_on(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 8))
    before = contents(tmp_path / "corpus")
    settings = config(tmp_path, pictures(site, 12), "corpus", thread_count=1, overwrite=True)
    site.slow_s = 0.1
    driver = start_driver(settings)
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
