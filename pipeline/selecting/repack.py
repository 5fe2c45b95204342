"""Samples on their way from a corpus's shards into new ones.

Reads   ROOT/shards/
Writes  the shards of a plan's targets, whole or not at all

On a local disk every new shard is put together by reads at the places that the parquets tell, while
the tars are held against their digests; a new shard counts only after that. From an object store,
or a disk that seeks slowly, each tar is read once from front to back, and samples wait in files on
this machine's disk, one for each new shard. Either way rows wait in such files, and both ways give
the same bytes.

Threads work on several shards at once: reading, writing and digests, which take most of the time,
need no interpreter.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra import storage
from infra.errors import DamagedError
from infra.progress import track
from pipeline import tar
from pipeline.corpus import (
    PLACE_SCHEMA,
    SUCCESS,
    Manifest,
    Shard,
    check_tar,
    finish_shard,
    iter_samples,
    read_rows,
    shard_url,
    write_packed_shard,
)
from pipeline.sample import (
    PackedSample,
    Sample,
    key_of,
    pack_sample,
    rekey,
    unpack_sample,
)
from pipeline.selecting.pack_plan import Plan
from pipeline.selecting.splits import as_uids
from pipeline.selecting.spool import RowSpool, SampleSpool

PLACE, SOURCE, BEGIN, END = "place in its new shard", "source shard", "begin", "end"
ON_THE_WAY = pa.schema(
    [(PLACE, pa.int64()), (SOURCE, pa.int32()), (BEGIN, pa.int64()), (END, pa.int64())]
)
"""Columns that rows have only on their way."""

MAX_OPEN_FILES = 512
"""Half of the usual limit; of more tars the others are opened for every read."""


class Repacker:
    """Moves what a plan keeps; `missing` are the numbers of the targets to be written."""

    def __init__(
        self,
        root: str,
        source: Manifest,
        plan: Plan,
        missing: Sequence[int],
        spool: Path,
        *,
        sequential: bool,
    ) -> None:
        self._root, self._source, self._plan, self._missing = root, source, plan, missing
        self._rows, self._samples = RowSpool(spool / "rows"), SampleSpool(spool / "samples")
        schema = read_rows(root, source.shards[0]).schema
        self._schema = _row_schema(schema)
        has_places = set(PLACE_SCHEMA.names) <= set(schema.names)
        self._sequential = sequential or "://" in storage.canonical(root) or not has_places
        self._unchecked: list[Shard] = []
        self._unfinished: deque[int] = deque()

    def read(self, num_threads: int) -> None:
        """Lay what the missing shards need beside each other; raises DamagedError."""
        with (
            track("pack: read", self._source.num_samples, "samples") as bar,
            ThreadPoolExecutor(num_threads) as pool,
        ):
            for num_samples in pool.map(self._read_shard, range(len(self._source.shards))):
                bar.advance(num_samples)
        self._rows.flush()
        self._samples.flush()

    def write(self, outputs: dict[str, str], num_threads: int) -> dict[int, Shard]:
        """The missing shards by their numbers, in the folders of their splits.

        Raises DamagedError and StorageError; shards that were whole before that are kept.
        """
        with ThreadPoolExecutor(1) as checker:
            checked = checker.submit(self._check_tars)
            try:
                return self._write(outputs, num_threads, checked)
            finally:
                checked.result()  # tars that aren't intact are why anything else went wrong
                self._finish(outputs)

    def _check_tars(self) -> None:
        for shard in self._unchecked:
            check_tar(self._root, shard)

    def _write(
        self, outputs: dict[str, str], num_threads: int, checked: Future[None]
    ) -> dict[int, Shard]:
        targets = [self._plan.targets[number] for number in self._missing]
        written: list[Shard] = []
        names = [] if self._sequential else [shard.name for shard in self._source.shards]
        with (
            _Tars([storage.canonical(shard_url(self._root, name)) for name in names]) as tars,
            track("pack: write", sum(target.num_samples for target in targets), "samples") as bar,
            ThreadPoolExecutor(num_threads) as pool,
        ):
            for shard in pool.map(partial(self._write_shard, outputs, tars), self._missing):
                written.append(shard)
                bar.advance(shard.num_samples)
                if checked.done():
                    checked.result()
                    self._finish(outputs)
        return dict(zip(self._missing, written, strict=True))

    def _finish(self, outputs: dict[str, str]) -> None:
        """Have the shards count that are written; what they were made of is intact."""
        while self._unfinished:
            target = self._plan.targets[self._unfinished.popleft()]
            num = target.num_samples
            stats = {"count": num, "successes": num, "status_dict": {SUCCESS: num}}
            finish_shard(outputs[target.split], target.name, stats)

    def _read_shard(self, place: int) -> int:
        shard = self._source.shards[place]
        rows = read_rows(self._root, shard)
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        is_kept, ranks = self._plan.find(as_uids(rows["uid"]))
        numbers, places, weights = self._plan.place(ranks[is_kept])
        is_missing = np.isin(numbers, self._missing)
        if not is_missing.any():
            return shard.num_samples
        if not self._sequential:
            self._unchecked.append(shard)
            rows = _with_source(rows, place, shard)
        rows = rows.filter(pa.array(is_kept)).filter(pa.array(is_missing))
        numbers, places = numbers[is_missing], places[is_missing]
        at = zip(numbers.tolist(), places.tolist(), strict=True)
        new = {
            "key": pa.array([self._plan.targets[number].key(place) for number, place in at]),
            "source_key": rows["key"],
            "weight": pa.array(weights[is_missing]),
            PLACE: pa.array(places),
        }
        rows = _conform(rows, self._schema, new)
        self._move_rows(rows, numbers)
        if self._sequential:
            self._move_samples(shard, rows, numbers)
        return shard.num_samples

    def _move_rows(self, rows: pa.Table, numbers: NDArray[np.int32]) -> None:
        order = np.argsort(numbers, kind="stable")
        rows = rows.take(pa.array(order))
        found, starts = np.unique(numbers[order], return_index=True)
        for number, start, stop in zip(found, starts, [*starts[1:], len(order)], strict=True):
            self._rows.add_rows(int(number), rows.slice(start, stop - start))

    def _move_samples(self, shard: Shard, rows: pa.Table, numbers: NDArray[np.int32]) -> None:
        moves = zip(numbers.tolist(), rows[PLACE].to_pylist(), _news(rows), strict=True)
        by_key = {new["source_key"]: (number, place, new) for number, place, new in moves}
        for sample in iter_samples(self._root, shard):
            if sample.key in by_key:
                number, place, new = by_key[sample.key]
                self._samples.add_sample(number, place, _moved(sample, new))

    def _write_shard(self, outputs: dict[str, str], tars: "_Tars", number: int) -> Shard:
        target = self._plan.targets[number]
        output = outputs[target.split]
        rows = pa.concat_tables([self._schema.empty_table(), *self._rows.read(number)])
        num = target.num_samples
        if rows.num_rows != num:
            raise DamagedError(
                f"shard {shard_url(output, target.name)}: {num - rows.num_rows} selected samples "
                "are not in the corpus's parquets; `carrara verify` tells which are damaged"
            )
        rows = rows.sort_by(PLACE).combine_chunks()
        found = self._find(rows, tars)
        samples = self._samples.read(number, target.key) if self._sequential else found
        rows = rows.drop_columns(ON_THE_WAY.names)
        shard = write_packed_shard(output, target.name, samples, rows)
        self._unfinished.append(number)
        self._rows.drop(number)
        self._samples.drop(number)
        return shard

    def _find(self, rows: pa.Table, tars: "_Tars") -> Iterator[PackedSample]:
        """By reads of their own, before it is known that the tars are what their manifest says."""
        spans = zip(*(rows[name].to_pylist() for name in (SOURCE, BEGIN, END)), strict=True)
        longest = pc.max(pc.subtract(rows[END], rows[BEGIN])).as_py() or 0
        buffer = memoryview(bytearray(longest))  # memory touched anew for each costs as much again
        for (source, begin, end), new in zip(spans, _news(rows), strict=True):
            members = buffer[: end - begin]
            tars.read_into(members, source, begin)
            yield self._moved_from(members, source, new)

    def _moved_from(self, members: memoryview, source: int, new: dict[str, Any]) -> PackedSample:
        url = shard_url(self._root, self._source.shards[source].name)
        try:
            if (key := key_of(members)) == new["source_key"]:
                return rekey(members, new) or _moved(unpack_sample(members), new)
        # What a damaged or forged tar gives, as where it is read from front to back.
        except (KeyError, TypeError, ValueError, EOFError, RecursionError) as error:
            raise DamagedError(
                f"{url}: damaged ({type(error).__name__}: {error}) where its parquet tells of "
                f"{new['source_key']}; `carrara verify {self._root}` tells what else is"
            ) from None
        raise DamagedError(
            f"{url}: holds {key} where its parquet tells of {new['source_key']}; "
            "pack it with --sequential"
        )


class _Tars:
    """The corpus's local tars, the first of them held open; threads read from them at once."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __enter__(self) -> Self:
        self._open = [os.open(path, os.O_RDONLY) for path in self._paths[:MAX_OPEN_FILES]]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open:
            os.close(file)

    def read_into(self, buffer: memoryview, number: int, begin: int) -> None:
        if number < len(self._open):
            os.preadv(self._open[number], [buffer], begin)
            return
        with Path(self._paths[number]).open("rb", buffering=0) as file:
            os.preadv(file.fileno(), [buffer], begin)


def _news(rows: pa.Table) -> list[dict[str, Any]]:
    """What is new in each sample's metadata."""
    news: list[dict[str, Any]] = rows.select(["key", "source_key", "weight"]).to_pylist()
    return news


def _moved(sample: Sample, new: dict[str, Any]) -> PackedSample:
    return pack_sample(replace(sample, key=new["key"], metadata=sample.metadata | new))


def _with_source(rows: pa.Table, number: int, shard: Shard) -> pa.Table:
    """Where in which tar each sample's members begin and end: where the next one's begin."""
    begins = rows["image_offset"].to_numpy() - tar.BLOCK
    order = np.argsort(begins)
    ends = np.empty_like(begins)
    ends[order] = np.append(begins[order][1:], shard.num_bytes)
    rows = rows.append_column(SOURCE, pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows))
    return rows.append_column(BEGIN, pa.array(begins)).append_column(END, pa.array(ends))


def _row_schema(source: pa.Schema) -> pa.Schema:
    schema = source.remove_metadata()
    for field in (pa.field("source_key", pa.string()), pa.field("weight", pa.float32())):
        if field.name not in schema.names:
            schema = schema.append(field)
    return pa.schema([*schema, *ON_THE_WAY])


def _conform(rows: pa.Table, schema: pa.Schema, new: dict[str, pa.Array]) -> pa.Table:
    """The schema's columns, in its order and types; null where a shard lacks one."""
    there = dict(zip(rows.column_names, rows.columns, strict=True)) | new
    columns = [
        there[field.name].cast(field.type)
        if field.name in there
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
