"""Duplicates out of any number of pairs, within bounded memory.

Each archive's pairs are written as runs: sorted by uid (see corpus), each pair once. Runs are
merged range by range of uids, FAN_IN of them at a time and level by level as in an external sort,
until few enough are left to write the pairs themselves, a file for each range. A uid is a hash, so
ranges of equal width hold equal numbers of pairs. Of equal pairs the first stays: runs come in the
archives' order, and a run keeps the first of its own. So the result follows from the archives
alone, not from who read them when.

Memory: a run is cut at ROWS_A_RUN rows or CHARACTERS_A_RUN. A merge holds twice the distinct pairs
of its range and one row group; there are as many ranges as hold `rows_per_file` rows each,
duplicates counted.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from pipeline.extraction.extract_records import Run
from pipeline.sample import sample_uid

ROWS_A_RUN = 100_000
CHARACTERS_A_RUN = 1 << 26
"""Of URLs and captions; a run of ordinary pairs is cut by its rows."""

ROWS_A_GROUP = 4_000
"""Of a run's row groups: the least that a merge reads of it, and about what a file of 250,000 pairs
takes from each of FAN_IN runs."""

FAN_IN = 64
"""Runs merged at once: three levels take a crawl's hundred thousand archives."""

UID_HIGH, UID_LOW = "uid_high", "uid_low"
NUM_HIGH = 1 << 64
"""Ranges are of the uid's first 64 bits."""

RUN_SCHEMA = pa.schema(
    [
        (UID_HIGH, pa.uint64()),
        (UID_LOW, pa.uint64()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("page_url", pa.string()),
        ("record_id", pa.string()),
        ("warc_file", pa.string()),
        ("warc_offset", pa.int64()),
        ("archive", pa.string()),
    ]
)
PAIR_COLUMNS = RUN_SCHEMA.names[2:]

PairRow = tuple[str, str, str, str, str, int | None, str]
"""PAIR_COLUMNS."""


@dataclass(frozen=True)
class Range:
    """Uids whose first 64 bits are in [low, high)."""

    low: int
    high: int


@dataclass
class RunWriter:
    """Takes one archive's pairs as they come; `folder`/`key`-000.parquet and so on."""

    folder: str
    key: str
    runs: list[Run] = field(default_factory=list)
    _rows: list[PairRow] = field(default_factory=list)
    _num_characters: int = 0

    def add(self, row: PairRow) -> None:
        url, caption, page_url, *_ = row
        self._rows.append(row)
        self._num_characters += len(url) + len(caption) + len(page_url)
        if len(self._rows) == ROWS_A_RUN or self._num_characters >= CHARACTERS_A_RUN:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        table = distinct(_run_table(self._rows))
        name = f"{self.key}-{len(self.runs):03d}.parquet"
        write_run(storage.join(self.folder, name), iter([table]))
        self.runs.append(Run(name=name, num_rows=table.num_rows))
        self._rows.clear()
        self._num_characters = 0


def ranges(num_rows: int, rows_a_range: int) -> list[Range]:
    """Equal ones, over all uids."""
    num = max(1, -(-num_rows // rows_a_range))
    bounds = [i * NUM_HIGH // num for i in range(num + 1)]
    return [Range(low, high) for low, high in itertools.pairwise(bounds)]


def groups(runs: Sequence[Run]) -> list[Sequence[Run]]:
    return [runs[start : start + FAN_IN] for start in range(0, len(runs), FAN_IN)]


def merge(folder: str, runs: Sequence[Run], name: str, rows_a_range: int) -> Run:
    """Many runs into one."""
    num_rows = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal num_rows
        for part in ranges(sum(run.num_rows for run in runs), rows_a_range):
            table = merge_range(folder, runs, part, rows_a_range)
            num_rows += table.num_rows
            yield table

    write_run(storage.join(folder, name), tables())
    return Run(name=name, num_rows=num_rows)


def merge_range(folder: str, runs: Sequence[Run], part: Range, rows_at_once: int) -> pa.Table:
    """The distinct pairs of a range, sorted; RUN_SCHEMA."""
    held = RUN_SCHEMA.empty_table()
    waiting: list[pa.Table] = []
    num_waiting = 0
    for run in runs:
        for table in _read_range(storage.join(folder, run.name), part):
            waiting.append(table)
            num_waiting += table.num_rows
            if num_waiting >= max(rows_at_once, held.num_rows):
                held = distinct(pa.concat_tables([held, *waiting]))
                waiting, num_waiting = [], 0
    return distinct(pa.concat_tables([held, *waiting]))


def distinct(table: pa.Table) -> pa.Table:
    """Sorted by uid, the first of equal pairs kept."""
    high, low = (table[name].to_numpy() for name in (UID_HIGH, UID_LOW))
    order = np.lexsort((low, high))  # stable: equal ones stay in their order
    high, low = high[order], low[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return table.take(pa.array(order[is_first]))


def write_run(url: str, tables: Iterator[pa.Table]) -> None:
    with (
        storage.publish(url) as path,
        pq.ParquetWriter(path, RUN_SCHEMA, compression="zstd") as writer,
    ):
        for table in tables:
            if table.num_rows:  # an empty row group has no span to look for
                writer.write_table(table, row_group_size=ROWS_A_GROUP)


def _run_table(rows: list[PairRow]) -> pa.Table:
    uids = bytes.fromhex("".join([sample_uid(row[0], row[1]) for row in rows]))
    halves = np.frombuffer(uids, ">u8").astype(np.uint64).reshape(-1, 2)
    columns = [halves[:, 0], halves[:, 1], *map(list, zip(*rows, strict=True))]
    return pa.table(
        [pa.array(column, one.type) for column, one in zip(columns, RUN_SCHEMA, strict=True)],
        RUN_SCHEMA,
    )


def _read_range(url: str, part: Range) -> Iterator[pa.Table]:
    with storage.open_read(url) as file:
        parquet = pq.ParquetFile(file)
        for index in range(parquet.num_row_groups):
            span = parquet.metadata.row_group(index).column(0).statistics
            if span.max < part.low or span.min >= part.high:
                continue
            table = parquet.read_row_group(index)
            high = table[UID_HIGH].to_numpy()
            inside = (high >= np.uint64(part.low)) & (high <= np.uint64(part.high - 1))
            yield table.filter(pa.array(inside))
