"""The place to write to: does it keep the promises that infra/storage.py stands on, and how fast?

Writes and removes files under ROOT/.carrara-doctor-<chance>, and nothing else.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra import storage
from infra.checks.finding import Finding, Subject, broken, ok, skipped, warning
from infra.errors import StorageError

PART_BYTES = 5 << 20
"""The least that S3 takes as a part of an upload, save the last."""
LARGE_BYTES = 16 << 20
SLOW_BYTES_A_S = 10e6
SLOW_REQUEST_S = 0.5
NUM_REQUESTS = 5
OTHER_STORE = (
    "this store breaks what every command relies on: use another, or one more consistent setting"
)

Step = Callable[[str], str]
"""Tries one thing in a folder; says how it went, raises _PromiseError where it went otherwise."""


class _PromiseError(Exception):
    """A promise that the store did not keep."""


def check(subject: Subject) -> Iterator[Finding]:
    if subject.root is None:
        advice = "name a folder or bucket, as in `carrara doctor s3://b`"
        yield skipped("storage", "not looked at", advice)
        return
    folder = storage.join(subject.root, f".carrara-doctor-{uuid.uuid4().hex[:8]}")
    try:
        for name, step in _STEPS.items():
            finding = _tried(f"storage {name}", step, folder)
            yield finding
            if finding.state == "broken" and name == "write":
                return  # the others would only say it again
    finally:
        _tidy(folder)
    if "://" not in subject.root:
        yield _room(subject.root)


def _tried(name: str, step: Step, folder: str) -> Finding:
    try:
        found = step(folder)
    except _PromiseError as wrong:
        return broken(name, str(wrong), OTHER_STORE)
    except StorageError as error:
        what, _, advice = str(error).partition("; ")
        return broken(name, what, advice or OTHER_STORE)
    except FileNotFoundError as error:
        return broken(name, f"what was just written is not there ({error})", OTHER_STORE)
    if found.startswith("slow: "):
        advice = "work in the region (or on the disk) where the data is"
        return warning(name, found.removeprefix("slow: "), advice)
    return ok(name, found)


def _write_and_read(folder: str) -> str:
    url = storage.join(folder, "a.bin")
    for content in (b"first", b"second"):
        storage.publish_bytes(url, content)
        _expect(storage.read_bytes(url), content, "read after write")
    _expect(storage.read_range(url, 1, 4), b"eco", "a range of it")
    return "read, replaced and read again, whole and in part"


def _list(folder: str) -> str:
    url = storage.join(folder, "list", "b.bin")
    storage.publish_bytes(url, b"b")
    _expect(storage.list_names(storage.join(folder, "list")), ["b.bin"], "listed after write")
    storage.remove(url)
    _expect(storage.list_names(storage.join(folder, "list")), [], "listed after removal")
    _expect(storage.exists(url), False, "exists after removal")
    return "a file is listed as soon as it is written, and no longer once it is removed"


def _unfinished(folder: str) -> str:
    """An upload in parts that is not complete, or a file that is not renamed, is not there."""
    url = storage.join(folder, "parts", "c.bin")
    content = bytes(2 * PART_BYTES) + b"end"
    with _writing(url) as file:
        file.write(content)
        file.flush()
        _expect(storage.list_names(storage.join(folder, "parts")), [], "listed while written")
    _expect(storage.size_bytes(url), len(content), "size once complete")
    _expect(storage.read_range(url, len(content) - 3, len(content)), b"end", "its last bytes")
    return "an upload in parts shows nothing until it is complete, then all"


@contextmanager
def _writing(url: str) -> Iterator[BinaryIO]:
    """As `storage.publish` does it on a disk; elsewhere an upload in parts, as large files are."""
    fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    if isinstance(fs, LocalFileSystem):
        with storage.publish(url) as partial, partial.open("wb") as file:
            yield file
        return
    try:
        with fs.open(path, "wb", block_size=PART_BYTES) as upload:
            yield upload
    except OSError as error:
        raise StorageError(
            f"{url}: no upload in parts ({error}); allow multipart uploads"
        ) from error


def _move(folder: str) -> str:
    old, new = (storage.join(folder, "move", name) for name in ("old.bin", "new.bin"))
    storage.publish_bytes(old, b"moved")
    storage.publish_bytes(new, b"before")
    storage.move(old, new)
    _expect(storage.read_bytes(new), b"moved", "read after rename")
    _expect(storage.exists(old), False, "the old name after rename")
    return "replaces what has the new name"


def _speed(folder: str) -> str:
    url = storage.join(folder, "large.bin")
    content = uuid.uuid4().bytes * (LARGE_BYTES // 16)  # not zeros, which some stores fold
    write_s = _seconds(lambda: storage.publish_bytes(url, content))
    read_s = _seconds(lambda: storage.read_bytes(url))
    request_s = _seconds(lambda: storage.read_range(url, 0, 1), NUM_REQUESTS)
    list_s = _seconds(lambda: storage.list_names(folder), NUM_REQUESTS)
    found = (
        f"{LARGE_BYTES / write_s / 1e6:.0f} MB/s up, {LARGE_BYTES / read_s / 1e6:.0f} MB/s down, "
        f"{request_s * 1e3:.1f} ms a request, {list_s * 1e3:.1f} ms a listing"
    )
    is_slow = LARGE_BYTES / min(write_s, read_s) < SLOW_BYTES_A_S or request_s > SLOW_REQUEST_S
    return f"slow: {found}" if is_slow else found


_STEPS: dict[str, Step] = {
    "write": _write_and_read,
    "list": _list,
    "multipart": _unfinished,
    "rename": _move,
    "speed": _speed,
}


def _seconds(act: Callable[[], object], num: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(num):
        act()
    return (time.perf_counter() - start) / num


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise _PromiseError(f"{what}: {found!r}, expected {expected!r}")


def _tidy(folder: str) -> None:
    try:
        storage.remove(folder)
    except StorageError:
        return  # a place that can't be written was said to be one


def _room(root: str) -> Finding:
    place = Path(root)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {root}"
    if free < 10e9:
        return warning("storage room", found, "a million pictures at 256 px take about 25 GB")
    return ok("storage room", found)
