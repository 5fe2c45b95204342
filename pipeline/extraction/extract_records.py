"""What `carrara extract` notes of itself, in ROOT/_extract/.

archives/000000.json   an archive that was read, and what it gave
spool/                 its pairs, until they are merged
manifest.json          what was written from what; last
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.records import read_record

WORK = "_extract"
"""Readers of a folder of parquet files pass over what begins so: Arrow, pandas, Spark."""

PAIRS = "pairs"
"""Pictures that became pairs; and how the files of them are called."""


class Run(BaseModel):
    """A file of distinct pairs, sorted."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_rows: int


class ArchiveRecord(BaseModel):
    """What one archive gave."""

    model_config = ConfigDict(frozen=True)

    archive: str
    size_bytes: int
    damage: str | None
    """Why it was not read to its end."""
    runs: tuple[Run, ...] = ()
    images: dict[str, int] = {}
    """Pictures by what became of them; `pairs` with duplicates."""
    records: dict[str, int] = {}
    """Records, pages with pictures, and records of no use by reason."""


class ExtractManifest(BaseModel):
    """What an extraction wrote."""

    model_config = ConfigDict(frozen=True)

    config: dict[str, Any]
    config_digest: str
    input_digest: str
    num_archives: int
    damaged: list[tuple[str, str]]
    """(archive, why)."""
    files: dict[str, tuple[int, str]]
    """(pairs, sha256) by name."""
    images: dict[str, int]
    records: dict[str, int]


def work_url(root: str, *parts: str) -> str:
    return storage.join(root, WORK, *parts)


def spool_url(root: str, *parts: str) -> str:
    return work_url(root, "spool", *parts)


def record_url(root: str, key: str) -> str:
    return work_url(root, "archives", f"{key}.json")


def manifest_url(root: str) -> str:
    return work_url(root, "manifest.json")


def read_manifest(root: str) -> ExtractManifest | None:
    """None where there is none, or not all of its files."""
    url = manifest_url(root)
    manifest = read_record(url, ExtractManifest) if storage.exists(url) else None
    there = set(storage.list_names(root))
    return manifest if manifest and there.issuperset(manifest.files) else None
