"""Find copies: of bytes and pixels, by looks, by meaning; choose which one stays; find leaks.

    carrara dedup ROOT
    carrara dedup ROOT --methods exact perceptual semantic --eps 0.05 --heldout TEST_SET

Reads   ROOT/manifest.json, ROOT/shards/, ROOT/columns/hashes/ (scored first where it isn't there),
        ROOT/columns/clip/ if there, ROOT/tombstones.parquet; for `semantic` ROOT/embeddings/
Writes  ROOT/columns/duplicates/<shard>.parquet   uid, duplicate_group, duplicate_of, ...
        ROOT/columns/duplicates/stamp.json        the corpus and the settings they follow from
        ROOT/columns/duplicates/manifest.json     sha256 of every file; written last

The columns are a signal like others: nothing is dropped until a policy says so, as
`duplicate_of IS NULL AND in_heldout IS NOT TRUE`.

Pictures are hashed by Ray workers; what follows runs here, in 0.7 kB of memory a sample (measured
at 0.2 and 0.8 million); embeddings lie in a temporary file (`spool`) of 2 bytes a number.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ConfigError, InputError
from infra.progress import track
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline import score
from pipeline.corpus import ColumnsManifest, Manifest, read_manifest, write_columns
from pipeline.dedup.copies import Found, Limits, find_copies
from pipeline.dedup.embeddings import Embeddings, find_embeddings, spool_vectors
from pipeline.dedup.grouping import Evidence
from pipeline.dedup.heldout import HeldOut, read_heldout
from pipeline.dedup.pictures import to_hex
from pipeline.dedup.samples import Samples, read_samples, signal_manifest
from pipeline.score import MANY
from pipeline.takedown.tombstones import Tombstones, read_tombstones

NAME = "duplicates"
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("duplicate_group", pa.string()),
        ("duplicate_of", pa.string()),
        ("duplicate_evidence", pa.string()),
        ("in_heldout", pa.bool_()),
    ]
)
"""`duplicate_group`: the uid of the one that stays, null where there is no copy; `duplicate_of`:
the same, null for the one that stays; `in_heldout`: null where no held-out sets were named."""


class Config(StageConfig, Limits):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    encoder: str | None = None
    """semantic: whose embeddings; none: the only ones there are."""
    heldout: Annotated[tuple[Place, ...], MANY, EXECUTION_ONLY] = ()
    """Folders of pictures, or corpora, that must not leak into this one: test sets."""
    spool: Annotated[str | None, EXECUTION_ONLY] = None
    """Local folder with room for the embeddings; none: the system's temporary one."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace what was found with other settings or on another corpus."""


def run(config: Config) -> Summary:
    """Raises InputError where embeddings are missing, ConflictError where they are outdated."""
    with Stopwatch() as watch:
        if config.spool is not None and not Path(config.spool).is_dir():
            raise ConfigError(f"spool {config.spool}: no such folder here; expected a local one")
        manifest = read_manifest(config.root)
        if not manifest.num_samples:
            raise InputError(f"{config.root}: the corpus has no samples to find copies among")
        embeddings = None
        if "semantic" in config.methods:
            embeddings = find_embeddings(config.root, manifest, config.encoder)
        hashes = _score_hashes(config, manifest)
        heldout = read_heldout(config.heldout, embeddings, config.workers)
        tombstones = read_tombstones(config.root)
        clip = signal_manifest(config.root, "clip", manifest)
        identity = _identity(config, hashes, clip, embeddings, heldout, tombstones)
        folder = storage.join(config.root, "columns", NAME)
        claim(folder, _stamp(manifest, identity), overwrite=config.overwrite)
        details: dict[str, object] = {}
        if not _is_whole(folder):
            samples = read_samples(config.root, manifest, tombstones, by_clip=clip is not None)
            found = _find(config, samples, embeddings, heldout)
            _write(config, manifest, samples, found, identity)
            _publish_manifest(folder, manifest, identity)
            details = found.details
        counts = _counts(config.root, manifest)
    return Summary(
        stage="dedup",
        num_in=manifest.num_samples,
        num_out=counts["kept"],
        counts=counts,
        seconds=watch.seconds,
        outputs={NAME: folder},
        details=details | {"held-out pictures that can't be decoded": heldout.num_unreadable},
    )


def _score_hashes(config: Config, manifest: Manifest) -> ColumnsManifest:
    """Score `hashes` where they are missing, and for good: they are a signal like others."""
    there = signal_manifest(config.root, "hashes", manifest)
    if there is None:
        score.run(score.Config(root=config.root, signals=("hashes",), workers=config.workers))
        there = signal_manifest(config.root, "hashes", manifest)
        assert there is not None
    return there


def _identity(
    config: Config,
    hashes: ColumnsManifest,
    clip: ColumnsManifest | None,
    embeddings: Embeddings | None,
    heldout: HeldOut,
    tombstones: Tombstones,
) -> dict[str, Any]:
    """All that decides what is written."""
    return {
        "version": 1,
        **config.identity(),
        "methods": sorted(set(config.methods)),
        "encoder": embeddings.encoder if embeddings else None,
        "embeddings": embeddings.digest if embeddings else None,
        "hashes": hashes.config_digest,
        "clip": clip.config_digest if clip else None,
        "heldout": heldout.digest if config.heldout else None,
        "tombstones": tombstones.digest,
    }


def _stamp(manifest: Manifest, identity: dict[str, Any]) -> Stamp:
    return Stamp(
        stage="dedup",
        input_digest=manifest.digest,
        config_digest=digest_of(identity),
        config=identity,
    )


def _is_whole(folder: str) -> bool:
    url = storage.join(folder, "manifest.json")
    if not storage.exists(url):
        return False
    return read_record(url, ColumnsManifest).files.keys() <= storage.list_files(folder)


def _find(
    config: Config, samples: Samples, embeddings: Embeddings | None, heldout: HeldOut
) -> Found:
    with tempfile.TemporaryDirectory(prefix="carrara-dedup-", dir=config.spool) as folder:
        vectors = None
        if embeddings:
            vectors = spool_vectors(config.root, embeddings, samples, Path(folder))
        return find_copies(samples, heldout, vectors, config)


def _write(
    config: Config,
    manifest: Manifest,
    samples: Samples,
    found: Found,
    identity: dict[str, Any],
) -> None:
    metadata = {
        "carrara.signal": NAME,
        "carrara.identity": json.dumps(identity, sort_keys=True),
    }
    with track("dedup: write", manifest.num_samples, "samples") as bar:
        for shard in manifest.shards:
            rows = samples.shards[shard.name]
            table = _table(samples, found, rows, checked=bool(config.heldout))
            write_columns(config.root, NAME, shard.name, table.replace_schema_metadata(metadata))
            bar.advance(shard.num_samples)


def _table(samples: Samples, found: Found, rows: slice, *, checked: bool) -> pa.Table:
    survivor = found.grouping.survivor[rows]
    evidence = found.grouping.evidence[rows]
    is_copy = pa.array(found.grouping.is_copy[rows])
    group = pc.if_else(survivor >= 0, pa.array(to_hex(samples.uids[survivor])), None)
    names = pa.array([one.name.lower() for one in Evidence])
    return pa.table(
        {
            "uid": to_hex(samples.uids[rows]),
            "duplicate_group": group,
            "duplicate_of": pc.if_else(is_copy, group, None),
            "duplicate_evidence": pc.if_else(is_copy, names.take(pa.array(evidence)), None),
            "in_heldout": found.in_heldout[rows] if checked else [None] * len(survivor),
        },
        SCHEMA,
    )


def _publish_manifest(folder: str, manifest: Manifest, identity: dict[str, Any]) -> None:
    names = [f"{shard.name}.parquet" for shard in manifest.shards]
    record = ColumnsManifest(
        signal=NAME,
        identity=identity,
        config_digest=digest_of(identity),
        corpus_digest=manifest.digest,
        files={name: storage.sha256(storage.join(folder, name)) for name in names},
    )
    storage.sweep(folder)
    text = record.model_dump_json(indent=2) + "\n"
    storage.publish_text(storage.join(folder, "manifest.json"), text)


def _counts(root: str, manifest: Manifest) -> dict[str, int]:
    counts = Counter[str]()
    for table in _columns(root, manifest):
        for row in table["duplicate_evidence"].value_counts().to_pylist():
            counts[row["values"] or "kept"] += row["counts"]
        counts["in held-out"] += pc.sum(table["in_heldout"]).as_py() or 0
    order = ["kept", *(one.name.lower() for one in Evidence if one), "in held-out"]
    return {name: counts[name] for name in order if counts[name] or name == "kept"}


def _columns(root: str, manifest: Manifest) -> Iterator[pa.Table]:
    for shard in manifest.shards:
        url = storage.join(root, "columns", NAME, f"{shard.name}.parquet")
        yield storage.read_table(url, ["duplicate_evidence", "in_heldout"])
