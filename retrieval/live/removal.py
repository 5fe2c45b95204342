"""Which rows of an index were taken down, by the corpus's tombstones.

Reads   ROOT/tombstones.parquet, and of pictures ROOT/columns/hashes where it has been scored

A row falls under a tombstone by its uid, its URL or domain, the sha256 of its bytes as fetched, or
because its picture is a near copy by its perceptual hash: what `forget` takes out later, at once.
Pictures that have no hash scored are only found by `forget`, which looks at them.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.takedown.tombstones import Tombstone, Tombstones
from retrieval.live.addresses import Addresses
from retrieval.live.columns import Columns
from retrieval.live.metadata import Metadata, hex_words

HASH = "picture_hash"

ROWS_AT_ONCE = 1 << 20


class Removal:
    """Of one state of an index; what was found is kept, so that only new tombstones take time."""

    def __init__(self, metadata: Metadata, columns: Columns) -> None:
        self._metadata, self._columns = metadata, columns
        self._known: frozenset[tuple[str, str, int]] = frozenset()
        self._removed = np.zeros(metadata.num_rows, bool)
        self._addresses = Addresses(lambda: columns.table({"url"})["url"])

    def rows(self, tombstones: Tombstones) -> np.ndarray:
        """[num_rows] bool."""
        asked = {stone.identity: stone for stone in tombstones.stones}
        if not asked.keys() >= self._known:  # some were taken back
            self._known, self._removed = frozenset(), np.zeros(self._metadata.num_rows, bool)
        new = Tombstones(stone for key, stone in asked.items() if key not in self._known)
        removed = self._removed.copy()
        for found in self._found(new):
            removed[found] = True
        self._known, self._removed = frozenset(asked), removed
        return removed

    def _found(self, tombstones: Tombstones) -> Iterator[np.ndarray]:
        if uids := tombstones.values("uid"):
            yield self._metadata.rows_of(sorted(uids))
        if digests := tombstones.values("sha256"):
            values = pa.array(sorted(digests), pa.string())
            for start, table in self._metadata.tables(["sha256"]):
                here = pc.is_in(table["sha256"].cast(pa.string()), value_set=values)
                yield start + np.flatnonzero(here.to_numpy())
        if tombstones.values("url") or tombstones.values("domain"):
            yield self._addresses.rows(tombstones)
        if tombstones.has_pictures and HASH in self._columns.names:
            hashes = self._columns.table({HASH})[HASH]
            for stone in tombstones.stones:
                if stone.kind == "picture":
                    yield _near(hashes, stone)


def _near(hashes: pa.ChunkedArray, stone: Tombstone) -> np.ndarray:
    """Numbers of the rows whose hash, of 64 hex digits or null, is as near as the stone reaches."""
    bits = hex_words(pa.chunked_array([pa.array([stone.value])]))
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        some = hashes.slice(start, ROWS_AT_ONCE)
        scored = np.flatnonzero(np.asarray(pc.is_valid(some)))
        if len(scored):
            differing = np.bitwise_count(hex_words(some.drop_null()) ^ bits).sum(axis=1)
            found.append(start + scored[differing <= (stone.max_distance or 0)])
    return np.concatenate(found)
