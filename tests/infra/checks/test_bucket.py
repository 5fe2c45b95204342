"""A place is tried for what storage stands on: a sound one passes, a lying one is found."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from infra.checks.bucket import check
from infra.checks.finding import Subject


class StaleFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Lists what was there before the last write, as object stores once did."""

    protocol = "stale"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        now = super().ls(path, detail, **kwargs)
        return [] if not detail else now


@pytest.fixture
def stale_store() -> Iterator[str]:
    fsspec.register_implementation("stale", StaleFileSystem, clobber=True)
    yield "stale://bucket"
    fsspec.get_filesystem_class("memory").store.clear()


def states(root: str) -> dict[str, str]:
    return {one.check: one.state for one in check(subject(root))}


def subject(root: str | None) -> Subject:
    return Subject(root, encoder="", egress_url="")


ALL = [f"storage {name}" for name in ("write", "list", "multipart", "rename", "speed")]


def test_a_folder_keeps_all_promises_and_is_left_as_it_was(tmp_path: Path) -> None:
    found = states(str(tmp_path / "new"))
    assert [found[name] for name in ALL[:4]] == ["ok"] * 4
    assert not any((tmp_path / "new").iterdir())


def test_an_s3_bucket_keeps_all_promises_and_is_left_as_it_was(s3_bucket: str) -> None:
    found = states(s3_bucket)
    assert [found[name] for name in ALL[:4]] == ["ok"] * 4
    assert not fsspec.url_to_fs(s3_bucket, use_listings_cache=False)[0].find(s3_bucket)


def test_a_store_whose_listings_lag_is_broken(stale_store: str) -> None:
    broken = [one for one in check(subject(stale_store)) if one.state == "broken"]
    assert broken[0].check == "storage list"
    assert "listed after write: [], expected ['b.bin']" in broken[0].found


def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (only,) = check(subject(str(tmp_path / "file")))
    assert (only.check, only.state) == ("storage write", "broken")
    assert only.advice


def test_without_a_place_nothing_is_tried() -> None:
    (only,) = check(subject(None))
    assert (only.state, only.found) == ("skipped", "not looked at")
    assert "carrara doctor" in only.advice
