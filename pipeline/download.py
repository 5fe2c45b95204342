"""A list of URLs and captions -> a corpus of WebDataset shards, in img2dataset's layout.

    carrara download pairs.parquet ROOT --url-column url --caption-column caption --image-size 256

Reads parquet, csv, tsv, json or jsonl. Writes ROOT/shards/00000.tar .parquet _stats.json and, last,
ROOT/manifest.json. Every row of the list is accounted for: in the tar, or in the parquet with the
reason why not. Safe to kill: the same command goes on where it stopped, and the same answers from
the network give the same bytes.
"""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from infra import storage
from infra.cluster import Outcome, Workers, map_on_workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConflictError, DamagedError, ShortfallError
from infra.stamp import differences
from infra.summary import Stopwatch, Summary
from pipeline import worklist
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    manifest_url,
    read_manifest,
    write_manifest,
)
from pipeline.fetch import FetchSettings
from pipeline.pairs import PairList, open_pairs
from pipeline.pixels import PixelSettings
from pipeline.worklist import Plan, ShardRecord, Slice

if TYPE_CHECKING:
    from pipeline.shard_download import ShardDownloader

DERIVED = ("shards", "columns", "embeddings", "index", "selections")
"""What goes with a corpus that is overwritten. Tombstones stay: a takedown is for good."""

NUM_NAMED = 5
"""Failed shards or reasons that a message spells out."""


class Config(PixelSettings, FetchSettings, StageConfig):
    """img2dataset's options by its names, where it has them."""

    url_list: Annotated[Place, POSITIONAL]
    """The list: a parquet, csv, tsv, json or jsonl file (or .gz of it), or a folder of them."""
    root: Annotated[Place, POSITIONAL]
    """Where the corpus goes: a folder or an fsspec URL."""
    url_column: str = "url"
    """The list's column of URLs."""
    caption_column: str = "caption"
    """The list's column of captions."""
    save_additional_columns: tuple[str, ...] = ()
    """Further columns of the list to keep with each sample."""
    number_sample_per_shard: int = Field(default=10_000, ge=1)
    """Rows of the list that make one shard."""
    extract_exif: bool = True
    """Keep what the picture's EXIF says, as JSON."""
    compute_hash: Literal["sha256"] = "sha256"
    """Of the bytes as fetched; kept with each sample."""
    thread_count: Annotated[int, EXECUTION_ONLY, Field(ge=1)] = 64
    """Threads that fetch and resize in each worker."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace another list's corpus in ROOT, and all that was computed from it."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """Where it runs and how much of it at once."""

    @field_validator("save_additional_columns")
    @classmethod
    def _check_reserved(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        reserved = sorted({*ROW_SCHEMA.names, "fault"} & set(names))
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: the corpus has columns of that name already")
        return names


def run(config: Config) -> Summary:
    with Stopwatch() as watch:
        pairs = open_pairs(
            config.url_list,
            config.url_column,
            config.caption_column,
            list(config.save_additional_columns),
        )
        input_digest = pairs.digest()
        manifest = _finished(config, input_digest)
        if manifest is None:
            manifest = _download(config, pairs, input_digest)
    num_rows = sum(manifest.counts.values())
    return Summary(
        stage="download",
        num_in=num_rows,
        num_out=manifest.num_samples,
        unit="rows",
        counts=manifest.counts,
        seconds=watch.seconds,
        outputs={"corpus": config.root, "manifest": manifest_url(config.root)},
        details={
            "corpus_digest": manifest.digest,
            "num_shards": len(manifest.shards),
            "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        },
    )


def _finished(config: Config, input_digest: str) -> Manifest | None:
    """The manifest of this very corpus if it is complete; raises where ROOT holds another."""
    root = config.root
    manifest = _read_held_manifest(config)
    held = manifest or worklist.read_plan(root)
    if held and _is_of(held, config, input_digest):
        if manifest is None or len(worklist.whole_shards(root, manifest.shards)) < len(
            manifest.shards
        ):
            return None
        storage.remove(worklist.folder_url(root))
        return manifest
    has_shards = bool(storage.list_names(storage.join(root, "shards")))
    if (held or has_shards) and not config.overwrite:
        what = _difference(held, config, input_digest) if held else "shards of unknown origin"
        raise ConflictError(
            f"{root}: holds {what}; choose another ROOT or replace what is there with --overwrite"
        )
    return None


def _read_held_manifest(config: Config) -> Manifest | None:
    if not storage.exists(manifest_url(config.root)):
        return None
    try:
        return read_manifest(config.root)
    except DamagedError:
        if config.overwrite:
            return None
        raise


def _is_of(held: Manifest | Plan, config: Config, input_digest: str) -> bool:
    return (held.input_digest, held.config_digest) == (input_digest, config.digest())


def _difference(held: Manifest | Plan, config: Config, input_digest: str) -> str:
    if held.input_digest != input_digest:
        return (
            f"the corpus of another list (digest {held.input_digest}, that of {config.url_list} is "
            f"{input_digest})"
        )
    changed = "; ".join(differences(held.config, config.identity()))
    return f"this list's corpus with another configuration ({changed})"


def _download(config: Config, pairs: PairList, input_digest: str) -> Manifest:
    plan = _plan(config, pairs, input_digest)
    records = worklist.read_records(config.root)
    slices = worklist.slices(config.root, plan)
    failed: list[Outcome[Slice, ShardRecord]] = []
    for outcome in map_on_workers(
        partial(_make_worker, config),
        [part for part in slices if part.name not in records],
        workers=config.workers,
        description="download",
        unit="rows",
        size=lambda part: part.num_rows,
    ):
        if outcome.result is None:
            failed.append(outcome)
        else:
            records[outcome.item.name] = outcome.result
    _check_complete(config, len(slices), failed)
    counts = sum((Counter(record.counts) for record in records.values()), Counter[str]())
    _check_any_success(config, plan, counts)
    manifest = Manifest(
        stage="download",
        config=config.identity(),
        config_digest=config.digest(),
        input_digest=input_digest,
        shards=[records[name].shard for name in sorted(records)],
        counts=dict(counts.most_common()),
    )
    write_manifest(config.root, manifest)
    storage.remove(worklist.folder_url(config.root))
    return manifest


def _plan(config: Config, pairs: PairList, input_digest: str) -> Plan:
    """The plan of an interrupted run of the same, else a new one.

    What a new one leaves of the place: nothing of another corpus; of the same one, finished once,
    the shards that it still has.
    """
    root = config.root
    plan = worklist.read_plan(root)
    if plan is None or not _is_of(plan, config, input_digest):
        plan = _new_plan(config, pairs, input_digest)
        manifest = _read_held_manifest(config)
        # The list has been read to its end and can be used: only now is what it replaces removed.
        if manifest and _is_of(manifest, config, input_digest):
            for shard in worklist.whole_shards(root, manifest.shards):
                worklist.write_record(root, worklist.recount(root, shard))
        else:
            storage.remove(manifest_url(root))
            for folder in DERIVED:
                storage.remove(storage.join(root, folder))
        worklist.write_plan(root, plan)
    storage.remove(manifest_url(root))
    return plan


def _new_plan(config: Config, pairs: PairList, input_digest: str) -> Plan:
    storage.remove(worklist.folder_url(config.root))
    rows_a_slice = config.number_sample_per_shard
    return Plan(
        input_digest=input_digest,
        config=config.identity(),
        config_digest=config.digest(),
        num_rows=worklist.write_slices(config.root, pairs, rows_a_slice),
        rows_a_slice=rows_a_slice,
    )


def _make_worker(config: Config) -> "ShardDownloader":
    from pipeline.shard_download import Job, ShardDownloader

    job = Job(
        root=config.root,
        rows_a_slice=config.number_sample_per_shard,
        thread_count=config.thread_count,
        extract_exif=config.extract_exif,
        fetch=config,
        pixels=config,
    )
    return ShardDownloader(job)


def _check_complete(
    config: Config, num_slices: int, failed: list[Outcome[Slice, ShardRecord]]
) -> None:
    if failed:
        named = sorted(f"{outcome.item.name} ({outcome.error})" for outcome in failed)
        more = f" and {len(named) - NUM_NAMED} more" if len(named) > NUM_NAMED else ""
        raise ShortfallError(
            f"{config.root}: {len(failed)} of {num_slices} shards failed: "
            f"{', '.join(named[:NUM_NAMED])}{more}; run the command again to make them"
        )


def _check_any_success(config: Config, plan: Plan, counts: Counter[str]) -> None:
    if not counts[SUCCESS]:
        # Nothing of this is worth keeping: the same command starts anew.
        storage.remove(worklist.folder_url(config.root))
        storage.remove(storage.join(config.root, "shards"))
        reasons = ", ".join(f"{name} ({num})" for name, num in counts.most_common(NUM_NAMED))
        advice = (
            "name the hosts that may be at private addresses with --allow-hosts"
            if counts["refused address"]
            else "see that the network is there and that the columns hold what their names say"
        )
        raise ShortfallError(
            f"list {config.url_list}: none of its {plan.num_rows} rows gave a picture: {reasons}; "
            f"{advice}"
        )
