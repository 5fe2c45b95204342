"""A full disk, a store that fails half its writes, a clock that jumps: what `pack` keeps."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.errors import StorageError
from pipeline import pack, select, verify
from pipeline.corpus import read_manifest
from tests.pipeline import full_disk, jumping_clock
from tests.pipeline.failing_store import FailingStore, until_it_ends


@pytest.fixture
def selected(small_corpus: str) -> str:
    select.run(select.Config(root=small_corpus, name="all", where="true"))
    return small_corpus


@pytest.fixture
def whole(selected: str, tmp_path: Path) -> Path:
    """What comes of it undisturbed."""
    pack.run(config(selected, tmp_path / "whole"))
    return tmp_path / "whole"


def config(root: str, output: Path | str, **settings: Any) -> pack.Config:
    fixed = {"selection": "all", "samples_per_shard": 5}
    return pack.Config(root=root, output=str(output), **fixed, **settings)


def command(root: str, output: Path, *others: str) -> list[str]:
    settings = ("--selection", "all", "--samples-per-shard", "5")
    return ["pack", root, str(output), *settings, *others]


def test_a_full_disk_costs_the_shards_that_do_not_fit(
    selected: str, whole: Path, tmp_path: Path
) -> None:
    attempts = full_disk.fill(tmp_path, 24 << 10, command(selected, tmp_path / "disk"))
    full_disk.check_told_and_kept(attempts, full_disk.digests(whole))
    num_whole = [sum("_stats.json" in path for path in one.files) for one in attempts]
    assert num_whole == sorted(num_whole)
    assert any(0 < num < 5 for num in num_whole)
    assert full_disk.digests(tmp_path / "done") == full_disk.digests(whole)


def test_a_full_disk_for_what_waits_is_named(selected: str, whole: Path, tmp_path: Path) -> None:
    """The new corpus has room, the spool of all that is read from front to back has none."""
    spooled = ("--sequential", "--spool", str(tmp_path / "disk"))
    attempts = full_disk.fill(tmp_path, 64 << 10, command(selected, tmp_path / "out", *spooled))
    full_disk.check_told_and_kept(attempts, {})
    assert len(attempts) > 1
    assert full_disk.digests(tmp_path / "out") == full_disk.digests(whole)


def test_shards_are_kept_that_were_whole_when_another_could_not_be_written(
    selected: str, whole: Path, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "out" / "shards" / "00000.tar"
    in_the_way.mkdir(parents=True)
    shutil.copy(whole / "stamp.json", tmp_path / "out")
    with pytest.raises(StorageError, match=r"00000\.tar"):
        pack.run(config(selected, tmp_path / "out", num_threads=8))
    kept = {path: path.stat().st_mtime_ns for path in in_the_way.parent.glob("*_stats.json")}
    assert kept
    in_the_way.rmdir()
    pack.run(config(selected, tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert full_disk.digests(tmp_path / "out") == full_disk.digests(whole)


def test_a_store_that_fails_half_its_writes_keeps_what_was_whole(
    selected: str, whole: Path, s3_bucket: str, failing_store: FailingStore
) -> None:
    there = config(selected, f"{s3_bucket}/out")

    def kept() -> list[str]:
        names = storage.list_names(f"{there.output}/shards")
        return [name for name in names if name.endswith("_stats.json")]

    failing_store.where = "/"
    until_it_ends(failing_store, lambda: pack.run(there), kept)
    assert read_manifest(there.output) == read_manifest(str(whole))
    assert verify.run(verify.Config(root=there.output)).counts["shards intact"] == 10


def test_a_clock_that_jumps_changes_nothing(selected: str, whole: Path, tmp_path: Path) -> None:
    jumping_clock.run(command(selected, tmp_path / "jumping"))
    assert full_disk.digests(tmp_path / "jumping") == full_disk.digests(whole)
