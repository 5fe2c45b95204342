"""Samples and rows sorted into files on this machine's disk: a shuffle larger than memory.

Written and read by one command within its own temporary folder; nothing of it outlives that.
Threads may add at once; a bucket is read when all of it is there.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra import storage
from pipeline.sample import PackedSample

BUFFER_BYTES = 64 << 20
"""Held in memory before it goes to the files, so that these need not all be open. While one thread
writes so much, the others may gather as much again."""


class Spool:
    """Byte strings in numbered buckets, one file a bucket, appended in bursts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._buffers: dict[int, list[bytes]] = {}
        self._num_buffered = 0

    def add(self, bucket: int, data: bytes) -> None:
        with self._adding:
            self._buffers.setdefault(bucket, []).append(data)
            self._num_buffered += len(data)
            is_full = self._num_buffered >= BUFFER_BYTES
        if is_full:
            self.flush()

    def flush(self) -> None:
        with self._writing:
            with self._adding:
                buffers, self._buffers, self._num_buffered = self._buffers, {}, 0
            for bucket, parts in buffers.items():
                path = self.path(bucket)
                with storage.filling(str(path)), path.open("ab") as file:
                    file.writelines(parts)

    def drop(self, bucket: int) -> None:
        self.path(bucket).unlink(missing_ok=True)

    def path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:05d}"


class SampleSpool(Spool):
    """The members of a tar that a sample is, by its place in the shard to come."""

    HEAD_BYTES = 24
    """Place, size of the picture and size of the members, eight bytes each."""

    def add_sample(self, bucket: int, place: int, sample: PackedSample) -> None:
        members = sample.members
        head = np.array([place, sample.image_size, len(members)], "<i8").tobytes()
        self.add(bucket, head + members)

    def read(self, bucket: int, key_of: Callable[[int], str]) -> Iterator[PackedSample]:
        """In order of place, under the keys of their places; one in memory at a time."""
        path = self.path(bucket)
        if not path.exists():
            return
        with path.open("rb", buffering=0) as file:
            for place, image_size, offset, size in self._contents(path):
                file.seek(offset)
                yield PackedSample(key_of(place), image_size, (file.read(size),))

    def _contents(self, path: Path) -> list[tuple[int, int, int, int]]:
        found, at, size = [], 0, path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while at < size:
                file.seek(at)
                place, image_size, length = np.frombuffer(file.read(self.HEAD_BYTES), "<i8")
                at += self.HEAD_BYTES
                found.append((int(place), int(image_size), at, int(length)))
                at += int(length)
        return sorted(found)


class RowSpool(Spool):
    """Rows of one schema, added a table at a time."""

    def add_rows(self, bucket: int, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        self.add(bucket, sink.getvalue().to_pybytes())

    def read(self, bucket: int) -> list[pa.Table]:
        path = self.path(bucket)
        if not path.exists():
            return []
        tables = []
        with pa.memory_map(str(path)) as source:
            while source.tell() < source.size():
                tables.append(pa.ipc.open_stream(source).read_all())
        return tables
