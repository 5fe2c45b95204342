"""What one download worker does: a slice of the list -> one published shard and its record.

Threads fetch and resize; the order of arrival is undone before anything is written, so the same
answers give the same bytes. Pictures wait for their turn in a temporary file, not in memory.
Reads a slice, writes the shard in img2dataset's layout and vocabulary.
"""

import hashlib
import io
import json
import logging
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import exifread
import pyarrow as pa

from pipeline.corpus import ROW_SCHEMA, SUCCESS, Sample, write_shard
from pipeline.fetch import Failure, Fetcher, FetchSettings
from pipeline.pixels import PictureResizer, PixelSettings, Rejected
from pipeline.worklist import DUPLICATE, ShardRecord, Slice, read_slice, write_record

FAILED_TO_DOWNLOAD = "failed_to_download"
FAILED_TO_RESIZE = "failed_to_resize"

NUM_DECODING = 2
"""Pictures decoded at once in a worker. One core is kept busy by that; each may take the memory of
`max_image_area`, which as many as there are threads could not have."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What all the slices of a list have in common."""

    root: str
    rows_a_slice: int
    thread_count: int
    extract_exif: bool
    fetch: FetchSettings
    pixels: PixelSettings


@dataclass(frozen=True)
class _Answer:
    """A row, and what fetching and resizing made of it."""

    row: Row
    image: bytes | None


class ShardDownloader:
    """Made once a worker process: connections, threads and the resizer outlive a slice."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._fetcher = Fetcher(job.fetch, num_connections=job.thread_count)
        self._resize = PictureResizer(job.pixels)
        # Imported here, for it takes seconds: img2dataset's package imports all that it has.
        from img2dataset.downloader import compute_key

        self._compute_key: Callable[[int, int, int, int], str] = compute_key
        self._decoding = threading.Semaphore(NUM_DECODING)
        self._threads = ThreadPoolExecutor(job.thread_count, thread_name_prefix="fetch")
        # It warns of every picture that has no EXIF.
        logging.getLogger("exifread").setLevel(logging.CRITICAL)

    def __call__(self, part: Slice) -> ShardRecord:
        start_time = time.time()
        table = read_slice(self._job.root, part)
        rows: list[Row] = []
        with tempfile.TemporaryFile(prefix="carrara-") as spool:
            lengths = []
            for answer in self._answers(table, part):
                rows.append(answer.row)
                if answer.image is not None:
                    lengths.append(spool.write(answer.image))
            spool.seek(0)
            counts = Counter(row["error_message"] or SUCCESS for row in rows)
            shard = write_shard(
                self._job.root,
                part.name,
                self._samples(rows, lengths, spool),
                pa.Table.from_pylist(rows, _row_schema(table)),
                _stats(rows, counts, start_time),
            )
        record = ShardRecord(shard=shard, counts=dict(sorted(counts.items())))
        write_record(self._job.root, record)
        return record

    def _answers(self, table: pa.Table, part: Slice) -> Iterator[_Answer]:
        duplicates = set(part.duplicates)
        oom_a_slice = len(str(self._job.rows_a_slice - 1)) if self._job.rows_a_slice > 1 else 0

        def answer(place: int) -> _Answer:
            row: Row = dict.fromkeys(ROW_SCHEMA.names) | table.slice(place, 1).to_pylist()[0]
            row["key"] = self._compute_key(place, part.index, oom_a_slice, len(part.name))
            fault = row.pop("fault") or (DUPLICATE if place in duplicates else None)
            if fault is not None:
                return _failed(row, FAILED_TO_DOWNLOAD, fault)
            return self._download(row)

        window = 2 * self._job.thread_count
        return in_order(self._threads, answer, range(part.num_rows), window)

    def _download(self, row: Row) -> _Answer:
        fetched = self._fetcher.fetch(row["url"])
        if isinstance(fetched, Failure):
            return _failed(row, FAILED_TO_DOWNLOAD, fetched.reason)
        with self._decoding:
            picture = self._resize(fetched.data)
        row["sha256"] = hashlib.sha256(fetched.data).hexdigest()
        if isinstance(picture, Rejected):
            return _failed(row, FAILED_TO_RESIZE, picture.reason)
        row["status"] = SUCCESS
        row["width"], row["height"] = picture.width, picture.height
        row["original_width"] = picture.original_width
        row["original_height"] = picture.original_height
        if self._job.extract_exif:
            row["exif"] = _exif(fetched.data)
        return _Answer(row, picture.data)

    def _samples(self, rows: list[Row], lengths: list[int], spool: BinaryIO) -> Iterator[Sample]:
        extension = self._job.pixels.encode_format
        kept = (row for row in rows if row["status"] == SUCCESS)
        for row, length in zip(kept, lengths, strict=True):
            image = spool.read(length)
            yield Sample(row["key"], row["uid"], row["caption"], image, extension, row)


def in_order(
    threads: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    window: int,
) -> Iterator[Result]:
    """`map` over threads that runs at most `window` items ahead of what has been taken."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _failed(row: Row, status: str, reason: str) -> _Answer:
    return _Answer(row | {"status": status, "error_message": reason}, None)


def _row_schema(table: pa.Table) -> pa.Schema:
    additional = [field for field in table.schema if field.name not in {*ROW_SCHEMA.names, "fault"}]
    return pa.schema([*ROW_SCHEMA, *additional])


def _exif(data: bytes) -> str | None:
    """As img2dataset stores it: a JSON object of exifread's names and printable values."""
    try:
        tags = exifread.process_file(io.BytesIO(data), details=False)
        return json.dumps({name: str(value).strip() for name, value in tags.items()})
    except Exception:
        # A parser of hostile bytes with no errors of its own: whatever it trips over, the picture
        # is decoded and whole, and only this column is lost.
        return None


def _stats(rows: list[Row], counts: Counter[str], start_time: float) -> dict[str, Any]:
    """img2dataset's _stats.json. Its times make it the one file that differs from run to run."""
    statuses = Counter(row["status"] for row in rows)
    end_time = time.time()
    return {
        "count": len(rows),
        "successes": statuses[SUCCESS],
        FAILED_TO_DOWNLOAD: statuses[FAILED_TO_DOWNLOAD],
        FAILED_TO_RESIZE: statuses[FAILED_TO_RESIZE],
        "duration": end_time - start_time,
        "start_time": start_time,
        "end_time": end_time,
        "status_dict": dict(counts.most_common()),
    }
