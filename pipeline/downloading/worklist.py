"""The list cut into slices of one shard each, where workers can read them.

    ROOT/download/slices/00000.parquet  url, caption, fault, uid and the additional columns
    ROOT/download/duplicates.parquet    row numbers whose (url, caption) came earlier
    ROOT/download/plan.json             digests of the list and the configuration, after these
    ROOT/download/done/00000.json       the record of a finished shard
    ROOT/download/claims/00000          who is at a slice (`claims`)
    ROOT/download/staged/               shards that are to replace those of a corpus that is whole
    ROOT/download/manifest.json         these are complete: from here on they take their places

The list is read once, as a stream; memory holds one slice. Duplicates are found by DuckDB over the
uids, within `DEDUP_MEMORY` and its temporary files. The folder goes when the corpus is complete.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.progress import track
from infra.records import read_record
from pipeline.corpus import (
    SUCCESS,
    Manifest,
    Shard,
    list_shard_files,
    manifest_url,
    read_rows,
    shard_files,
    shard_url,
    write_manifest,
)
from pipeline.databases import told_by_number
from pipeline.downloading.pairs import PairList
from pipeline.sample import sample_uid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEDUP_MEMORY = "1GB"
DUPLICATE = "duplicate"
NUM_READ_AT_ONCE = 32
"""Small files of a store, each of which takes the time of an answer."""

_RECORD_FILE = re.compile(r"\d+\.json")

PlanKind = Literal["new", "overwrite", "retry", "extend"]


@dataclass(frozen=True)
class Slice:
    """What one worker is given: the rows of one shard."""

    index: int
    num_rows: int
    duplicates: "NDArray[np.int32]" = field(repr=False, compare=False)
    """Places in the slice of the rows that the list had before."""
    num_digits: int
    """Of the shard's name."""

    @property
    def name(self) -> str:
        return f"{self.index:0{self.num_digits}d}"


class Plan(BaseModel):
    """How a list was cut; it is complete where it exists."""

    model_config = ConfigDict(frozen=True)

    input_digest: str
    config: dict[str, Any]
    config_digest: str
    num_rows: int = 0
    rows_a_slice: int
    num_digits: int = 5
    kind: PlanKind = "new"
    """What the shards do: stand alone, replace another corpus, better this one or extend it."""
    first_shard: int = 0
    """Number of the list's first shard within the corpus."""
    extends: str | None = None
    """Digest of the corpus that is extended."""

    @property
    def is_staged(self) -> bool:
        return self.kind != "new"


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


def write_slices(
    root: str,
    pairs: PairList,
    rows_a_slice: int,
    first_shard: int = 0,
    held: Iterable[pa.ChunkedArray] = (),
) -> int:
    """Cut the list and return the number of its rows; nothing counts before `write_plan`.

    `held`: uids of pairs that the corpus has already, so that the list's are duplicates.
    """
    num_rows = 0
    with (
        tempfile.TemporaryDirectory(prefix="carrara-") as spool,
        track("cut the list", None, "rows") as bar,
    ):
        seen = _SeenPairs(Path(spool))
        for uids in held:
            seen.add(uids, -len(uids))
        for index, table in enumerate(_resliced(pairs.tables(), rows_a_slice), first_shard):
            table = table.append_column("uid", _uids(table))
            seen.add(table["uid"], num_rows)
            storage.publish_table(_slice_url(root, index), table)
            num_rows += table.num_rows
            bar.advance(table.num_rows)
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
        inside = (duplicates[first:last] - start).astype("int32")
        index = plan.first_shard + start // plan.rows_a_slice
        cut.append(Slice(index, stop - start, inside, plan.num_digits))
    return cut


def read_slice(root: str, part: Slice) -> pa.Table:
    return storage.read_table(_slice_url(root, part.index))


def shards_root(root: str, plan: Plan) -> str:
    """Where the plan's shards are written."""
    return folder_url(root, "staged") if plan.is_staged else root


def write_record(root: str, record: ShardRecord) -> None:
    """After the shard: a shard without its record is made again."""
    url = folder_url(root, "done", f"{record.shard.name}.json")
    storage.publish_text(url, record.model_dump_json())


def read_records(root: str, plan: Plan, unchanged: Sequence[Shard] = ()) -> dict[str, ShardRecord]:
    """The finished shards by name, those left out whose files are gone or of another size.

    `unchanged`: shards of the corpus that is there, whose files are not the plan's.
    """
    names = storage.list_names(folder_url(root, "done"))
    urls = [folder_url(root, "done", name) for name in names if _RECORD_FILE.fullmatch(name)]
    with ThreadPoolExecutor(NUM_READ_AT_ONCE) as pool:
        records = {
            record.shard.name: record
            for record in pool.map(lambda url: read_record(url, ShardRecord), urls)
        }
    there = {shard.name: shard for shard in unchanged}
    is_unchanged = {name: there.get(name) == record.shard for name, record in records.items()}
    made = [record.shard for name, record in records.items() if not is_unchanged[name]]
    whole = {shard.name for shard in whole_shards(shards_root(root, plan), made)}
    return {n: record for n, record in records.items() if is_unchanged[n] or n in whole}


def whole_shards(root: str, shards: Sequence[Shard]) -> list[Shard]:
    """Those whose files are all there, the tar of the right size."""
    there = set(list_shard_files(root))
    complete = [shard for shard in shards if there.issuperset(shard_files(shard.name))]
    with ThreadPoolExecutor(NUM_READ_AT_ONCE) as pool:
        sizes = pool.map(lambda shard: storage.size_bytes(shard_url(root, shard.name)), complete)
        return [
            shard for shard, size in zip(complete, sizes, strict=True) if size == shard.num_bytes
        ]


def recount(root: str, shard: Shard) -> ShardRecord:
    """The record of a shard of a finished corpus, from the shard's own rows."""
    rows = read_rows(root, shard, ["error_message"])["error_message"].to_pylist()
    return record_of(shard, (reason or SUCCESS for reason in rows))


def kept_uids(root: str, shard: Shard) -> pa.ChunkedArray:
    """Of its rows that have a picture."""
    rows = read_rows(root, shard, ["uid", "status"])
    return rows.filter(pc.equal(rows["status"], SUCCESS))["uid"]


def record_of(shard: Shard, reasons: Iterable[str]) -> ShardRecord:
    return ShardRecord(shard=shard, counts=dict(sorted(Counter(reasons).items())))


def stage_manifest(root: str, manifest: Manifest) -> None:
    """What is staged is complete; `install` may begin, and be begun again."""
    storage.publish_text(folder_url(root, "manifest.json"), manifest.model_dump_json())


def install(root: str, derived: Sequence[str]) -> Manifest | None:
    """Put staged shards in their places; None where nothing is complete. `derived` are folders that
    go with a corpus that is overwritten. A command killed amid this goes on with it."""
    url = folder_url(root, "manifest.json")
    if not storage.exists(url):
        return None
    manifest, plan = read_record(url, Manifest), read_plan(root)
    kind = plan.kind if plan is not None else None
    if kind != "extend":  # which changes nothing that is there
        storage.remove(manifest_url(root))
    for folder in derived if kind == "overwrite" else ():
        storage.remove(storage.join(root, folder))
    staged = folder_url(root, "staged")
    for file in sorted(storage.list_files(staged)):
        storage.move(storage.join(staged, file), storage.join(root, file))
    wanted = {file for shard in manifest.shards for file in shard_files(shard.name)}
    for file in list_shard_files(root):
        if file not in wanted:
            storage.remove(storage.join(root, "shards", file))
    write_manifest(root, manifest)
    storage.remove(folder_url(root))
    return manifest


def _slice_url(root: str, index: int) -> str:
    return folder_url(root, "slices", f"{index:05d}.parquet")


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

        self._filling = partial(storage.filling, str(spool))
        with self._filling(), told_by_number():
            self._database = duckdb.connect(spool / "seen.duckdb")
            self._database.execute(f"SET memory_limit = '{DEDUP_MEMORY}'")
            self._database.execute("CREATE TABLE seen (uid VARCHAR, row BIGINT)")

    def add(self, uids: pa.ChunkedArray, first_row: int) -> None:
        rows = pa.array(range(first_row, first_row + len(uids)), pa.int64())
        self._database.register("batch", pa.table({"uid": uids, "row": rows}))
        with self._filling(), told_by_number():
            self._database.execute("INSERT INTO seen SELECT * FROM batch WHERE uid IS NOT NULL")
        self._database.unregister("batch")

    def duplicates(self) -> pa.Table:
        """Rows after the first of their uid, in order; what was there before has negative ones."""
        ranked = "SELECT row, row_number() OVER (PARTITION BY uid ORDER BY row) AS nth FROM seen"
        query = f"SELECT row FROM ({ranked}) WHERE nth > 1 AND row >= 0 ORDER BY row"
        with self._filling(), told_by_number():
            found = self._database.sql(query).to_arrow_table()
        self._database.close()
        return found
