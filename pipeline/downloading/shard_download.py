"""What one download worker does: a slice of the list -> one published shard and its record.

One thread fetches, decoder processes decode, and pictures wait for the rest of their shard in a
temporary file, not in memory; the order of arrival is undone when the shard is written, so the same
answers give the same bytes. Reads a slice, writes the shard in img2dataset's layout and vocabulary.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa

from infra import storage
from infra.errors import ShortfallError
from pipeline.corpus import SUCCESS, write_shard
from pipeline.downloading.claims import Claim
from pipeline.downloading.decoder import DecodeJob
from pipeline.downloading.decoder_process import DecodedPicture
from pipeline.downloading.decoding import Decoders
from pipeline.downloading.quarantine import HASH_MISMATCH, write_quarantine
from pipeline.downloading.shard_rows import (
    FAILED_TO_RESIZE,
    RowOutcome,
    failed,
    rows_table,
    shard_key,
    statistics,
)
from pipeline.downloading.spool import Spool
from pipeline.downloading.worklist import (
    DUPLICATE,
    ShardRecord,
    Slice,
    read_slice,
    record_of,
    write_record,
)
from pipeline.fetching.fetch import Failure, Fetcher, FetchSettings
from pipeline.fetching.preflight import preflight
from pipeline.sample import Sample
from pipeline.takedown.blocklists import load_blocklist
from pipeline.takedown.tombstones import Tombstones, read_tombstones

ON_A_BLOCKLIST = "on a blocklist"

NUM_TRIED = 1000
"""Rows that a worker tries before it says that too few of them give a picture."""


@dataclass(frozen=True)
class Job:
    """What all the slices of a list have in common."""

    root: str
    shards_root: str
    """Where shards are written: `root`, or where they are staged."""
    rows_a_slice: int
    thread_count: int
    num_decoders: int
    max_waiting_bytes: int
    compute_hash: str
    verify_hash: str | None
    """Which hash the list's `expected_hash` is."""
    blocklists: tuple[str, ...]
    """By reference: files of hashes, or module:Class."""
    has_preflight: bool
    """Whether to ask first if there is a network at all."""
    min_success_rate: float
    fetch: FetchSettings
    decode: DecodeJob


@dataclass(frozen=True)
class Wanted:
    """A row to fetch."""

    place: int
    uid: str
    url: str


@dataclass(frozen=True)
class Stopped:
    """A worker's word that going on is of no use, in place of a record."""

    reasons: Mapping[str, int]
    """Rows tried, by what became of them."""
    message: str | None = None
    """Why none was tried."""


class StopError(Exception):
    """Ends a slice from within."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__(str(stopped))
        self.stopped = stopped


class ShardDownloader:
    """Made once a worker process: connections and decoders outlive a slice."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._policy = _prefer_throughput()  # decoders inherit it
        self._reasons: Counter[str] = Counter()
        self._is_network_there = False
        self._fetcher = Fetcher(job.fetch, num_connections=job.thread_count)
        self._blocklists = [load_blocklist(reference) for reference in job.blocklists]
        self._decoders = _decoders(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoders.close()
        self._fetcher.close()
        if self._policy is not None:
            os.sched_setscheduler(0, self._policy, os.sched_param(0))

    def __call__(self, part: Slice) -> ShardRecord | Stopped:
        start_time = time.time()
        job = self._job
        claim = Claim.of(job.root, part.name)
        table = read_slice(job.root, part)
        with Spool.opened() as spool:
            try:
                outcomes = self._outcomes(table, set(part.duplicates.tolist()), spool)
            except StopError as error:
                return error.stopped
            keys = [
                shard_key(place, part.index, job.rows_a_slice, part.num_digits)
                for place in range(len(outcomes))
            ]
            rows = rows_table(table, keys, outcomes, job.compute_hash)
            claim.check()
            extension = job.decode.pixels.encode_format
            quarantine = storage.join(job.shards_root, "quarantine")
            write_quarantine(quarantine, part.name, table, rows, outcomes, spool, extension)
            shard = write_shard(
                job.shards_root,
                part.name,
                samples(rows, outcomes, spool, extension),
                rows,
                statistics(outcomes, start_time),
            )
        record = record_of(shard, (outcome.reason for outcome in outcomes))
        write_record(job.root, record)
        return record

    def fetch(
        self, rows: Sequence[Wanted], expected: Mapping[int, str], spool: Spool
    ) -> dict[int, RowOutcome]:
        """What becomes of the rows, their pictures appended to the spool; raises StopError.

        What was taken down is not asked for.
        """
        tombstones = read_tombstones(self._job.root)
        reasons = {row.place: tombstones.reason(uid=row.uid, url=row.url) for row in rows}
        outcomes = {place: failed(reason) for place, reason in reasons.items() if reason}
        if tombstones.has_pictures and not self._job.decode.picture_hash:
            self._begin_to_hash()
        urls = [(row.place, row.url) for row in rows if row.place not in outcomes]
        self.check_network(url for _, url in urls)
        with (
            closing(self._fetcher.fetch_beside(urls, self._decoders.fileno())) as answers,
            closing(self._decoders.decode_all(answers)) as decoded,
        ):
            for place, answer in decoded:
                outcome = (
                    failed(answer.reason)
                    if isinstance(answer, Failure)
                    else self._judge(answer, expected.get(place), tombstones, spool)
                )
                outcomes[place] = outcome
                self._count(outcome)
        return outcomes

    def _outcomes(self, table: pa.Table, duplicates: set[int], spool: Spool) -> list[RowOutcome]:
        uids, urls = table["uid"].to_pylist(), table["url"].to_pylist()
        reasons = [
            fault or (DUPLICATE if place in duplicates else None)
            for place, fault in enumerate(table["fault"].to_pylist())
        ]
        outcomes = {place: failed(reason) for place, reason in enumerate(reasons) if reason}
        wanted = [
            Wanted(place, uids[place], urls[place])
            for place, reason in enumerate(reasons)
            if not reason
        ]
        outcomes |= self.fetch(wanted, expected_hashes(table), spool)
        return [outcomes[place] for place in range(table.num_rows)]

    def _judge(
        self,
        picture: DecodedPicture,
        expected: str | None,
        tombstones: Tombstones,
        spool: Spool,
    ) -> RowOutcome:
        facts = picture.facts
        taken_down = tombstones.reason(sha256=facts.sha256)
        bits = bytes.fromhex(facts.picture_hash) if facts.picture_hash else None
        if bits is not None:
            taken_down = taken_down or tombstones.of_picture(bits)
        if taken_down:
            return failed(taken_down, sha256=facts.sha256)
        if any(
            one.matches(facts.sha256, facts.hashes.get("md5"), bits) for one in self._blocklists
        ):
            return failed(ON_A_BLOCKLIST, sha256=facts.sha256)
        outcome = self._keep(picture, spool)
        if expected is not None and self._job.verify_hash is not None:
            found = facts.hashes.get(self._job.verify_hash)
            if found != expected.strip().lower():
                return replace(failed(HASH_MISMATCH, sha256=facts.sha256), quarantined=outcome)
        return outcome

    def _keep(self, picture: DecodedPicture, spool: Spool) -> RowOutcome:
        facts = picture.facts
        if facts.reason is not None:
            return failed(facts.reason, FAILED_TO_RESIZE, facts.sha256)
        return RowOutcome(
            SUCCESS,
            width=facts.width,
            height=facts.height,
            original_width=facts.original_width,
            original_height=facts.original_height,
            exif=facts.exif,
            sha256=facts.sha256,
            other_hash=facts.hashes.get(self._job.compute_hash),
            picture_hash=facts.picture_hash,
            spooled=spool.append(picture.data),
        )

    def check_network(self, urls: Iterable[str]) -> None:
        """Once a worker, for as long as nobody was there; raises StopError."""
        if not self._is_network_there and self._job.has_preflight:
            try:
                preflight(urls, self._job.fetch)
            except ShortfallError as error:
                raise StopError(Stopped({}, str(error))) from error
            self._is_network_there = True

    def _begin_to_hash(self) -> None:
        """After a takedown by likeness that came while the download ran."""
        decode = self._job.decode.model_copy(update={"picture_hash": True})
        self._job = replace(self._job, decode=decode)
        self._decoders.close()
        self._decoders = _decoders(self._job)

    def _count(self, outcome: RowOutcome) -> None:
        self._reasons[outcome.reason] += 1
        num = self._reasons.total()
        if num % NUM_TRIED == 0 and self._reasons[SUCCESS] < self._job.min_success_rate * num:
            raise StopError(Stopped(dict(self._reasons)))


def _decoders(job: Job) -> Decoders:
    return Decoders(job.decode, job.num_decoders, job.max_waiting_bytes)


def _prefer_throughput() -> int | None:
    """For this thread and what it starts; returns the policy that it had, None where it stays.

    Fetching and decoding don't interrupt each other for a single picture any more: some 8%
    more pictures where all cores are busy.
    """
    if sys.platform != "linux":
        return None
    policy = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except PermissionError:  # a sandbox's word
        return None
    return policy


def expected_hashes(table: pa.Table) -> dict[int, str]:
    """By the row's place, where the list has one."""
    if "expected_hash" not in table.column_names:
        return {}
    hashes = table["expected_hash"].to_pylist()
    return {place: value for place, value in enumerate(hashes) if value is not None}


def samples(
    rows: pa.Table, outcomes: Sequence[RowOutcome], spool: Spool, extension: str
) -> Iterator[Sample]:
    """Those that were kept, in the rows' order."""
    kept = {number: outcome.spooled for number, outcome in enumerate(outcomes) if outcome.spooled}
    metadata = rows.take(pa.array(kept, pa.int64())).to_pylist()
    for row, place in zip(metadata, kept.values(), strict=True):
        yield Sample(row["key"], row["uid"], row["caption"], spool.read(place), extension, row)
