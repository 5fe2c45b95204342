"""A full disk, a store that fails half its writes, a clock that jumps: what a takedown keeps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.errors import StorageError
from pipeline import verify
from pipeline.corpus import Manifest, read_manifest
from pipeline.dedup import stage as dedup
from pipeline.takedown.asked import Request, asked_for
from pipeline.takedown.receipts import Receipt, read_receipts
from pipeline.takedown.tombstones import Tombstone, add_tombstones
from tests.pipeline import full_disk, jumping_clock
from tests.pipeline.failing_store import FailingStore, until_it_ends
from tests.pipeline.takedown.forgotten import HERE, URL, run

OTHER_URL = "https://example.org/000010002.png"
OWN = ("tombstones.parquet", "receipts/", "forget/")
"""What has the time of the takedown in it."""


@pytest.fixture
def still(root: str, tmp_path: Path) -> Path:
    """A copy of the corpus after an undisturbed takedown."""
    copy = tmp_path / "still"
    shutil.copytree(root, copy)
    run(str(copy), url=(URL,))
    return copy


def told(receipt: Receipt) -> dict[str, Any]:
    """All but its time."""
    return receipt.model_dump(exclude={"name", "time"})


def without_own(folder: Path | str) -> dict[str, str]:
    files = full_disk.digests(Path(folder))
    return {path: sha256 for path, sha256 in files.items() if not path.startswith(OWN)}


def test_a_full_disk_leaves_the_corpus_as_it_was_or_as_it_will_be(
    root: str, still: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "held")
    arguments = ["forget", str(tmp_path / "disk"), "--url", URL, "--local"]
    attempts = full_disk.fill(tmp_path, 8 << 10, arguments)
    before, after = without_own(root), without_own(still)
    full_disk.check_told_and_kept(attempts, before, after, besides=OWN)
    for attempt in attempts:
        there = {path: sha for path, sha in attempt.files.items() if not path.startswith(OWN)}
        assert there in (before, after)
    assert any("of 3 shards failed" in attempt.said for attempt in attempts)
    assert any("tombstones.parquet" in attempt.files for attempt in attempts[:-1])
    done = tmp_path / "done"
    assert without_own(done) == after
    assert not (done / "forget").exists()
    assert list(map(told, read_receipts(str(done)))) == list(map(told, read_receipts(str(still))))
    assert verify.run(verify.Config(root=str(done))).counts["tombstones kept"] == 2


def test_a_store_that_fails_half_its_writes_ends_in_the_same(
    s3_bucket: str,
    failing_store: FailingStore,
    make_corpus: Callable[..., Manifest],
    tmp_path: Path,
) -> None:
    still, root = str(tmp_path / "still"), f"{s3_bucket}/corpus"
    for place in (still, root):
        make_corpus(place, num_shards=2, num_samples=3)
    run(still, url=(URL,))

    def kept() -> set[str]:
        stones = {"tombstones.parquet"} if storage.exists(f"{root}/tombstones.parquet") else set()
        return {*storage.list_names(f"{root}/shards"), *stones}

    failing_store.where = "/"
    until_it_ends(failing_store, lambda: run(root, url=(URL,)), kept)
    assert read_manifest(root) == read_manifest(still)
    assert list(map(told, read_receipts(root))) == list(map(told, read_receipts(still)))
    assert verify.run(verify.Config(root=root)).counts["tombstones kept"] == 2


def test_a_clock_that_jumps_changes_nothing_but_the_time(root: str, still: Path) -> None:
    jumping_clock.run(["forget", root, "--url", URL, "--local"])
    assert without_own(root) == without_own(still)
    assert list(map(told, read_receipts(root))) == list(map(told, read_receipts(str(still))))


def test_receipts_are_in_the_order_of_takedowns_whatever_the_clock_was(root: str) -> None:
    jumping_clock.run(["forget", root, "--url", URL, "--local"], jumps=(1e9,))
    run(root, url=(OTHER_URL,))  # by a clock that has been set right meanwhile
    first, second = read_receipts(root)
    assert first.time > second.time
    assert first.corpus_digest.after == second.corpus_digest.before
    assert second.corpus_digest.after == read_manifest(root).digest


def test_what_is_put_in_place_keeps_its_receipt_whatever_is_asked_next(root: str) -> None:
    """Asked for together, killed before the receipt, then one of them is asked for again."""
    in_the_way = Path(root, "receipts")
    in_the_way.touch()
    with pytest.raises(StorageError, match="receipts"):
        run(root, url=(URL, OTHER_URL))
    in_the_way.unlink()
    run(root, url=(URL,))
    (receipt,) = read_receipts(root)
    assert receipt.found == {"url": 2}
    assert receipt.shards == ["00000", "00001"]


def test_a_takedown_that_was_killed_while_it_cleared_up_keeps_its_receipt(
    root: str, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = storage.remove

    def killed_after(url: str) -> None:
        remove(url)
        if url.startswith(f"{root}/forget/") and url.endswith(".json"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "remove", killed_after)
        with pytest.raises(KeyboardInterrupt):
            run(root, url=(URL,))
    run(root, url=(URL,))
    assert not Path(root, "forget").exists()
    assert list(map(told, read_receipts(root))) == list(map(told, read_receipts(str(still))))


def test_a_takedown_that_was_killed_right_after_its_tombstones_is_followed_alike(
    root: str, tmp_path: Path
) -> None:
    """Also by what names the tombstones that there were, as the finding of copies does."""
    dedup.run(dedup.Config(root=root, workers=HERE))
    still = tmp_path / "still"
    shutil.copytree(root, still)
    run(str(still), url=(URL,))
    stones = asked_for(Request(url=(URL,))).stones
    killed = "20260101T000000000000Z"
    add_tombstones(
        root, [Tombstone(*stone, "2026-01-01T00:00:00+00:00", killed) for stone in stones]
    )
    run(root, url=(URL,))
    assert without_own(root) == without_own(still)
    assert [receipt.name for receipt in read_receipts(root)] == [killed]
