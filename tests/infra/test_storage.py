"""Files appear whole or not at all, on a disk and on an object store."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import storage
from infra.errors import StorageError


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/{tmp_path.name}"


def test_what_is_published_is_read_back(place: str) -> None:
    url = storage.join(place, "folder", "a.bin")
    storage.publish_bytes(url, b"marble")
    assert storage.read_bytes(url) == b"marble"
    assert storage.size_bytes(url) == 6
    assert storage.list_names(storage.join(place, "folder")) == ["a.bin"]
    storage.publish_bytes(url, b"chips")
    assert storage.read_bytes(url) == b"chips"


def test_a_file_is_published_and_told_of_as_it_goes(place: str, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 40_000)
    told: list[int] = []
    storage.publish_file(storage.join(place, "folder", "a.bin"), source, told.append)
    assert storage.read_bytes(storage.join(place, "folder", "a.bin")) == source.read_bytes()
    assert sum(told) == source.stat().st_size
    if "://" not in place:  # an object store takes a file of 10 MB at once
        assert max(told) < source.stat().st_size / 2


def test_a_range_is_read_alone_and_a_version_tells_of_another_file(place: str) -> None:
    url = storage.join(place, "a.bin")
    assert storage.version(url) is None
    storage.publish_bytes(url, b"marble")
    assert storage.read_range(url, 1, 4) == b"arb"
    assert storage.read_range(url, 4, 100) == b"le"
    can_be_asked = "://" not in place and hasattr(os, "posix_fadvise")
    assert storage.announce_read(url, 1, 4) == can_be_asked
    assert storage.announce_read(f"{url}-missing", 1, 4) == can_be_asked  # the read tells
    before = storage.version(url)
    assert storage.version(url) == before is not None
    storage.publish_bytes(url, b"garble")
    assert storage.version(url) != before


def test_a_writer_that_fails_leaves_what_was_there(place: str) -> None:
    url = storage.join(place, "a.bin")
    storage.publish_bytes(url, b"before")

    def write_half() -> None:
        with storage.publish(url) as path:
            path.write_bytes(b"half of the aft")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert storage.read_bytes(url) == b"before"
    assert storage.list_names(place) == ["a.bin"]


def test_a_full_disk_is_named_by_the_file_that_is_on_it(place: str) -> None:
    """What goes to an object store waits on this machine's disk first."""
    url = storage.join(place, "a.bin")

    def fill() -> None:
        with storage.publish(url) as path:
            full.append(url if "://" not in place else str(path))
            raise OSError(errno.ENOSPC, "No space left on device")

    full: list[str] = []
    with pytest.raises(StorageError) as caught:
        fill()
    assert str(caught.value).startswith(f"{full[0]}: can't be written (No space left on device)")


def test_the_same_table_gives_the_same_bytes(place: str) -> None:
    table = pa.table({"uid": ["a", "b"], "score": [0.25, 0.5]})
    one, other = storage.join(place, "1.parquet"), storage.join(place, "2.parquet")
    storage.publish_table(one, table)
    storage.publish_table(other, table)
    assert storage.sha256(one) == storage.sha256(other)
    assert storage.read_table(one).equals(table)


def test_a_local_copy_has_the_content(place: str) -> None:
    url = storage.join(place, "a.bin")
    storage.publish_bytes(url, b"marble")
    with storage.local_copy(url) as path:
        assert path.read_bytes() == b"marble"


def test_what_is_absent_is_absent(place: str) -> None:
    url = storage.join(place, "nothing")
    assert not storage.exists(url)
    assert storage.list_names(url) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)
    storage.remove(url)


def test_removing_a_folder_takes_all_in_it(place: str) -> None:
    urls = [storage.join(place, "folder", *path) for path in (["a.bin"], ["deep", "b.bin"])]
    for url in urls:
        storage.publish_bytes(url, b"x")
    storage.remove(storage.join(place, "folder"))
    # SeaweedFS keeps the emptied folder's own entry for a while; what counts is the files.
    assert not any(storage.exists(url) for url in urls)


def test_sweep_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    leftover = tmp_path / "shards" / ".00000.tar.1a2b3c4d.partial"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    assert storage.list_names(str(leftover.parent)) == []
    storage.sweep(str(tmp_path))
    assert not leftover.exists()


def test_a_moved_file_takes_the_place_of_another(place: str) -> None:
    storage.publish_text(storage.join(place, "staged", "a.txt"), "new")
    storage.publish_text(storage.join(place, "b", "a.txt"), "old")
    storage.move(storage.join(place, "staged", "a.txt"), storage.join(place, "b", "a.txt"))
    assert storage.read_text(storage.join(place, "b", "a.txt")) == "new"
    assert storage.list_files(place) == {"b/a.txt"}


@given(st.binary(max_size=3000))
def test_a_file_in_arrows_memory_holds_the_same_bytes(data: bytes) -> None:
    assert storage.arrow_file(data).read() == data
