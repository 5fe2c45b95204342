"""A worker that was cut off and comes back does not spoil what another has made meanwhile."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import ConflictError, ShortfallError
from pipeline.corpus import read_manifest
from pipeline.download import run
from pipeline.downloading import worklist
from pipeline.downloading.claims import Claim
from pipeline.downloading.download_workers import make_downloader
from pipeline.downloading.shard_download import ShardDownloader, Wanted
from pipeline.downloading.shard_rows import RowOutcome, failed
from tests.pipeline.downloads import begin, config, contents, pictures

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.download import Config
    from tests.pipeline.conftest import Site


def test_the_last_claim_counts(tmp_path: Path) -> None:
    first, other = Claim.of(str(tmp_path), "00000"), Claim.of(str(tmp_path), "00001")
    first.check()
    second = Claim.of(str(tmp_path), "00000")
    second.check()
    other.check()
    with pytest.raises(ConflictError, match="shard 00000: another worker has begun it since"):
        first.check()
    shutil.rmtree(tmp_path / "download")
    with pytest.raises(ConflictError, match="shard 00001: the download ended meanwhile"):
        other.check()


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> "Callable[[Callable[[], object]], None]":
    """The next worker's fetches fail, but only after what is given has happened."""

    def arm(meanwhile: "Callable[[], object]") -> None:
        fetch = ShardDownloader.fetch

        def fails_late(
            _: ShardDownloader, rows: list[Wanted], *__: object
        ) -> dict[int, RowOutcome]:
            monkeypatch.setattr(ShardDownloader, "fetch", fetch)
            meanwhile()
            return {row.place: failed("connection refused") for row in rows}

        monkeypatch.setattr(ShardDownloader, "fetch", fails_late)

    return arm


def begun(settings: "Config") -> "tuple[worklist.Plan, worklist.Slice]":
    begin(settings)
    plan = worklist.read_plan(settings.root)
    assert plan is not None
    return plan, worklist.slices(settings.root, plan)[0]


def test_a_worker_that_comes_back_leaves_the_good_shard(
    site: "Site", tmp_path: Path, cut_off: "Callable[[Callable[[], object]], None]"
) -> None:
    settings = config(tmp_path, pictures(site, 4), "corpus")
    plan, part = begun(settings)
    made: dict[str, str] = {}

    def another_makes_it() -> None:
        with make_downloader(settings, plan) as other:
            record = other(part)
        assert isinstance(record, worklist.ShardRecord)
        assert record.counts == {"success": 4}
        made.update(contents(tmp_path / "corpus"))

    cut_off(another_makes_it)
    with (
        make_downloader(settings, plan) as downloader,
        pytest.raises(ConflictError, match="shard 00000: another worker"),
    ):
        downloader(part)
    assert contents(tmp_path / "corpus") == made


def test_a_worker_that_comes_back_after_the_end_writes_nothing(
    site: "Site", tmp_path: Path, cut_off: "Callable[[Callable[[], object]], None]"
) -> None:
    settings = config(tmp_path, pictures(site, 4), "corpus")
    plan, part = begun(settings)
    cut_off(lambda: run(settings))
    with (
        make_downloader(settings, plan) as downloader,
        pytest.raises(ConflictError, match="shard 00000: the download ended"),
    ):
        downloader(part)
    run(config(tmp_path, pictures(site, 4), "undisturbed"))
    corpus = contents(tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "download").exists()
    assert (
        corpus.items()
        >= {
            name: digest
            for name, digest in contents(tmp_path / "undisturbed").items()
            if name.startswith("shards/")
        }.items()
    )


def test_a_refetch_that_was_overtaken_writes_nothing(
    site: "Site", tmp_path: Path, cut_off: "Callable[[Callable[[], object]], None]"
) -> None:
    settings = config(tmp_path, [*pictures(site, 3), (f"{site.url}/busy", "")], "corpus")
    run(settings)
    again = settings.model_copy(update={"incremental_mode": "retry"})
    cut_off(lambda: Claim.of(settings.root, "00000"))
    with pytest.raises(ShortfallError, match="shard 00000: another worker has begun it since"):
        run(again)
    plan = worklist.read_plan(settings.root)
    assert plan is not None
    assert not worklist.read_records(settings.root, plan)
    run(again)
    assert read_manifest(settings.root).num_samples == 4
