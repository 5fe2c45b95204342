"""Pictures and captions of the samples that a worker is about to need, read ahead in memory that is
bounded.

Reads   byte ranges of the shards' tars, of about a slab each; nothing that lies between

A block is read when its first sample is asked for, and the next one of its lane while it is used.
From an object store it comes by threads of the reader, and a picture leaves memory when it has been
decoded. For files the system is asked to have the bytes ready in its own memory, and who decodes a
picture reads it: no thread waits for another, and nothing is copied twice.
"""

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Protocol

from infra import storage
from infra.errors import DamagedError, StorageError
from pipeline import tar
from pipeline.corpus import shard_url
from training.order import Block
from training.streaming.catalogue import Catalogue, ShardTable
from training.streaming.pixels import REMEDY
from training.streaming.plan import Cell, Place, Rows, SamplePlan

GAP_BYTES = 128 << 10
"""So much that nobody wants is read along before another request is made: at 100 MB/s it takes
little over a millisecond, and an object store's answer to a request ten or more. And no more than
a quarter of what is wanted, so that it stays little."""

RANGE_BYTES = 16 << 20
"""A request asks for no more, so that several share the line."""

NUM_TRIES = 4
"""Of a read that fails for reasons that may pass, with 1, 2 and 4 seconds between them."""


class TakenDownError(Exception):
    """A sample was taken down between being drawn and being read; never leaves this layer."""


@dataclass(frozen=True)
class Stored:
    """A sample as it lies in its shard."""

    uid: str
    caption: str
    image: bytes


class BlockReader:
    """Reads blocks in threads of its own; one thread asks, any may take."""

    def __init__(
        self, catalogues: Sequence[Catalogue], plan: SamplePlan, max_bytes: int, num_readers: int
    ) -> None:
        self._catalogues, self._plan, self._max_bytes = catalogues, plan, max_bytes
        self._pool = ThreadPoolExecutor(num_readers, thread_name_prefix="read")
        self._lock = threading.Lock()
        self._held: dict[tuple[Cell, int], dict[Block, HeldBlock]] = {}
        self.num_bytes = 0
        """Of pictures in memory, and of those being read."""
        self.num_bytes_read = 0
        self.num_reads = 0

    def hold(self, rows: Rows, keeps: "Keeps") -> "HeldBlock":
        """The block, being read."""
        lane = self._held.setdefault((rows.cell, rows.block.lane), {})
        if rows.block not in lane:
            lane[rows.block] = self._begin(rows, keeps)
        held = lane[rows.block]
        held.read_ahead(len(held.ranges))
        return held

    def look_ahead(self, rows: Rows, done: float, keeps: "Keeps") -> None:
        """Let go of what came before this block on its lane. Read as much of the block that follows
        as is done of this one, if there is room; not of an epoch of which all may be in memory by
        then."""
        lane = self._held.setdefault((rows.cell, rows.block.lane), {})
        for old in [other for other in lane if other < rows.block]:
            lane.pop(old).retire()
        if keeps.has_room and rows.following.epoch > rows.block.epoch:
            return
        if rows.following not in lane:
            if self.num_bytes > self._max_bytes:
                return
            following = self._plan.rows(rows.cell, rows.following)
            lane[rows.following] = self._begin(following, keeps)
        held = lane[rows.following]
        held.read_ahead(math.ceil(done * len(held.ranges)), self._max_bytes)

    def read(self, corpus: int, shard: int, row: int) -> Stored:
        """One sample by itself."""
        return self._read(corpus, shard, [row])[row]

    def read_rows(self, corpus: int, shard: int, rows: list[int]) -> list[Stored]:
        """Neighbours, by one request."""
        stored = self._read(corpus, shard, rows)
        return [stored[row] for row in rows]

    def forget(self) -> None:
        """What is held was drawn before a takedown."""
        for lane in self._held.values():
            for held in lane.values():
                held.retire()
        self._held.clear()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, held: "HeldBlock", part: "Range") -> Future[dict[int, Stored]] | None:
        """None: who takes a sample reads it."""
        catalogue = self._catalogues[part.corpus]
        url = shard_url(catalogue.root, catalogue.manifest.shards[part.shard].name)
        if storage.announce_read(url, part.start, part.end):
            return None
        self.add(part.num_bytes)

        def read() -> dict[int, Stored]:
            try:
                stored = self._read(part.corpus, part.shard, part.rows)
                held.note(stored)
            finally:  # pictures alone stay, without what lay between
                self.add(-part.num_bytes)
            return stored

        return self._pool.submit(read)

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes

    def _begin(self, rows: Rows, keeps: "Keeps") -> "HeldBlock":
        wanted = sorted({place for place in rows.places if place not in keeps})
        ranges: list[Range] = []
        for (corpus, shard), places in groupby(wanted, itemgetter(0, 1)):
            table = self._catalogues[corpus].table(shard)
            ranges += ranges_of(corpus, shard, table, [row for *_, row in places])
        return HeldBlock(self, rows, ranges)

    def _read(self, corpus: int, shard: int, rows: list[int]) -> dict[int, Stored]:
        catalogue = self._catalogues[corpus]

        def read() -> dict[int, Stored]:
            table = catalogue.table(shard)
            if any(table.is_gone[row] for row in rows):
                raise TakenDownError
            start, end = int(table.starts[rows[0]]), int(table.ends[rows[-1]])
            url = shard_url(catalogue.root, table.name)
            data = memoryview(self._read_range(url, start, end))
            return {
                row: _unpack(data[table.starts[row] - start : table.ends[row] - start], table, row)
                for row in rows
            }

        return catalogue.while_taken_down(read)

    def _read_range(self, url: str, start: int, end: int) -> bytes:
        for attempt in range(NUM_TRIES):
            try:
                data = storage.read_range(url, start, end)
            except FileNotFoundError:
                raise DamagedError(f"shard {url}: missing; {REMEDY}") from None
            except StorageError:
                if attempt == NUM_TRIES - 1:
                    raise
                time.sleep(2**attempt)
            else:
                break
        with self._lock:
            self.num_bytes_read += len(data)
            self.num_reads += 1
        return data


class Keeps(Protocol):
    """What stays in memory."""

    @property
    def has_room(self) -> bool: ...

    def __contains__(self, place: Place, /) -> bool: ...


@dataclass
class Range:
    """Rows of a shard that one request gives."""

    corpus: int
    shard: int
    rows: list[int]
    start: int
    end: int
    future: Future[dict[int, Stored]] | None = None

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


class HeldBlock:
    """The samples of a block as far as they have been read ahead. It lives as long as anybody has
    still to take one."""

    def __init__(self, reader: BlockReader, rows: Rows, ranges: list[Range]) -> None:
        self.rows, self.ranges = rows, ranges
        self._reader = reader
        self._num_begun = 0
        self._range_of = {
            (part.corpus, part.shard, row): part for part in ranges for row in part.rows
        }
        self._last = {place: number for number, place in enumerate(rows.places)}
        """Where the block gives a sample for the last time."""
        self._num_bytes = 0
        """Of the pictures that were read and not yet taken."""
        self._is_retired = False
        self._lock = threading.Lock()

    def read_ahead(self, num: int, max_bytes: int | None = None) -> None:
        """Begin to read the first `num` ranges."""
        while self._num_begun < num:
            part = self.ranges[self._num_begun]
            if max_bytes is not None and self._reader.num_bytes + part.num_bytes > max_bytes:
                return
            part.future = self._reader.submit(self, part)
            self._num_begun += 1

    def take(self, number: int) -> Stored:
        """A sample of the block, each once; after that it is read again."""
        place = self.rows.places[number]
        part = self._range_of.get(place)
        if part is None or part.future is None:
            return self._reader.read(*place)
        stored = part.future.result()
        if self._last[place] > number:
            one = stored.get(place[2])
        else:
            one = stored.pop(place[2], None)
            self._count(0 if one is None else -len(one.image))
        return one or self._reader.read(*place)

    def note(self, stored: dict[int, Stored]) -> None:
        """What was asked for has come."""
        self._count(sum(len(one.image) for one in stored.values()))

    def retire(self) -> None:
        """Nobody will ask for more: what was not asked for goes with the last who asked."""
        with self._lock:
            self._is_retired = True
            self._reader.add(-self._num_bytes)

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            if not self._is_retired:
                self._num_bytes += num_bytes
                self._reader.add(num_bytes)


def ranges_of(corpus: int, shard: int, table: ShardTable, rows: list[int]) -> list[Range]:
    """`rows` ascending, as their bytes do."""
    ranges: list[Range] = []
    wanted = 0
    for row, start, end in zip(
        rows, table.starts[rows].tolist(), table.ends[rows].tolist(), strict=True
    ):
        last = ranges[-1] if ranges else None
        if (
            last is not None
            and start - last.end <= min(GAP_BYTES, wanted // 4)
            and end - last.start <= RANGE_BYTES
        ):
            last.rows.append(row)
            last.end, wanted = end, wanted + end - start
        else:
            ranges.append(Range(corpus, shard, [row], start, end))
            wanted = end - start
    return ranges


def _unpack(members: memoryview, table: ShardTable, row: int) -> Stored:
    """The picture's member comes first, then the caption's."""
    key = table.keys[row].as_py()
    try:
        size = tar.size_of(members)
        caption_at = tar.BLOCK + size + -size % tar.BLOCK
        names = tar.name_of(members), tar.name_of(members[caption_at:])
        caption_size = tar.size_of(members[caption_at:])
        image = bytes(members[tar.BLOCK : tar.BLOCK + size])
        caption_at += tar.BLOCK
        caption = bytes(members[caption_at : caption_at + caption_size]).decode()
    except ValueError as error:
        raise _damaged(table, row, "no sample lies in its place") from error
    if names[0].partition(".")[0] != key or names[1] != f"{key}.txt":
        raise _damaged(table, row, f"its place holds {names[0] or 'nothing'!r}")
    if len(image) != size or len(caption) > caption_size:
        raise _damaged(table, row, "it breaks off")
    return Stored(table.uid(row), caption, image)


def _damaged(table: ShardTable, row: int, reason: str) -> DamagedError:
    return DamagedError(
        f"shard {table.name}, sample {table.uid(row)}: damaged ({reason}); {REMEDY}"
    )
