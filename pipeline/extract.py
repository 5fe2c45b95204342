"""Web archives -> pairs of image URL and caption: what `carrara download` reads.

    carrara extract wat.paths.gz OUT --base https://data.commoncrawl.org

Reads   WARC and WAT files, plain or .gz: files, folders of them, lists of their paths
Writes  OUT/pairs-00000.parquet ...   url, caption, their language, the page and its WARC record
        OUT/_extract/                 records of the archives read, and manifest.json; last

Every picture with an alternative text that is long enough, each pair once. An archive is read once:
the same command goes on where it stopped, and the same archives give the same bytes whoever read
them when. What is damaged is named, and kept up to there.
"""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ConflictError, ShortfallError
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.extraction.archives import Archive, find_archives
from pipeline.extraction.extract_records import (
    PAIRS,
    ArchiveRecord,
    ExtractManifest,
    manifest_url,
    read_manifest,
    record_url,
    spool_url,
    work_url,
)
from pipeline.extraction.pair_files import write_pairs

if TYPE_CHECKING:
    from pipeline.extraction.archive_reader import ArchiveReader

NUM_NAMED = 5
"""Damaged archives that a message spells out."""

MIN_CAPTION_CHARACTERS = 5
"""LAION-5B (Schuhmann et al. 2022, section 3.1) drops captions of fewer."""

MAX_PAGE_BYTES = 1 << 20
"""Where Common Crawl itself cut pages until 2025; it cuts them at 5 MiB since."""


class Config(StageConfig):
    archives: Annotated[tuple[Place, ...], POSITIONAL, EXECUTION_ONLY] = Field(min_length=1)
    """WARC or WAT files (.warc, .wat, also with .gz), folders of them, or lists of their paths
    (.paths, .txt, also with .gz)."""
    root: Annotated[Place, POSITIONAL]
    """Where the pairs go: a folder or an fsspec URL."""
    base: Annotated[Place | None, EXECUTION_ONLY] = None
    """What relative paths in a list are relative to, as https://data.commoncrawl.org; none: its
    folder."""
    min_caption_characters: int = Field(default=MIN_CAPTION_CHARACTERS, ge=1)
    """Captions of fewer are left out."""
    max_page_bytes: int = Field(default=MAX_PAGE_BYTES, ge=1)
    """A longer page is read up to there."""
    rows_per_file: int = Field(default=250_000, ge=1)
    """Pairs in a file, about; memory follows from it."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """Where it runs and how much of it at once."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace what was extracted into ROOT from other archives or with other settings."""

    @model_validator(mode="before")
    @classmethod
    def _last_is_root(cls, values: Any) -> Any:
        """As of `cp`: ARCHIVES take all that is given by its place, the last of it is ROOT."""
        if isinstance(values, dict) and "root" not in values:
            *archives, last = values.get("archives") or [None]
            if archives:
                return values | {"archives": archives, "root": last}
        return values


def run(config: Config) -> Summary:
    """Raises ShortfallError naming the archives that were not read to their end."""
    with Stopwatch() as watch:
        archives = find_archives(config.archives, config.base)
        stamp = Stamp.of("extract", config, digest_of([one.name for one in archives]))
        _claim(config, stamp)
        manifest = _extract(config, archives, stamp)
    _check_whole(config, manifest)
    return Summary(
        stage="extract",
        num_in=sum(manifest.images.values()),
        num_out=sum(num for num, _ in manifest.files.values()),
        unit="images",
        counts=manifest.images,
        seconds=watch.seconds,
        outputs={"pairs": config.root},
        details={"archives": len(archives), "files": len(manifest.files), **manifest.records},
    )


def _claim(config: Config, stamp: Stamp) -> None:
    """Refuses a ROOT with files of another origin: `download` reads all of a folder as one list."""
    work = work_url(config.root)
    there = storage.list_names(config.root)
    if there and not storage.exists(storage.join(work, "stamp.json")):
        raise ConflictError(
            f"{config.root}: holds {there[0]!r}, which `carrara extract` did not make; expected an "
            "empty place; choose another ROOT"
        )
    claim(work, stamp, overwrite=config.overwrite)


def _extract(config: Config, archives: list[Archive], stamp: Stamp) -> ExtractManifest:
    records = _read_records(config, archives)
    held = read_manifest(config.root)
    if held and not _unread(archives, records):
        return held
    there = set(storage.list_names(spool_url(config.root)))
    records = {i: one for i, one in records.items() if there.issuperset(r.name for r in one.runs)}
    _read(config, _unread(archives, records), records)
    in_order = [records[archive.index] for archive in archives]
    runs = tuple(run for record in in_order for run in record.runs)
    manifest = _manifest(stamp, in_order, write_pairs(config, runs))
    storage.sweep(config.root)
    storage.publish_text(manifest_url(config.root), manifest.model_dump_json(indent=2) + "\n")
    if not manifest.damaged:  # else the next run needs what the others gave
        storage.remove(spool_url(config.root))
    return manifest


def _read_records(config: Config, archives: list[Archive]) -> dict[int, ArchiveRecord]:
    """Of the archives that were read before, as they are now."""
    there = set(storage.list_names(work_url(config.root, "archives")))
    found = {}
    for archive in archives:
        if f"{archive.key}.json" in there:
            record = read_record(record_url(config.root, archive.key), ArchiveRecord)
            if archive.size_bytes in (None, record.size_bytes):
                found[archive.index] = record
    return found


def _unread(archives: list[Archive], records: dict[int, ArchiveRecord]) -> list[Archive]:
    """A damaged one may have been repaired since."""
    return [one for one in archives if one.index not in records or records[one.index].damage]


def _read(config: Config, archives: list[Archive], records: dict[int, ArchiveRecord]) -> None:
    for outcome in map_on_workers(
        partial(_make_reader, config),
        archives,
        workers=config.workers,
        description="extract",
        unit="archives",
    ):
        archive = outcome.item
        records[archive.index] = outcome.result or ArchiveRecord(
            archive=archive.name, size_bytes=0, damage=outcome.error
        )


def _manifest(
    stamp: Stamp, records: list[ArchiveRecord], files: dict[str, tuple[int, str]]
) -> ExtractManifest:
    images = sum((Counter(record.images) for record in records), Counter[str]())
    num_pairs = sum(num for num, _ in files.values())
    num_duplicates = images.pop(PAIRS, 0) - num_pairs
    counted = sum((Counter(record.records) for record in records), Counter[str]())
    return ExtractManifest(
        config=stamp.config,
        config_digest=stamp.config_digest,
        input_digest=stamp.input_digest,
        num_archives=len(records),
        damaged=[(record.archive, record.damage) for record in records if record.damage],
        files=files,
        images={PAIRS: num_pairs, "duplicate": num_duplicates} | dict(sorted(images.items())),
        records=dict(sorted(counted.items())),
    )


def _check_whole(config: Config, manifest: ExtractManifest) -> None:
    if manifest.damaged:
        named = [f"{name}: {damage}" for name, damage in manifest.damaged]
        more = f"; and {len(named) - NUM_NAMED} more" if len(named) > NUM_NAMED else ""
        num_pairs = manifest.images[PAIRS]
        raise ShortfallError(
            f"extract {config.root}: {len(named)} of {manifest.num_archives} archives were not "
            f"read to their end ({'; '.join(named[:NUM_NAMED])}{more}); the {num_pairs:,} pairs "
            "of what could be read are there; mend these and run the command again to read only "
            "them"
        )


def _make_reader(config: Config) -> "ArchiveReader":
    from pipeline.extraction.archive_reader import ArchiveReader

    return ArchiveReader(config.root, config.min_caption_characters, config.max_page_bytes)
