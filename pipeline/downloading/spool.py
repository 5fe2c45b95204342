"""Pictures that wait for the rest of their shard, in a temporary file without a name."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from infra import storage

Place = tuple[int, int]
"""Offset and length."""


class Spool:
    """Unbuffered: what a buffer holds when the disk is full would be tried again at the closing."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._num_bytes = 0

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Self]:
        with tempfile.TemporaryFile(prefix="carrara-", buffering=0) as file:
            yield cls(file)

    def append(self, data: bytes) -> Place:
        """Raises StorageError, naming the folder, where there is no room."""
        rest = memoryview(data)
        with storage.filling(tempfile.gettempdir()):
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        self._num_bytes += len(data)
        return self._num_bytes - len(data), len(data)

    def read(self, place: Place) -> bytes:
        offset, length = place
        return os.pread(self._file.fileno(), length, offset)
