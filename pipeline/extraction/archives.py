"""The archives that a command names: files, folders of them, lists of their paths."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra import storage
from infra.errors import InputError

ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".wat", ".wat.gz")
LIST_SUFFIXES = (".paths", ".paths.gz", ".txt", ".txt.gz")
"""Common Crawl's lists are called wat.paths.gz and warc.paths.gz."""


@dataclass(frozen=True)
class Archive:
    """One file to read."""

    index: int
    """Its place among them all."""
    name: str
    """As the pairs tell of it: from its folder on, or as its list has it."""
    url: str
    size_bytes: int | None
    """Not asked for where a list of possibly a hundred thousand names it."""

    @property
    def key(self) -> str:
        return f"{self.index:06d}"


def find_archives(places: Sequence[str], base: str | None) -> list[Archive]:
    """In the order given, a folder's by name; one named twice counts once.

    `base` is what relative paths in lists are relative to, in place of the list's own folder.
    Raises InputError where there is nothing to read.
    """
    found: dict[str, tuple[str, int | None]] = {}
    for place in places:
        for name, url, size in _find(place, base):
            found.setdefault(url, (name, size))
    return [Archive(i, name, url, size) for i, (url, (name, size)) in enumerate(found.items())]


def _find(place: str, base: str | None) -> Iterator[tuple[str, str, int | None]]:
    """(name, url, size)."""
    if not storage.exists(place):
        raise InputError(
            f"archives {place}: does not exist; expected a WARC or WAT file, a folder of them or "
            "a list of their paths"
        )
    if place.endswith(ARCHIVE_SUFFIXES):
        yield place.rsplit("/", 1)[-1], place, storage.size_bytes(place)
    elif place.endswith(LIST_SUFFIXES):
        yield from _listed(place, base)
    else:
        yield from _in_folder(place)


def _in_folder(folder: str) -> Iterator[tuple[str, str, int | None]]:
    names = sorted(
        name
        for name in storage.list_files(folder)
        if name.endswith(ARCHIVE_SUFFIXES) and not any(p.startswith(".") for p in name.split("/"))
    )
    if not names:
        raise InputError(
            f"archives {folder}: no archives found; expected files ending in "
            f"{', '.join(ARCHIVE_SUFFIXES)}, or a list of paths ending in "
            f"{', '.join(LIST_SUFFIXES)}"
        )
    for name in names:
        url = storage.join(folder, name)
        yield name, url, storage.size_bytes(url)


def _listed(place: str, base: str | None) -> Iterator[tuple[str, str, int | None]]:
    home = base or place.rpartition("/")[0]
    names = [line.strip() for line in _lines(place) if line.strip()]
    if not names:
        raise InputError(f"archives {place}: no archives found; expected a path on each line")
    for number, name in enumerate(names, start=1):
        if not name.endswith(ARCHIVE_SUFFIXES):
            raise InputError(
                f"archives {place}: line {number}, {name[:100]!r}, is no archive; expected paths "
                f"ending in {', '.join(ARCHIVE_SUFFIXES)}"
            )
        is_absolute = "://" in name or name.startswith("/")
        yield name, name if is_absolute else storage.join(home, name), None


def _lines(place: str) -> list[str]:
    data = storage.read_bytes(place)
    try:
        return (gzip.decompress(data) if place.endswith(".gz") else data).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"archives {place}: not a list of paths ({error}); expected text, a path on each line"
        ) from None
