"""A full disk and a store that fails half its writes: what `extract` keeps."""

import shutil
from pathlib import Path

import pytest

from infra import storage
from pipeline import extract
from tests.pipeline import full_disk
from tests.pipeline.crawled import HERE, Crawl, contents
from tests.pipeline.failing_store import FailingStore, until_it_ends

ROWS_PER_FILE = 5


@pytest.fixture
def archives(crawl: Crawl, tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    for index in range(4):
        shutil.copy(crawl.warc, folder / f"{index}.warc.gz")
    return folder


@pytest.fixture
def whole(archives: Path, tmp_path: Path) -> Path:
    """What comes of them undisturbed."""
    extract.run(config(archives, tmp_path / "whole"))
    return tmp_path / "whole"


def config(archives: Path, root: Path | str) -> extract.Config:
    return extract.Config(
        archives=(str(archives),), root=str(root), rows_per_file=ROWS_PER_FILE, workers=HERE
    )


def test_a_full_disk_costs_the_archives_that_do_not_fit(
    archives: Path, whole: Path, tmp_path: Path
) -> None:
    settings = ("--rows-per-file", str(ROWS_PER_FILE), "--local")
    arguments = ["extract", str(archives), str(tmp_path / "disk"), *settings]
    attempts = full_disk.fill(tmp_path, 24 << 10, arguments)
    # Of fewer archives there are other pairs; the spool is gone in the end.
    besides = ("pairs-", "_extract/spool/", "_extract/manifest.json", "runs/")
    full_disk.check_told_and_kept(attempts, contents(whole), besides=besides)
    num_read = [sum("_extract/archives/" in path for path in one.files) for one in attempts]
    assert num_read == sorted(num_read)
    assert any(0 < num < 4 for num in num_read)
    done = contents(tmp_path / "done")
    assert {path: done[path] for path in done if not path.startswith("runs/")} == contents(whole)


def test_a_store_that_fails_half_its_writes_keeps_the_archives_that_were_read(
    archives: Path, whole: Path, s3_bucket: str, failing_store: FailingStore
) -> None:
    root = f"{s3_bucket}/pairs"

    def kept() -> set[str]:
        return set(storage.list_names(f"{root}/_extract/archives"))

    failing_store.where = "/"
    until_it_ends(failing_store, lambda: extract.run(config(archives, root)), kept)
    names = [name for name in storage.list_names(root) if name.startswith("pairs-")]
    there = {name: storage.sha256(f"{root}/{name}") for name in names}
    assert there == {path: sha256 for path, sha256 in contents(whole).items() if "/" not in path}
