"""What became of a shard's rows, as the tables and statistics that img2dataset's layout has.

Reads and writes no files.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.corpus import ROW_SCHEMA, SUCCESS
from pipeline.downloading.spool import Place
from pipeline.takedown.tombstones import redact_refused

FAILED_TO_DOWNLOAD = "failed_to_download"
FAILED_TO_RESIZE = "failed_to_resize"

FETCH_SCHEMA = pa.schema([ROW_SCHEMA.field(i) for i in range(4, len(ROW_SCHEMA))])
"""The columns that fetching and decoding fill in."""

LIST_COLUMNS = ("fault", "expected_hash", "expected_picture_hash")
"""Columns of a slice that are for the download alone."""


@dataclass(frozen=True)
class RowOutcome:
    """One row's share of FETCH_SCHEMA, and where its picture waits in the spool."""

    status: str
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None
    other_hash: str | None = None
    """Of the bytes as fetched, where another than sha256 was asked for too."""
    picture_hash: str | None = None
    """PDQ's, as hex, where it was needed."""
    spooled: Place | None = None
    """Offset and length."""
    quarantined: "RowOutcome | None" = None
    """What the row would have come to, had its bytes been the expected ones."""

    @property
    def reason(self) -> str:
        return self.error_message or SUCCESS


def failed(reason: str, status: str = FAILED_TO_DOWNLOAD, sha256: str | None = None) -> RowOutcome:
    return RowOutcome(status, error_message=reason, sha256=sha256)


def rows_table(
    table: pa.Table, keys: Sequence[str], outcomes: Sequence[RowOutcome], compute_hash: str
) -> pa.Table:
    """ROW_SCHEMA's columns, then another hash, then the list's additional columns."""
    columns = {"key": pa.array(keys, pa.string())}
    columns |= {name: table[name] for name in ("uid", "url", "caption")}
    for field in FETCH_SCHEMA:
        values = [getattr(outcome, field.name) for outcome in outcomes]
        columns[field.name] = pa.array(values, field.type)
    if compute_hash != "sha256":
        columns[compute_hash] = pa.array([outcome.other_hash for outcome in outcomes], pa.string())
    for name in table.column_names:
        if name not in columns and name not in LIST_COLUMNS:
            columns[name] = table[name]
    return redact_refused(pa.table(columns))


def statistics(outcomes: Sequence[RowOutcome], start_time: float) -> dict[str, Any]:
    """img2dataset's _stats.json. Its times make it the one file that differs from run to run."""
    statuses = Counter(outcome.status for outcome in outcomes)
    end_time = time.time()
    return {
        "count": len(outcomes),
        "successes": statuses[SUCCESS],
        FAILED_TO_DOWNLOAD: statuses[FAILED_TO_DOWNLOAD],
        FAILED_TO_RESIZE: statuses[FAILED_TO_RESIZE],
        "duration": end_time - start_time,
        "start_time": start_time,
        "end_time": end_time,
        "status_dict": dict(Counter(outcome.reason for outcome in outcomes).most_common()),
    }


def shard_key(place: int, shard_index: int, rows_a_shard: int, shard_digits: int) -> str:
    """img2dataset's: the shard's number, then the row's, as wide as the largest of them."""
    row_digits = len(str(rows_a_shard - 1)) if rows_a_shard > 1 else 0
    return f"{shard_index * 10**row_digits + place:0{shard_digits + row_digits}d}"
