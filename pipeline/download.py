"""A list of URLs and captions -> a corpus of WebDataset shards, in img2dataset's layout.

    carrara download pairs.parquet ROOT --url-column url --caption-column caption --image-size 256

Reads parquet, csv, tsv, json, jsonl or txt. Writes ROOT/shards/00000.tar .parquet _stats.json and,
last, ROOT/manifest.json. Every row of the list is accounted for: in the tar, or in the parquet with
the reason why not. Safe to kill: the same command goes on where it stopped, and the same answers
from the network give the same bytes. What replaces shards (`--overwrite`, `--incremental-mode
retry`) is staged first: until it is whole, the corpus stays what it was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field, field_validator

from infra import storage
from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ShortfallError
from infra.summary import Stopwatch, Summary
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Extension,
    Manifest,
    list_shard_files,
    manifest_url,
    write_manifest,
)
from pipeline.downloading import worklist
from pipeline.downloading.decoding_settings import DecodingSettings
from pipeline.downloading.download_workers import (
    make_downloader,
    make_refetcher,
    run_workers,
    spelled,
)
from pipeline.downloading.held import extendable, finished, held_manifest, is_of, own_shards
from pipeline.downloading.pair_rows import PairColumns
from pipeline.downloading.pairs import ListFormat, PairList, open_pairs
from pipeline.downloading.worklist import Plan, PlanKind, ShardRecord, kept_uids
from pipeline.fetching.fetch_settings import FetchSettings
from pipeline.pixels.pixel_settings import PixelSettings
from pipeline.takedown.blocklist_names import BlocklistName, blocklist_digest

MANY = Parameter(consume_multiple=True)
"""On the command line: --blocklist hashes.txt my_module:MyList."""

DERIVED = ("columns", "embeddings", "index", "selections")
"""What goes with a corpus that is overwritten. Tombstones stay: a takedown is for good."""


class Config(PixelSettings, FetchSettings, DecodingSettings, StageConfig):
    """img2dataset's options by its names, where it has them."""

    url_list: Annotated[Place, POSITIONAL]
    """The list: a parquet, csv, tsv, json, jsonl or txt file (or its .gz), or a folder of them."""
    root: Annotated[Place, POSITIONAL]
    """Where the corpus goes: a folder or an fsspec URL."""
    input_format: Annotated[ListFormat | None, EXECUTION_ONLY] = None
    """What the list is; none: as its name says. In a folder, files of this kind are read."""
    url_column: str = "url"
    """The list's column of URLs."""
    caption_column: str = "caption"
    """The list's column of captions; "" where it has none, as a txt never has."""
    save_additional_columns: tuple[str, ...] = ()
    """Further columns of the list to keep with each sample."""
    number_sample_per_shard: int = Field(default=10_000, ge=1)
    """Rows of the list that make one shard."""
    oom_shard_count: int = Field(default=5, ge=1)
    """Digits of a shard's name."""
    extract_exif: bool = True
    """Keep what the picture's EXIF says, as JSON."""
    compute_hash: Literal["sha256", "md5", "sha512"] = "sha256"
    """Of the bytes as fetched; kept with each sample, beside sha256, which is always there."""
    verify_hash: tuple[str, Literal["md5", "sha1", "sha256", "sha512"]] | None = None
    """The list's column of hashes and their kind: bytes with another hash go to ROOT/quarantine."""
    verify_picture_hash: str | None = None
    """The list's column of PDQ hashes: tells how far a picture in quarantine is from its own."""
    blocklist: Annotated[tuple[BlocklistName, ...], MANY] = ()
    """Lists of hashes that no picture may have: files of them, or module:Class of your own."""
    min_success_rate: Annotated[float, EXECUTION_ONLY, Field(ge=0, le=1)] = 0.05
    """Stop where, after 1000 rows of a worker, a smaller share has given pictures, and at the start
    where not one host can be reached; fall short where of all rows a smaller one has; 0: never."""
    thread_count: Annotated[int, EXECUTION_ONLY, Field(ge=1)] = 64
    """Connections that each worker has open at once (img2dataset has a thread for each)."""
    incremental_mode: Annotated[
        Literal["incremental", "overwrite", "retry", "extend"], EXECUTION_ONLY
    ] = "incremental"
    """incremental: go on where a run stopped; overwrite: as --overwrite; retry: of a finished
    corpus, fetch the rows again that failed for a reason that may pass; extend: add the shards of
    this list to the finished corpus of another."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace another list's corpus in ROOT, and all that was computed from it."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """Where it runs and how much of it at once."""

    @field_validator("save_additional_columns")
    @classmethod
    def _check_reserved(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        reserved = sorted({*ROW_SCHEMA.names, *_RESERVED} & set(names))
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: the corpus has columns of that name already")
        return names

    def identity(self) -> dict[str, Any]:
        """With what blocklists hold, not where they are."""
        return super().identity() | {"blocklist": [blocklist_digest(one) for one in self.blocklist]}

    @property
    def overwrites(self) -> bool:
        return self.overwrite or self.incremental_mode == "overwrite"

    @property
    def columns(self) -> PairColumns:
        return PairColumns(
            self.url_column,
            self.caption_column,
            self.save_additional_columns,
            self.verify_hash[0] if self.verify_hash else None,
            self.verify_picture_hash,
        )


_RESERVED = (
    "fault",
    "expected_hash",
    "expected_picture_hash",
    "image_offset",
    "image_size",
    "md5",
    "sha512",
)


def run(config: Config) -> Summary:
    with Stopwatch() as watch:
        _check_blocklists(config)
        worklist.install(config.root, DERIVED)  # what a killed command had already completed
        pairs = open_pairs(config.url_list, config.columns, config.input_format)
        input_digest = pairs.digest()
        extended = _extended(config, input_digest)
        held = None if extended else finished(config, input_digest)
        if held is not None and config.incremental_mode == "retry":
            manifest = _refetch(config, pairs, held, input_digest)
        elif held is not None:
            storage.remove(worklist.folder_url(config.root))
            manifest = held
        else:
            manifest = _download(config, pairs, input_digest, extended)
    _check_success_rate(config, manifest)
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


def _extended(config: Config, input_digest: str) -> Manifest | None:
    is_asked_for = config.incremental_mode == "extend"
    return extendable(config, input_digest) if is_asked_for else None


def _check_blocklists(config: Config) -> None:
    """Here, where a mistake is one line, and not in each worker."""
    from pipeline.takedown.blocklists import load_blocklist

    for blocklist in config.blocklist:
        load_blocklist(blocklist)


def _download(
    config: Config, pairs: PairList, input_digest: str, extended: Manifest | None
) -> Manifest:
    plan = _plan(config, pairs, input_digest, extended)
    root = config.root
    records = worklist.read_records(root, plan)
    slices = worklist.slices(root, plan)
    records |= run_workers(config, partial(make_downloader, config, plan), slices, records)
    made = [records[part.name] for part in slices]
    _check_any_success(config, plan, _counts(made))
    if extended is not None:
        return _install(root, _joined(extended, input_digest, made))
    manifest = _manifest(config, input_digest, made)
    if plan.is_staged:
        storage.remove(storage.join(root, "quarantine"))
        return _install(root, manifest)
    write_manifest(root, manifest)
    storage.remove(worklist.folder_url(root))
    return manifest


def _joined(extended: Manifest, input_digest: str, made: Sequence[ShardRecord]) -> Manifest:
    counts = Counter(extended.counts) + _counts(made)
    extension = Extension(input_digest=input_digest, num_shards=len(made))
    return _changed(
        extended,
        shards=[*extended.shards, *(record.shard for record in made)],
        counts=dict(counts.most_common()),
        extensions=[*extended.extensions, extension],
    )


def _refetch(config: Config, pairs: PairList, held: Manifest, input_digest: str) -> Manifest:
    from pipeline.downloading.refetch import Refetch

    root = config.root
    own = own_shards(held, input_digest)
    plan = worklist.read_plan(root)
    if plan is None or plan.kind != "retry" or not is_of(plan, config, input_digest):
        plan = _new_plan(config, pairs, input_digest, "retry", own.start)
        worklist.write_plan(root, plan)
    shards = [held.shards[number] for number in own]
    records = worklist.read_records(root, plan, shards)
    slices = worklist.slices(root, plan)
    items = [Refetch(shard, part, held.digest) for shard, part in zip(shards, slices, strict=True)]
    before = _counts([worklist.recount(root, shard) for shard in shards])
    reachable = next((shard for shard in held.shards if shard.num_samples), held.shards[0])
    make = partial(make_refetcher, config, plan, reachable)
    records |= run_workers(config, make, items, records)
    made = [records[item.name] for item in items]
    found = [record.shard for record in made]
    if found == shards:
        storage.remove(worklist.folder_url(root))
        return held
    counts = Counter(held.counts) - before + _counts(made)
    all_shards = [*held.shards[: own.start], *found, *held.shards[own.stop :]]
    return _install(root, _changed(held, shards=all_shards, counts=dict(counts.most_common())))


def _changed(manifest: Manifest, **fields: Any) -> Manifest:
    # Not a copy: that would bring the old digest along, once it has been asked for.
    return Manifest(**dict(manifest) | fields)


def _install(root: str, manifest: Manifest) -> Manifest:
    worklist.stage_manifest(root, manifest)
    installed = worklist.install(root, DERIVED)
    assert installed is not None
    return installed


def _manifest(config: Config, input_digest: str, records: Sequence[ShardRecord]) -> Manifest:
    return Manifest(
        stage="download",
        config=config.identity(),
        config_digest=config.digest(),
        input_digest=input_digest,
        shards=[record.shard for record in records],
        counts=dict(_counts(records).most_common()),
    )


def _counts(records: Sequence[ShardRecord]) -> Counter[str]:
    return sum((Counter(record.counts) for record in records), Counter[str]())


def _plan(config: Config, pairs: PairList, input_digest: str, extended: Manifest | None) -> Plan:
    """The plan of an interrupted run of the same, else a new one.

    A new one leaves another list's corpus as it is until its own is whole; of its own corpus,
    finished once, it goes on from the shards that are still there.
    """
    root = config.root
    plan = worklist.read_plan(root)
    if extended is not None:
        if plan is None or plan.extends != extended.digest or not is_of(plan, config, input_digest):
            plan = _new_plan(config, pairs, input_digest, "extend", len(extended.shards), extended)
            worklist.write_plan(root, plan)
        return plan
    if plan is None or plan.kind in ("retry", "extend") or not is_of(plan, config, input_digest):
        held = held_manifest(config)
        is_same = held is not None and is_of(held, config, input_digest)
        has_shards = bool(list_shard_files(root))
        is_other = not is_same and (held is not None or has_shards)
        plan = _new_plan(config, pairs, input_digest, "overwrite" if is_other else "new")
        if held is not None and is_same:
            for shard in worklist.whole_shards(root, held.shards):
                worklist.write_record(root, worklist.recount(root, shard))
        worklist.write_plan(root, plan)
    if not plan.is_staged:
        storage.remove(manifest_url(root))
    return plan


def _new_plan(
    config: Config,
    pairs: PairList,
    input_digest: str,
    kind: PlanKind,
    first_shard: int = 0,
    extended: Manifest | None = None,
) -> Plan:
    root, rows_a_slice = config.root, config.number_sample_per_shard
    storage.remove(worklist.folder_url(root))
    held = (kept_uids(root, shard) for shard in (extended.shards if extended else ()))
    return Plan(
        input_digest=input_digest,
        config=config.identity(),
        config_digest=config.digest(),
        num_rows=worklist.write_slices(root, pairs, rows_a_slice, first_shard, held),
        rows_a_slice=rows_a_slice,
        num_digits=config.oom_shard_count,
        kind=kind,
        first_shard=first_shard,
        extends=extended.digest if extended else None,
    )


def _check_any_success(config: Config, plan: Plan, counts: Mapping[str, int]) -> None:
    if not counts.get(SUCCESS):
        # Nothing of this is worth keeping: the same command starts anew.
        storage.remove(worklist.folder_url(config.root))
        if not plan.is_staged:
            for file in list_shard_files(config.root):
                storage.remove(storage.join(config.root, "shards", file))
            storage.remove(storage.join(config.root, "quarantine"))
        raise ShortfallError(
            f"list {config.url_list}: none of its {plan.num_rows} rows gave a picture: "
            f"{spelled(counts)}; {_advice(counts)}"
        )


def _check_success_rate(config: Config, manifest: Manifest) -> None:
    """Of the finished corpus: workers look at theirs after 1,000 rows only."""
    num_rows = sum(manifest.counts.values())
    if manifest.num_samples < config.min_success_rate * num_rows:
        raise ShortfallError(
            f"list {config.url_list}: {manifest.num_samples:,} of its {num_rows:,} rows gave a "
            f"picture, under --min-success-rate {config.min_success_rate:g}: "
            f"{spelled(manifest.counts)}; the corpus is complete as it is: lower the rate to take "
            "it so, or fetch again what may have passed with --incremental-mode retry"
        )


def _advice(reasons: Mapping[str, int]) -> str:
    if reasons.get("refused scheme"):
        return (
            "only http and https are fetched; for pictures on a disk serve their folder with "
            "`python -m http.server`, list them by its addresses and name its host with "
            "--allow-hosts"
        )
    if reasons.get("refused address"):
        return "name the hosts that may be at private addresses with --allow-hosts"
    return "see that the network is there and that the columns hold what their names say"
