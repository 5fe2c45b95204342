"""Pictures and captions of the samples that a worker is about to need, read ahead in memory that is
bounded.

Reads   byte ranges of the shards' tars, of about a slab each; nothing that lies between

A block is read when its first sample is asked for, and the next one of its lane while it is used.
A picture leaves memory when it has been decoded; what fits in half of the memory stays for later
epochs.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from infra import storage
from infra.errors import DamagedError, StorageError
from pipeline import tar
from pipeline.corpus import shard_url
from training.order import Block
from training.streaming.catalogue import Catalogue, ShardTable
from training.streaming.pixels import REMEDY
from training.streaming.plan import Cell, Rows, SamplePlan

GAP_BYTES = 128 << 10
"""So much that nobody wants is read along before another request is made: at 100 MB/s it takes
little over a millisecond, and an object store's answer to a request ten or more. And no more than
a quarter of what is wanted, so that it stays little."""

RANGE_BYTES = 16 << 20
"""A request asks for no more, so that several share the line."""

NUM_TRIES = 4
"""Of a read that fails for reasons that may pass, with 1, 2 and 4 seconds between them."""

Place = tuple[int, int, int]
"""Corpus, shard, row."""


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

    def hold(self, cell: Cell, block: Block, keeps: "Keeps") -> "HeldBlock":
        """The block, being read."""
        lane = self._held.setdefault((cell, block.lane), {})
        if block not in lane:
            lane[block] = self._begin(cell, block, keeps)
        lane[block].read_ahead(len(lane[block].ranges))
        return lane[block]

    def let_go(self, cell: Cell, block: Block) -> None:
        """Of what came before this block on its lane."""
        lane = self._held.get((cell, block.lane), {})
        for old in [other for other in lane if other < block]:
            lane.pop(old).retire()

    def look_ahead(self, cell: Cell, block: Block, done: float, keeps: "Keeps") -> None:
        """Read as much of the block that follows as is done of this one, if there is room; not of
        an epoch of which all may be in memory by then."""
        following = self._plan.next_block(cell, block)
        if keeps.has_room and following.epoch > block.epoch:
            return
        lane = self._held[cell, block.lane]
        if following not in lane:
            if self.num_bytes > self._max_bytes:
                return
            lane[following] = self._begin(cell, following, keeps)
        held = lane[following]
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

    def submit(self, held: "HeldBlock", part: "Range") -> Future[dict[int, Stored]]:
        self.add(part.num_bytes)

        def read() -> dict[int, Stored]:
            try:
                stored = self._read(held.cell.corpus, part.shard, part.rows)
                held.note(part, stored)
            finally:  # pictures alone stay, without what lay between
                self.add(-part.num_bytes)
            return stored

        return self._pool.submit(read)

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes

    def _begin(self, cell: Cell, block: Block, keeps: "Keeps") -> "HeldBlock":
        rows = self._plan.rows(cell, block)
        ranges: list[Range] = []
        for shard in np.unique(rows.shards):
            wanted = [
                int(row)
                for row in np.unique(rows.rows[rows.shards == shard])
                if (cell.corpus, int(shard), int(row)) not in keeps
            ]
            table = self._catalogues[cell.corpus].table(int(shard))
            ranges += ranges_of(int(shard), table, wanted)
        return HeldBlock(self, cell, rows, ranges)

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

    shard: int
    rows: list[int]
    num_bytes: int
    future: Future[dict[int, Stored]] | None = None


class HeldBlock:
    """The samples of a block as far as they have been read."""

    def __init__(self, reader: BlockReader, cell: Cell, rows: Rows, ranges: list[Range]) -> None:
        self.cell, self.rows, self.ranges = cell, rows, ranges
        self._reader = reader
        self._num_begun = 0
        self._range_of = {(part.shard, row): part for part in ranges for row in part.rows}
        self._num_left = Counter(
            place for place in zip(rows.shards.tolist(), rows.rows.tolist(), strict=True)
        )
        """How often the block will still give a sample."""
        self._num_claimed = Counter[tuple[int, int]]()
        """How often one was asked for that was not yet taken."""
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

    def claim(self, shard: int, row: int) -> None:
        """`take` will be called for it."""
        with self._lock:
            self._num_claimed[shard, row] += 1

    def take(self, shard: int, row: int) -> Stored:
        """Each as often as the block has it; after that it is read again."""
        part = self._range_of.get((shard, row))
        future = None if part is None else part.future
        if future is None:
            return self._reader.read(self.cell.corpus, shard, row)
        stored = future.result()
        with self._lock:
            one = stored.get(row)
            self._num_claimed[shard, row] -= 1
            self._num_left[shard, row] -= 1
            self._drop_unwanted(stored, shard, row)
        return one or self._reader.read(self.cell.corpus, shard, row)

    def note(self, part: Range, stored: dict[int, Stored]) -> None:
        """What was asked for has come."""
        self._reader.add(sum(len(one.image) for one in stored.values()))
        with self._lock:
            for row in list(stored):
                self._drop_unwanted(stored, part.shard, row)

    def retire(self) -> None:
        """Nobody will ask for more than has been asked for."""
        with self._lock:
            self._is_retired = True
            for part in self.ranges:
                if part.future is not None and part.future.done() and not part.future.exception():
                    stored = part.future.result()
                    for row in list(stored):
                        self._drop_unwanted(stored, part.shard, row)

    def _drop_unwanted(self, stored: dict[int, Stored], shard: int, row: int) -> None:
        is_wanted = self._num_claimed[shard, row] > 0 or (
            self._num_left[shard, row] > 0 and not self._is_retired
        )
        if not is_wanted and row in stored:
            self._reader.add(-len(stored.pop(row).image))


def ranges_of(shard: int, table: ShardTable, rows: list[int]) -> list[Range]:
    """`rows` ascending, as their bytes do."""
    parts: list[list[int]] = [[row] for row in rows[:1]]
    for before, row in pairwise(rows):
        gap = int(table.starts[row] - table.ends[before])
        wanted = int((table.ends[parts[-1]] - table.starts[parts[-1]]).sum())
        is_short = table.ends[row] - table.starts[parts[-1][0]] <= RANGE_BYTES
        if gap <= min(GAP_BYTES, wanted // 4) and is_short:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [Range(shard, part, int(table.ends[part[-1]] - table.starts[part[0]])) for part in parts]


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
