"""The list cut into slices of one shard each, where workers can read them.

    ROOT/download/slices/00000.parquet  url, caption, fault, uid and the additional columns
    ROOT/download/duplicates.parquet    row numbers whose (url, caption) came earlier
    ROOT/download/plan.json             digests of the list and the configuration, after these
    ROOT/download/done/00000.json       the record of a finished shard

The list is read once, as a stream; memory holds one slice. Duplicates are found by DuckDB over the
uids, within `DEDUP_MEMORY` and its temporary files. The folder goes when the corpus is complete.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.records import read_record
from pipeline.corpus import SUCCESS, Shard, read_rows, sample_uid, shard_files, shard_url
from pipeline.pairs import PairList

DEDUP_MEMORY = "1GB"
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Slice:
    """What one worker is given: the rows of one shard."""

    index: int
    num_rows: int
    duplicates: tuple[int, ...]
    """Places in the slice of the rows that the list had before."""

    @property
    def name(self) -> str:
        return f"{self.index:05d}"


class Plan(BaseModel):
    """How a list was cut; it is complete where it exists."""

    model_config = ConfigDict(frozen=True)

    input_digest: str
    config: dict[str, Any]
    config_digest: str
    num_rows: int
    rows_a_slice: int


class ShardRecord(BaseModel):
    """A finished shard and what became of its rows."""

    model_config = ConfigDict(frozen=True)

    shard: Shard
    counts: dict[str, int]
    """Rows by "success" or the reason of their failure."""


def folder_url(root: str, *parts: str) -> str:
    return storage.join(root, "download", *parts)


def read_plan(root: str) -> Plan | None:
    url = folder_url(root, "plan.json")
    return read_record(url, Plan) if storage.exists(url) else None


def write_slices(root: str, pairs: PairList, rows_a_slice: int) -> int:
    """Cut the list and return the number of its rows; nothing counts before `write_plan`."""
    num_rows = 0
    with tempfile.TemporaryDirectory(prefix="carrara-") as spool:
        seen = _SeenPairs(Path(spool))
        for index, table in enumerate(_resliced(pairs.tables(), rows_a_slice)):
            table = table.append_column("uid", _uids(table))
            seen.add(table["uid"], num_rows)
            storage.publish_table(folder_url(root, "slices", f"{index:05d}.parquet"), table)
            num_rows += table.num_rows
        storage.publish_table(folder_url(root, "duplicates.parquet"), seen.duplicates())
    return num_rows


def write_plan(root: str, plan: Plan) -> None:
    storage.publish_text(folder_url(root, "plan.json"), plan.model_dump_json(indent=2))


def slices(root: str, plan: Plan) -> list[Slice]:
    duplicates = storage.read_table(folder_url(root, "duplicates.parquet"))["row"].to_numpy()
    cut = []
    for start in range(0, plan.num_rows, plan.rows_a_slice):
        stop = min(start + plan.rows_a_slice, plan.num_rows)
        first, last = duplicates.searchsorted([start, stop])
        inside = tuple((duplicates[first:last] - start).tolist())
        cut.append(Slice(start // plan.rows_a_slice, stop - start, inside))
    return cut


def read_slice(root: str, part: Slice) -> pa.Table:
    return storage.read_table(folder_url(root, "slices", f"{part.name}.parquet"))


def write_record(root: str, record: ShardRecord) -> None:
    """After the shard: a shard without its record is made again."""
    url = folder_url(root, "done", f"{record.shard.name}.json")
    storage.publish_text(url, record.model_dump_json())


def read_records(root: str) -> dict[str, ShardRecord]:
    """The finished shards by name, those left out whose files are gone or of another size."""
    records = {}
    for name in storage.list_names(folder_url(root, "done")):
        record = read_record(folder_url(root, "done", name), ShardRecord)
        records[record.shard.name] = record
    return {
        shard.name: records[shard.name]
        for shard in whole_shards(root, [record.shard for record in records.values()])
    }


def whole_shards(root: str, shards: list[Shard]) -> list[Shard]:
    """Those whose files are all there, the tar of the right size."""
    there = set(storage.list_names(storage.join(root, "shards")))
    return [
        shard
        for shard in shards
        if there >= set(shard_files(shard.name))
        and storage.size_bytes(shard_url(root, shard.name)) == shard.num_bytes
    ]


def recount(root: str, shard: Shard) -> ShardRecord:
    """The record of a shard of a finished corpus, from the shard's own rows."""
    rows = read_rows(root, shard, ["error_message"])["error_message"].to_pylist()
    counts = Counter(reason or SUCCESS for reason in rows)
    return ShardRecord(shard=shard, counts=dict(sorted(counts.items())))


def _resliced(tables: Iterator[pa.Table], rows_a_slice: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    num_held = 0
    for table in tables:
        while num_held + table.num_rows >= rows_a_slice:
            rest = rows_a_slice - num_held
            yield pa.concat_tables([*held, table.slice(0, rest)])
            table, held, num_held = table.slice(rest), [], 0
        held.append(table)
        num_held += table.num_rows
    if num_held:
        yield pa.concat_tables(held)


def _uids(table: pa.Table) -> pa.Array:
    """Null for rows that are no pair: they are nobody's duplicate."""
    rows = zip(*(table[name].to_pylist() for name in ("url", "caption", "fault")), strict=True)
    return pa.array(
        [None if fault else sample_uid(url, caption) for url, caption, fault in rows], pa.string()
    )


class _SeenPairs:
    """Every pair's uid and row number, in a database on disk."""

    def __init__(self, spool: Path) -> None:
        import duckdb

        self._database = duckdb.connect(spool / "seen.duckdb")
        self._database.execute(f"SET memory_limit = '{DEDUP_MEMORY}'")
        self._database.execute("CREATE TABLE seen (uid VARCHAR, row BIGINT)")

    def add(self, uids: pa.ChunkedArray, first_row: int) -> None:
        rows = pa.array(range(first_row, first_row + len(uids)), pa.int64())
        self._database.register("batch", pa.table({"uid": uids, "row": rows}))
        self._database.execute("INSERT INTO seen SELECT * FROM batch WHERE uid IS NOT NULL")
        self._database.unregister("batch")

    def duplicates(self) -> pa.Table:
        """Rows after the first of their uid, in order."""
        ranked = "SELECT row, row_number() OVER (PARTITION BY uid ORDER BY row) AS nth FROM seen"
        query = f"SELECT row FROM ({ranked}) WHERE nth > 1 ORDER BY row"
        found = self._database.sql(query).to_arrow_table()
        self._database.close()
        return found
