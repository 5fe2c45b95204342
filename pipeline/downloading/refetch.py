"""Rows of a finished corpus that failed for a reason that may pass, fetched once more.

    carrara download LIST ROOT --incremental-mode retry

Reads ROOT's shards and the list's slices. Stages anew those shards to which a picture came: what
they had, byte for byte, and the new pictures in their places. All others stay as they are: that a
row failed for another reason is not worth the scores and embeddings of the whole corpus.
"""

import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from pipeline.corpus import (
    PLACE_SCHEMA,
    SUCCESS,
    Shard,
    iter_samples,
    read_rows,
    write_shard,
)
from pipeline.downloading.claims import Claim
from pipeline.downloading.quarantine import write_quarantine
from pipeline.downloading.shard_download import (
    Job,
    ShardDownloader,
    StopError,
    Stopped,
    Wanted,
    expected_hashes,
    samples,
)
from pipeline.downloading.shard_rows import FETCH_SCHEMA, RowOutcome, statistics
from pipeline.downloading.spool import Spool
from pipeline.downloading.worklist import ShardRecord, Slice, read_slice, record_of, write_record
from pipeline.fetching.fetch_settings import may_pass
from pipeline.takedown.tombstones import TAKEN_DOWN, redact_refused


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

    def __init__(self, job: Job, reachable: Shard) -> None:
        """`reachable`: a shard of the corpus that has pictures, whose hosts have answered once."""
        self._job, self._reachable = job, reachable
        self._downloader = ShardDownloader(job)

    def __enter__(self) -> Self:
        self._downloader.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._downloader.__exit__(*error)

    def __call__(self, item: Refetch) -> ShardRecord | Stopped:
        start_time = time.time()
        claim = Claim.of(self._job.root, item.name)
        rows = read_rows(self._job.root, item.shard).drop_columns(PLACE_SCHEMA.names)
        reasons = rows["error_message"].to_pylist()
        table = read_slice(self._job.root, item.part)
        expected = expected_hashes(table)
        uids, urls = rows["uid"].to_pylist(), rows["url"].to_pylist()
        wanted = [
            Wanted(place, uids[place], urls[place])
            for place, why in enumerate(reasons)
            if why and may_pass(why)
        ]
        with Spool.opened() as spool:
            try:
                found = self._fetch(wanted, expected, spool) if wanted else {}
            except StopError as error:
                return error.stopped
            claim.check()
            shard = item.shard
            if _is_worth_writing(found.values()):
                shard, reasons = self._write(item, rows, table, found, spool, start_time)
        record = record_of(shard, (reason or "success" for reason in reasons))
        write_record(self._job.root, record)
        return record

    def _fetch(
        self, wanted: list[Wanted], expected: Mapping[int, str], spool: Spool
    ) -> dict[int, RowOutcome]:
        self._downloader.check_network(self._urls_that_answered())
        return self._downloader.fetch(wanted, expected, spool)

    def _urls_that_answered(self) -> Iterable[str]:
        """The rows to fetch may be of hosts that are gone for good. Read where they are needed."""
        rows = read_rows(self._job.root, self._reachable, ["url", "status"])
        yield from rows.filter(pc.equal(rows["status"], SUCCESS))["url"].to_pylist()

    def _write(
        self,
        item: Refetch,
        rows: pa.Table,
        table: pa.Table,
        found: Mapping[int, RowOutcome],
        spool: Spool,
        start_time: float,
    ) -> tuple[Shard, list[str | None]]:
        job = self._job
        rows = redact_refused(_updated(rows, found, job.compute_hash))
        reasons = rows["error_message"].to_pylist()
        pairs = zip(rows["status"].to_pylist(), reasons, strict=True)
        outcomes = [
            found.get(place, RowOutcome(status, reason))
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


def _is_worth_writing(found: Iterable[RowOutcome]) -> bool:
    """A picture came: for the corpus, or for people to look at; or a row is to be forgotten."""
    return any(
        outcome.status == SUCCESS or outcome.quarantined or outcome.reason == TAKEN_DOWN
        for outcome in found
    )


def _updated(rows: pa.Table, found: Mapping[int, RowOutcome], compute_hash: str) -> pa.Table:
    attributes = {field.name: field.name for field in FETCH_SCHEMA}
    if compute_hash in rows.column_names and compute_hash not in attributes:
        attributes[compute_hash] = "other_hash"
    for name, attribute in attributes.items():
        values = rows[name].to_pylist()
        for place, outcome in found.items():
            values[place] = getattr(outcome, attribute)
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    return rows
