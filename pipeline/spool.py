"""Records sorted into files on this machine's disk: the middle of a shuffle larger than memory.

Written and read by one command within its own temporary folder; nothing of it outlives that.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

BUFFER_BYTES = 64 << 20
"""Held in memory before it goes to the files: so that these need not all be open."""

Record = TypeVar("Record")


class Spool(Generic[Record]):
    """Records on local disk, one file a bucket, appended in bursts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._buffers: dict[int, bytearray] = {}
        self._num_buffered = 0

    def add(self, bucket: int, place: int, record: Record) -> None:
        data = pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
        head = place.to_bytes(8) + len(data).to_bytes(8)
        self._buffers.setdefault(bucket, bytearray()).extend(head + data)
        self._num_buffered += len(data)
        if self._num_buffered >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for bucket, buffer in self._buffers.items():
            with self._path(bucket).open("ab") as file:
                file.write(buffer)
        self._buffers, self._num_buffered = {}, 0

    def read(self, bucket: int) -> Iterator[tuple[int, Record]]:
        """(place, record) in order of place; one record in memory at a time."""
        path = self._path(bucket)
        if not path.exists():
            return
        offsets, size = {}, path.stat().st_size
        with path.open("rb") as file:
            while file.tell() < size:
                place, length = int.from_bytes(file.read(8)), int.from_bytes(file.read(8))
                offsets[place] = (file.tell(), length)
                file.seek(length, 1)
            for place, (offset, length) in sorted(offsets.items()):
                file.seek(offset)
                yield place, pickle.loads(file.read(length))

    def drop(self, bucket: int) -> None:
        self._path(bucket).unlink(missing_ok=True)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:05d}"
