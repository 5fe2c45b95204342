"""Disk full, an object store that fails half its writes, a clock that jumps: what is kept."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import storage
from pipeline.corpus import read_manifest
from pipeline.download import Config, run
from tests.pipeline import downloads, full_disk, jumping_clock
from tests.pipeline.failing_store import FailingStore, until_it_ends

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def config(folder: Path, site: "Site", num: int) -> Config:
    settings: dict[str, Any] = {"retries": 2, "opt_outs": ("x-robots-tag",)}
    return downloads.config(folder, downloads.pictures(site, num), "corpus", **settings)


def command(settings: Config, root: Path) -> list[str]:
    """The same on the command line, into another place."""
    sizes = ("--image-size", "32", "--number-sample-per-shard", "4", "--thread-count", "4")
    fetching = ("--allow-hosts", "127.0.0.1", "--retries", "2", "--opt-outs", "x-robots-tag")
    return ["download", settings.url_list, str(root), *sizes, *fetching, "--local"]


def test_a_disk_that_fills_up_costs_the_shards_that_do_not_fit(
    site: "Site", tmp_path: Path
) -> None:
    settings = config(tmp_path, site, 11)
    whole = run(settings)
    arguments = command(settings, tmp_path / "disk")
    attempts = full_disk.fill(tmp_path, 40 << 10, arguments)
    # Slices, records and runs are a command's own; _stats.json has times.
    notes = ("download/", "runs/", "_stats.json")
    full_disk.check_told_and_kept(attempts, full_disk.digests(Path(settings.root)), besides=notes)
    num_done = [sum(path.startswith("download/done/") for path in one.files) for one in attempts]
    assert max(num_done) > 0
    assert any("of 3 shards failed" in one.said for one in attempts)
    assert not any("manifest.json" in one.files for one in attempts[:-1])
    assert read_manifest(str(tmp_path / "done")).digest == whole.details["corpus_digest"]


def test_a_full_disk_for_temporary_files_is_named(
    site: "Site", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, site, 5)
    whole = run(settings)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    attempts = full_disk.fill(tmp_path, 4 << 10, command(settings, tmp_path / "there"))
    assert len(attempts) > 1
    full_disk.check_told_and_kept(attempts, {})
    assert read_manifest(str(tmp_path / "there")).digest == whole.details["corpus_digest"]


def test_a_store_that_fails_half_its_writes_keeps_what_was_whole(
    site: "Site", s3_bucket: str, failing_store: FailingStore, tmp_path: Path
) -> None:
    settings = config(tmp_path, site, 12)
    whole = run(settings)
    there = settings.model_copy(update={"root": f"{s3_bucket}/corpus"})

    def kept() -> list[str]:
        assert not storage.exists(f"{there.root}/manifest.json")
        return storage.list_names(f"{there.root}/download/done")

    failing_store.where = "/shards/"
    summary = until_it_ends(failing_store, lambda: run(there), kept)
    assert summary.details["corpus_digest"] == whole.details["corpus_digest"]
    for shard in read_manifest(there.root).shards:
        assert storage.sha256(f"{there.root}/shards/{shard.name}.tar") == shard.sha256


def test_a_clock_that_jumps_changes_nothing(site: "Site", tmp_path: Path) -> None:
    settings = config(tmp_path, site, 9)
    still = run(settings)
    jumping_clock.run(command(settings, tmp_path / "jumping"))
    assert read_manifest(str(tmp_path / "jumping")).digest == still.details["corpus_digest"]
