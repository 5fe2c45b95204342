"""What is known of an index's rows, by row number: uid, caption, URL and all that the shards tell.

Reads   ROOT/index/<encoder>/metadata/metadata_{i}.parquet

A part is held against its digest and unpacked when first asked for, into a temporary file without
a name that is memory-mapped: what a process holds are the pages it looked at. Ten million rows take
about 4 GB of that file and 160 MB for the uids, which are kept as 64 bits each, with their order.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage
from infra.errors import DamagedError
from retrieval.embedding.embeddings import Part, metadata_name
from retrieval.live.files import map_file


class Metadata:
    """The rows of an index's parts, in their order."""

    def __init__(
        self, folder: str, parts: Sequence[Part], before: "Metadata | None" = None
    ) -> None:
        """Parts that `before` has already are taken over from it."""
        self.starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self._parts = parts
        known = {} if before is None else {table.digest: table for table in before._tables}
        self._tables: list[_Table] = [
            known.get(digest := part.files[name]) or _Table(storage.join(folder, name), digest)
            for part in parts
            for name in [metadata_name(part.file_number)]
        ]

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    @property
    def shards(self) -> list[str]:
        """Of each part."""
        return [part.shard for part in self._parts]

    @cached_property
    def names(self) -> list[str]:
        """Of the columns that any part has."""
        schemas = (pq.read_schema(pa.BufferReader(table.packed)) for table in self._tables)
        return list(dict.fromkeys(name for schema in schemas for name in schema.names))

    def shard_of(self, row: int) -> str:
        return self._parts[self._number(row)].shard

    def rows_at(self, rows: np.ndarray) -> list[dict[str, object]]:
        """What is known of these rows, in their order; all of a part at once, which is 16 times as
        quick as one by one."""
        found: list[dict[str, object]] = [{}] * len(rows)
        for table, places, there in self._by_part(rows):
            for place, row in zip(places, table.take(there).to_pylist(), strict=True):
                found[place] = row
        return found

    def column_at(self, rows: np.ndarray, name: str) -> list[object]:
        """What one column has for these rows, in their order; None where a part lacks it."""
        found: list[object] = [None] * len(rows)
        for table, places, there in self._by_part(rows):
            if name in table.column_names:
                for place, value in zip(places, table[name].take(there).to_pylist(), strict=True):
                    found[place] = value
        return found

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray, pa.Array]]:
        """Each part that has some of them, their places among `rows`, and where it has them."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(numbers):
            (places,) = np.nonzero(numbers == number)
            yield self._tables[number].rows, places, pa.array(rows[places] - self.starts[number])

    def tables(self, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Each part's first row number, and these columns of it; those that it lacks are null."""
        for start, table in zip(self.starts, self._tables, strict=False):
            yield int(start), _with_all(table.rows, columns)

    def rows_of(self, uids: Sequence[str]) -> np.ndarray:
        """Sorted numbers of all rows of these samples."""
        asked = np.unique(uint64_keys(pa.chunked_array([pa.array(uids, pa.string())])))
        keys, order = self._keys_in_order
        first, last = (np.searchsorted(keys, asked, side) for side in ("left", "right"))
        spans = [order[low:high] for low, high in zip(first, last, strict=True) if low < high]
        candidates = np.unique(np.concatenate([np.zeros(0, np.int64), *spans]))
        numbers = np.searchsorted(self.starts, candidates, side="right") - 1
        wanted, found = pa.array(uids, pa.string()), [np.zeros(0, np.int64)]
        for number in np.unique(numbers):
            rows = candidates[numbers == number]
            there = self._tables[number].rows["uid"].take(pa.array(rows - self.starts[number]))
            found.append(rows[pc.is_in(there, value_set=wanted).to_numpy()])
        return np.concatenate(found)

    def rows_beginning(self, prefix: int, num_bits: int) -> np.ndarray:
        """Sorted numbers of all rows whose uid begins with these bits, at most 64."""
        keys, order = self._keys_in_order
        first = np.uint64(prefix << (64 - num_bits))
        last = np.uint64(((prefix + 1) << (64 - num_bits)) - 1)
        low, high = np.searchsorted(keys, first), np.searchsorted(keys, last, "right")
        return np.sort(order[low:high])

    def _number(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    @cached_property
    def _keys_in_order(self) -> tuple[np.ndarray, np.ndarray]:
        keys = [uint64_keys(table["uid"]) for _, table in self.tables(["uid"])]
        all_keys = np.concatenate([np.zeros(0, np.uint64), *keys])
        order = np.argsort(all_keys, kind="stable")
        return all_keys[order], order


class _Table:
    """One part's rows, unpacked when they are asked for."""

    def __init__(self, url: str, digest: str) -> None:
        self.digest = digest
        self._url = url
        self.packed = map_file(url)
        self._lock = Lock()

    @property
    def rows(self) -> pa.Table:
        with self._lock:
            return self._rows

    @cached_property
    def _rows(self) -> pa.Table:
        if hashlib.sha256(self.packed).hexdigest() != self.digest:
            raise DamagedError(
                f"{self._url}: is not what index.json says it is; remove it and run "
                "`carrara index` again"
            )
        # Not pq.read_table, which imports pandas if it is there: a fifth of a query's time.
        return _spooled(pq.ParquetFile(storage.arrow_file(self.packed)).read())


def _spooled(table: pa.Table) -> pa.Table:
    """The same table, in a file that goes away with it."""
    with tempfile.NamedTemporaryFile(prefix="carrara-") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        with pa.memory_map(file.name) as mapped:
            return pa.ipc.open_file(mapped.read_buffer()).read_all()


def _with_all(table: pa.Table, columns: list[str]) -> pa.Table:
    have = set(table.column_names)
    return pa.table(
        {name: table[name] if name in have else pa.nulls(len(table)) for name in columns}
    )


def uint64_keys(texts: pa.ChunkedArray) -> np.ndarray:
    """[n] uint64: the first 16 hex digits of uids or digests, all of one length."""
    return hex_words(texts)[:, 0] if len(texts) else np.zeros(0, np.uint64)


def hex_words(texts: pa.ChunkedArray) -> np.ndarray:
    """[n, w] uint64: what texts of hex digits say, all of one length and none null."""
    array = texts.combine_chunks()
    num_digits = len(array[0].as_py())
    _, data = array.cast(pa.binary(num_digits)).buffers()
    digits = _hex_values()[np.frombuffer(data, np.uint8)].reshape(len(array), -1, 2)
    octets = digits[:, :, 0] << 4 | digits[:, :, 1]
    words: np.ndarray = octets.view(">u8").astype(np.uint64)
    return words


@lru_cache(maxsize=1)
def _hex_values() -> np.ndarray:
    """[256] what each byte means as a hex digit."""
    values = np.zeros(256, np.uint8)
    for value, digit in enumerate(b"0123456789abcdef"):
        values[digit] = value
    return values
