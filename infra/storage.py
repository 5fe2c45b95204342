"""Reading and atomic writing on any fsspec filesystem: a folder, s3://, gs://, memory://.

A file appears under its name whole or not at all. On a local disk it is written beside its place
under a hidden temporary name, synced and renamed; on an object store the upload's completion is
the rename. Hidden names are never listed, so what a killed writer leaves is never read; `sweep`
removes it.
"""

import errno
import hashlib
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import fsspec
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from infra.errors import DamagedError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

_TEMPORARY_SUFFIX = ".partial"

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""What goes wrong with a disk while a caller of `publish` or `filling` fills its file."""

_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
"""What object stores' clients raise beside OSError, by module: none is imported for its errors."""


def join(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(url: str) -> str:
    """The same place named so that a worker with another working directory finds it too."""
    return url if "://" in url else str(Path(url).absolute())


def canonical(url: str) -> str:
    """One name for a place, whatever links, dots and protocols it was named by."""
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return str(Path(path).resolve())
    return str(fs.unstrip_protocol(path))


def exists(url: str) -> bool:
    fs, path = _filesystem(url)
    with _reading(url):
        return bool(fs.exists(path))


def list_names(url: str) -> list[str]:
    """Sorted names of the files and folders directly inside; empty where nothing is."""
    fs, path = _filesystem(url)
    try:
        with _reading(url):
            entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != path}
    return sorted(name for name in names if not name.startswith("."))


def list_files(url: str) -> set[str]:
    """Paths, from there, of all files however deep; none where nothing is."""
    fs, path = _filesystem(url)
    with _reading(url):
        found = fs.find(path)
    return {file[len(path) :].lstrip("/") for file in found}


def size_bytes(url: str) -> int:
    fs, path = _filesystem(url)
    with _reading(url):
        return int(fs.size(path))


def version(url: str) -> str | None:
    """Another whenever the file was replaced, without reading it; None where nothing is."""
    fs, path = _filesystem(url)
    try:
        with _reading(url):
            return str(fs.ukey(path))
    except FileNotFoundError:
        return None


def open_read(url: str) -> BinaryIO:
    """A seekable binary file; use it in a `with`."""
    fs, path = _filesystem(url)
    with _reading(url):
        return cast(BinaryIO, fs.open(path, "rb"))


def read_bytes(url: str) -> bytes:
    with open_read(url) as file, _reading(url):
        return file.read()


def read_range(url: str, start: int, end: int) -> bytes:
    """Those bytes alone, fewer where the file ends before; one request to an object store."""
    if _is_plain_path(url):  # a third of the time that fsspec's file takes
        try:
            file = os.open(url, os.O_RDONLY)
            try:
                return os.pread(file, end - start, start)
            finally:
                os.close(file)
        except OSError:
            pass  # told of below
    fs, path = _filesystem(url)
    with _reading(url):
        data: bytes = fs.cat_file(path, start=start, end=end)
    return data


def announce_read(url: str, start: int, end: int) -> bool:
    """Have the system fetch a range of a file that is read soon, without waiting for it; False
    where nobody can be asked for that, as of an object store."""
    if not _is_plain_path(url) or not hasattr(os, "posix_fadvise"):
        return False
    with suppress(OSError):  # the read will tell
        file = os.open(url, os.O_RDONLY)
        try:
            os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)
    return True


def _is_plain_path(url: str) -> bool:
    """Whether fsspec, too, would take it for a file by that name."""
    return url.startswith("/") and "::" not in url and "://" not in url


def read_block(file: BinaryIO, url: str, size: int) -> bytes:
    """Of a file that `open_read` gave, for readers that fetch as they go."""
    with _reading(url):
        return file.read(size)


def read_text(url: str) -> str:
    return read_bytes(url).decode("utf-8")


def read_table(url: str, columns: list[str] | None = None) -> "pa.Table":
    return parse_table(read_bytes(url), url, columns)


def parse_table(parquet: bytes, url: str, columns: list[str] | None = None) -> "pa.Table":
    """The table in a file's bytes; `url` is what a DamagedError calls it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(arrow_file(parquet), columns=columns)
    # ValueError: names that are no UTF-8. OSError: pages that don't unpack.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(
            f"{url}: not a parquet file that can be read ({_reason(error)}); `carrara verify` "
            "tells what else is damaged"
        ) from error


def arrow_file(data: bytes) -> "pa.BufferReader":
    """A file of these bytes in Arrow's own memory.

    Arrow's threads let go of what they read a moment after a table is there. Of Python's memory
    that takes the interpreter: a process that ended in that moment was aborted.
    """
    import pyarrow as pa

    buffer = pa.allocate_buffer(len(data))
    with pa.FixedSizeBufferWriter(buffer) as writer:
        writer.write(data)
    return pa.BufferReader(buffer)


def sha256(url: str) -> str:
    with open_read(url) as file, _reading(url):
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()


def publish_bytes(url: str, data: bytes) -> None:
    with publish(url) as path:
        path.write_bytes(data)


def publish_text(url: str, text: str) -> None:
    publish_bytes(url, text.encode("utf-8"))


def publish_table(url: str, table: "pa.Table") -> None:
    """Parquet, zstd; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    with publish(url) as path:
        pq.write_table(table, path, compression="zstd")


def publish_file(url: str, source: Path, on_bytes: Callable[[int], object]) -> None:
    """A finished file of this machine; `on_bytes` is told, as it goes, how many bytes more went."""
    fs, target = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with publish(url) as path, source.open("rb") as file, path.open("wb") as copy:
            while block := file.read(1 << 22):
                on_bytes(copy.write(block))
        return
    num_told = 0

    def tell(_size: int | None, num_sent: int) -> None:
        nonlocal num_told
        on_bytes(num_sent - num_told)
        num_told = num_sent

    with _writing(url):
        fs.put_file(str(source), target, callback=Callback(hooks={"tell": tell}))


@contextmanager
def publish(url: str) -> Iterator[Path]:
    """A local path to write to; on a clean exit the file appears whole under `url`."""
    fs, target = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        final = Path(target)
        with _writing(url):
            final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY_SUFFIX}"
        try:
            with _writing(url):
                partial.touch()
            with filling(url):
                yield partial
            with _writing(url):
                with partial.open("rb") as written:
                    os.fsync(written.fileno())
                partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="carrara-") as spool:
        partial = Path(spool) / target.rsplit("/", 1)[-1]
        with filling(str(partial)):
            yield partial
        with _writing(url):
            fs.put_file(str(partial), target)


@contextmanager
def filling(url: str) -> Iterator[None]:
    """While a caller writes a file of this machine by its own means: what it runs into is its own,
    save what the disk says, which is a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise _unwritable(url, error) from error


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A local path to read: the file itself where it is local, else a temporary download."""
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="carrara-") as spool:
        copy = Path(spool) / path.rsplit("/", 1)[-1]
        with _reading(url):
            fs.get_file(path, str(copy))
        yield copy


def remove(url: str) -> None:
    """Remove a file, or a folder with all that is in it; nothing there is fine."""
    fs, path = _filesystem(url)
    with _writing(url):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def move(source: str, target: str) -> None:
    """Put a finished file in the place of another of the same filesystem.

    At once on a disk; elsewhere it is copied first, so that one of the two is always whole.
    """
    fs, old = _filesystem(source)
    _, new = _filesystem(target)
    with _writing(target):
        if isinstance(fs, LocalFileSystem):
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            Path(old).replace(new)
        else:
            fs.mv(old, new)


def sweep(url: str, name: str = "") -> None:
    """Remove what killed writers left under a local folder, of files whose names begin so.

    Call it when no writer of them is running.
    """
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        for leftover in Path(path).rglob(f".{name}*{_TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    # Listings are not cached: other processes write to the same folders.
    try:
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError, OSError) as error:
        raise StorageError(
            f"{url}: can't be opened ({_reason(error)}); expected a folder, s3://, gs:// or "
            "another URL that fsspec has a driver for here"
        ) from error
    return fs, path


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Errors that name the place in one line; that nothing is there stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", url) from error
    except _errors() as error:
        raise StorageError(
            f"{url}: can't be read ({_reason(error)}); expected a place that can be reached, with "
            "leave to read it"
        ) from error


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except _errors() as error:
        raise _unwritable(url, error) from error


def _unwritable(url: str, error: Exception) -> StorageError:
    return StorageError(
        f"{url}: can't be written ({_reason(error)}); expected a place with room and with leave to "
        "write there, or a bucket that exists: make it so, or choose another place"
    )


def _errors() -> tuple[type[Exception], ...]:
    """What filesystems raise, and their clients, those that are loaded."""
    loaded = ((module, name) for module, name in _CLIENT_ERRORS if module in sys.modules)
    return (OSError, *(getattr(sys.modules[module], name) for module, name in loaded))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
