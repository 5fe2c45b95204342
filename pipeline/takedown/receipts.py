"""What a takedown leaves as its proof, without what it took down.

Writes  ROOT/receipts/<time>.json            what was asked, what was found, what became of it
        ROOT/receipts/<time>.files.parquet   path, before, after: sha256 of every file
        ROOT/receipts/<time>.rows.parquet    shard, key, uid, found_by, status, error_message,
                                             kept_by, weights, width, height: the place that each
                                             forgotten row had, its size, the selections that kept
                                             it and with which weights: what a training run needs
                                             to leave it out and keep all others where they are
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.config import digest_of
from infra.records import read_record
from pipeline.takedown.tombstones import Kind

ROWS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("shard", "key", "uid", "found_by", "status", "error_message")]
    + [("kept_by", pa.list_(pa.string())), ("weights", pa.list_(pa.float32()))]
    + [("width", pa.int32()), ("height", pa.int32())]
)


class Asked(BaseModel):
    """A request; addresses by their digests, as the tombstones have them."""

    model_config = ConfigDict(frozen=True)

    note: str = ""
    stones: list[tuple[Kind, str, int | None]] = []
    """Kind, value and the distance of near copies."""
    blocklists: list[str] = []


class Change(BaseModel):
    model_config = ConfigDict(frozen=True)

    before: str | None
    after: str | None


class Receipt(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    time: str
    asked: list[Asked]
    tombstones_digest: str
    found: dict[str, int]
    """Rows of the corpus by what they were found by."""
    corpus_digest: Change
    num_samples_before: int
    num_samples_after: int
    shards: list[str]
    """Those that were rewritten."""
    files: dict[str, Change]
    """sha256 of every file that changed."""
    num_unchanged: int
    unchanged_digest: str
    """Over the paths and sha256 of all others."""
    removed: list[str]
    """What can be made again and was not worth keeping."""
    rebuilt: list[str]
    """Indices."""
    not_rebuilt: dict[str, str] = {}
    """Indices that are not whole any more, and why they were not built again."""
    not_reached: list[str]
    """What no command on ROOT can change."""


NOT_REACHED = [
    "the list that the corpus was downloaded from: its next download refuses these rows",
    "packed corpora that were not named with --also",
    "models trained on this corpus keep what they learned: `carrara why ROOT UID --run RUN` tells "
    "whether a run saw a sample, and how often",
    "copies and backups outside of this folder",
]


def receipt_url(root: str, name: str, suffix: str = ".json") -> str:
    return storage.join(root, "receipts", f"{name}{suffix}")


def receipt_names(root: str) -> list[str]:
    """Oldest first."""
    names = storage.list_names(storage.join(root, "receipts"))
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def read_receipts(root: str) -> list[Receipt]:
    """Oldest first."""
    return [read_record(receipt_url(root, name), Receipt) for name in receipt_names(root)]


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, Change]:
    """Of every file, changed or not, by path."""
    return {
        path: Change(before=before.get(path), after=after.get(path))
        for path in sorted(before.keys() | after.keys())
    }


def unchanged_digest(all_changes: dict[str, Change]) -> tuple[int, str]:
    same = {path: one.after for path, one in all_changes.items() if one.before == one.after}
    return len(same), digest_of(same)


def write_files_table(root: str, name: str, all_changes: dict[str, Change]) -> None:
    rows = [{"path": path, **one.model_dump()} for path, one in all_changes.items()]
    schema = pa.schema([(column, pa.string()) for column in ("path", "before", "after")])
    table = pa.Table.from_pylist(rows, schema)
    storage.publish_table(receipt_url(root, name, ".files.parquet"), table)


def rows_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), ROWS_SCHEMA)
