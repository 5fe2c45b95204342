"""Samples on their way from a corpus's shards into new ones, through files on this machine's disk.

Reads   ROOT/shards/ from front to back, each tar once
Writes  the shards of a plan's targets, whole or not at all

A sample's place and key are known when it is read, so what is spooled is the very bytes that its
new tar will have. Threads work on several shards at once: reading, writing and digests, which take
most of the time, need no interpreter.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.errors import DamagedError
from infra.progress import track
from pipeline.corpus import (
    SUCCESS,
    Manifest,
    Shard,
    iter_samples,
    pack_sample,
    read_rows,
    shard_url,
    write_packed_shard,
)
from pipeline.pack_plan import Plan
from pipeline.splits import as_uids
from pipeline.spool import RowSpool, SampleSpool

PLACE = "place in its new shard"
"""A column that rows have only on their way."""


class Repacker:
    """Moves what a plan keeps; `missing` are the numbers of the targets to be written."""

    def __init__(
        self, root: str, source: Manifest, plan: Plan, missing: Sequence[int], spool: Path
    ) -> None:
        self._root, self._source, self._plan, self._missing = root, source, plan, missing
        self._rows, self._samples = RowSpool(spool / "rows"), SampleSpool(spool / "samples")
        self._schema = _row_schema(read_rows(root, source.shards[0]).schema)

    def read(self, num_threads: int) -> None:
        """Lay what the missing shards need beside each other; raises DamagedError."""
        with (
            track("pack: read", self._source.num_samples, "samples") as bar,
            ThreadPoolExecutor(num_threads) as pool,
        ):
            for num_samples in pool.map(self._read_shard, self._source.shards):
                bar.advance(num_samples)
        self._rows.flush()
        self._samples.flush()

    def write(self, outputs: dict[str, str], num_threads: int) -> dict[int, Shard]:
        """The missing shards by their numbers, in the folders of their splits."""
        sizes = [self._plan.targets[number].num_samples for number in self._missing]
        written = {}
        with (
            track("pack: write", sum(sizes), "samples") as bar,
            ThreadPoolExecutor(num_threads) as pool,
        ):
            shards = pool.map(partial(self._write_shard, outputs), self._missing)
            for number, shard in zip(self._missing, shards, strict=True):
                written[number] = shard
                bar.advance(shard.num_samples)
        return written

    def _read_shard(self, shard: Shard) -> int:
        rows = read_rows(self._root, shard)
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        is_kept, ranks = self._plan.find(as_uids(rows["uid"]))
        numbers, places, weights = self._plan.place(ranks[is_kept])
        is_missing = np.isin(numbers, self._missing)
        if not is_missing.any():
            return shard.num_samples
        rows = rows.filter(pa.array(is_kept)).filter(pa.array(is_missing))
        moves = _Moves(
            source_keys=rows["key"].to_pylist(),
            numbers=numbers[is_missing],
            places=places[is_missing],
            weights=weights[is_missing],
        )
        self._move_rows(rows, moves)
        self._move_samples(shard, moves)
        return shard.num_samples

    def _move_rows(self, rows: pa.Table, moves: "_Moves") -> None:
        new = {
            "key": pa.array(self._keys(moves)),
            "source_key": pa.array(moves.source_keys, pa.string()),
            "weight": pa.array(moves.weights),
            PLACE: pa.array(moves.places),
        }
        order = np.argsort(moves.numbers, kind="stable")
        rows = _conform(rows, self._schema, new).take(pa.array(order))
        numbers, starts = np.unique(moves.numbers[order], return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
            self._rows.add_rows(int(number), rows.slice(start, stop - start))

    def _move_samples(self, shard: Shard, moves: "_Moves") -> None:
        numbers, places, weights = (
            column.tolist() for column in (moves.numbers, moves.places, moves.weights)
        )
        rows = zip(moves.source_keys, self._keys(moves), numbers, places, weights, strict=True)
        by_key = {row[0]: row[1:] for row in rows}
        for sample in iter_samples(self._root, shard):
            if sample.key in by_key:
                key, number, place, weight = by_key[sample.key]
                new = {"key": key, "source_key": sample.key, "weight": weight}
                moved = replace(sample, key=key, metadata=sample.metadata | new)
                self._samples.add_sample(number, place, pack_sample(moved))

    def _keys(self, moves: "_Moves") -> list[str]:
        places = zip(moves.numbers.tolist(), moves.places.tolist(), strict=True)
        return [self._plan.targets[number].key(place) for number, place in places]

    def _write_shard(self, outputs: dict[str, str], number: int) -> Shard:
        target = self._plan.targets[number]
        output = outputs[target.split]
        rows = pa.concat_tables([self._schema.empty_table(), *self._rows.read(number)])
        if rows.num_rows != target.num_samples:
            raise DamagedError(
                f"shard {shard_url(output, target.name)}: {target.num_samples - rows.num_rows} "
                "selected samples are not in the corpus's parquets; `carrara verify` tells which "
                "are damaged"
            )
        rows = rows.sort_by(PLACE).drop_columns([PLACE]).combine_chunks()
        samples = self._samples.read(number, target.key)
        num = rows.num_rows
        stats: dict[str, Any] = {"count": num, "successes": num, "status_dict": {SUCCESS: num}}
        shard = write_packed_shard(output, target.name, samples, rows, stats)
        self._rows.drop(number)
        self._samples.drop(number)
        return shard


@dataclass(frozen=True)
class _Moves:
    """Where a shard's kept rows go, one entry a row."""

    source_keys: list[str]
    numbers: NDArray[np.int32]
    """Of the targets."""
    places: NDArray[np.int64]
    weights: NDArray[np.float32]


def _row_schema(source: pa.Schema) -> pa.Schema:
    schema = source.remove_metadata()
    for name, kind in (("source_key", pa.string()), ("weight", pa.float32()), (PLACE, pa.int64())):
        if name not in schema.names:
            schema = schema.append(pa.field(name, kind))
    return schema


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
