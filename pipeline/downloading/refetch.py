"""Rows of a finished corpus that failed for a reason that may pass, fetched once more.

    carrara download LIST ROOT --incremental-mode retry

Reads ROOT's shards and the list's slices. Stages anew those shards in which a row fared otherwise
than before: what they had, byte for byte, and the new pictures in their places. All others stay as
they are.
"""

import heapq
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from infra import storage
from pipeline.corpus import PLACE_SCHEMA, Shard, iter_samples, read_rows, write_shard
from pipeline.downloading.quarantine import write_quarantine
from pipeline.downloading.shard_download import (
    Job,
    ShardDownloader,
    StopError,
    Stopped,
    expected_hashes,
    samples,
)
from pipeline.downloading.shard_rows import FETCH_SCHEMA, RowOutcome, statistics
from pipeline.downloading.spool import Spool
from pipeline.downloading.worklist import ShardRecord, Slice, read_slice, record_of, write_record
from pipeline.fetching.fetch_settings import may_pass
from pipeline.takedown.tombstones import redact_refused


@dataclass(frozen=True)
class Refetch:
    """What one worker is given: a shard to better, and the slice of the list that it came from."""

    shard: Shard
    part: Slice
    corpus_digest: str

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def num_rows(self) -> int:
        return self.part.num_rows


class ShardRefetcher:
    """Made once a worker process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._downloader = ShardDownloader(job)

    def __enter__(self) -> Self:
        self._downloader.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._downloader.__exit__(*error)

    def __call__(self, item: Refetch) -> ShardRecord | Stopped:
        start_time = time.time()
        rows = read_rows(self._job.root, item.shard).drop_columns(PLACE_SCHEMA.names)
        reasons = rows["error_message"].to_pylist()
        table = read_slice(self._job.root, item.part)
        expected = expected_hashes(table)
        urls = rows["url"].to_pylist()
        wanted = [
            (place, urls[place]) for place, why in enumerate(reasons) if why and may_pass(why)
        ]
        with Spool.opened() as spool:
            try:
                found = self._downloader.fetch(wanted, expected, spool) if wanted else {}
            except StopError as error:
                return error.stopped
            changed = {p: new for p, new in found.items() if new.error_message != reasons[p]}
            shard = item.shard
            if changed:
                shard, reasons = self._write(item, rows, table, changed, spool, start_time)
        record = record_of(shard, (reason or "success" for reason in reasons))
        write_record(self._job.root, record)
        return record

    def _write(
        self,
        item: Refetch,
        rows: pa.Table,
        table: pa.Table,
        changed: Mapping[int, RowOutcome],
        spool: Spool,
        start_time: float,
    ) -> tuple[Shard, list[str | None]]:
        job = self._job
        rows = redact_refused(_updated(rows, changed, job.compute_hash))
        reasons = rows["error_message"].to_pylist()
        pairs = zip(rows["status"].to_pylist(), reasons, strict=True)
        outcomes = [
            changed.get(place, RowOutcome(status, reason))
            for place, (status, reason) in enumerate(pairs)
        ]
        extension = job.decode.pixels.encode_format
        quarantine = storage.join(job.shards_root, "quarantine", f"retry-{item.corpus_digest}")
        write_quarantine(quarantine, item.name, table, rows, outcomes, spool, extension)
        kept = iter_samples(job.root, item.shard)
        new = samples(rows, outcomes, spool, extension)
        shard = write_shard(
            job.shards_root,
            item.name,
            heapq.merge(kept, new, key=lambda sample: sample.key),
            rows,
            statistics(outcomes, start_time),
        )
        return shard, reasons


def _updated(rows: pa.Table, changed: Mapping[int, RowOutcome], compute_hash: str) -> pa.Table:
    attributes = {field.name: field.name for field in FETCH_SCHEMA}
    if compute_hash in rows.column_names and compute_hash not in attributes:
        attributes[compute_hash] = "other_hash"
    for name, attribute in attributes.items():
        values = rows[name].to_pylist()
        for place, outcome in changed.items():
            values[place] = getattr(outcome, attribute)
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    return rows
