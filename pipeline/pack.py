"""Make a corpus of what was kept: new, even shards in a seeded random order.

    carrara pack ROOT OUT --selection good --samples-per-shard 10000 --seed 0

Reads   ROOT/manifest.json, ROOT/shards/, ROOT/selections/<name>.parquet
Writes  OUT/shards/00000.tar .parquet _stats.json, OUT/manifest.json (last): a corpus like ROOT,
        each sample with its uid, its weight and the key it had in ROOT (`source_key`)

The order follows from the kept uids and the seed alone, not from how ROOT was sharded. Samples
go through files on this machine's disk, one for each new shard, so memory holds 40 bytes a kept
sample and a buffer. Safe to kill: the same command makes only the shards that are missing.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig, digest_of
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from infra.progress import track
from infra.records import read_record
from infra.stamp import Stamp, claim
from infra.summary import Stopwatch, Summary
from pipeline.corpus import (
    SUCCESS,
    Manifest,
    Sample,
    Shard,
    iter_samples,
    manifest_url,
    read_manifest,
    read_rows,
    read_selection,
    selection_url,
    shard_files,
    shard_url,
    write_manifest,
    write_shard,
)
from pipeline.spool import Spool

MIN_KEY_DIGITS = 4
"""Of a sample's number within its shard, as in img2dataset's keys."""

Uids = NDArray[np.void]
"""[n] of 16 bytes each."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus to take from: a folder or an fsspec URL."""
    output: Annotated[Place, POSITIONAL]
    """Where the new corpus goes."""
    selection: str
    """What to take: a name that was given to `carrara select`."""
    samples_per_shard: int = Field(default=10_000, ge=1)
    """At most so many; the shards' sizes differ by one at most."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the samples."""
    spool: Annotated[str | None, EXECUTION_ONLY] = None
    """Local folder with room for all that is kept; none: the system's temporary one."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace a corpus at OUT that was made of something else."""


def run(config: Config) -> Summary:
    """Raises InputError where the selection isn't of this corpus or keeps nothing."""
    with Stopwatch() as watch:
        _check_apart(config.root, config.output)
        _check_own(config.output)
        if config.spool is not None and not Path(config.spool).is_dir():
            raise ConfigError(f"spool {config.spool}: no such folder here; expected a local one")
        source = read_manifest(config.root)
        kept = _read_kept(config, source)
        stamp = Stamp.of("pack", config, _input_digest(config, source))
        claim(config.output, stamp, overwrite=config.overwrite)
        plan = Plan(kept, config.samples_per_shard, config.seed)
        manifest = _pack(config, source, plan, stamp)
    return Summary(
        stage="pack",
        num_in=source.num_samples,
        num_out=manifest.num_samples,
        counts={"kept": manifest.num_samples, "left": source.num_samples - manifest.num_samples},
        seconds=watch.seconds,
        outputs={"corpus": config.output},
        details={
            "shards": len(manifest.shards),
            "size_bytes": sum(shard.num_bytes for shard in manifest.shards),
            "corpus digest": manifest.digest,
        },
    )


def _pack(config: Config, source: Manifest, plan: "Plan", stamp: Stamp) -> Manifest:
    held = read_manifest(config.output) if storage.exists(manifest_url(config.output)) else None
    done = _done_shards(config.output, plan)
    if held and len(done) == plan.num_shards:
        return held
    missing = [index for index in range(plan.num_shards) if index not in done]
    # A manifest's word stands: a shard damaged since must not be taken for good.
    shards = {
        index: held.shards[index] if held else _shard_there(config.output, plan, index)
        for index in done
    }
    with tempfile.TemporaryDirectory(prefix="carrara-pack-", dir=config.spool) as folder:
        spools = Spools(Path(folder))
        if missing:
            _spool(config.root, source, plan, missing, spools)
        schema = _row_schema(config.root, source)
        with track("pack: write", sum(map(plan.size, missing)), "samples") as bar:
            for index in missing:
                shards[index] = _write(config.output, plan, index, spools, schema)
                bar.advance(plan.size(index))
    manifest = Manifest(
        stage="pack",
        config=stamp.config,
        config_digest=stamp.config_digest,
        input_digest=stamp.input_digest,
        shards=[shards[index] for index in range(plan.num_shards)],
        counts={SUCCESS: len(plan.uids)},
    )
    write_manifest(config.output, manifest)
    return manifest


class _Origin(BaseModel):
    """What `pack` needs of a selection's record."""

    corpus_digest: str


class Plan:
    """Which kept sample goes where: a seeded permutation, cut into even shards."""

    def __init__(self, kept: pa.Table, samples_per_shard: int, seed: int) -> None:
        uids = _as_bytes(kept["uid"])
        order = np.argsort(uids, kind="stable")
        self.uids = uids[order]
        self.weights = kept["weight"].to_numpy()[order]
        # A stream of raw bits stays the same over NumPy's versions; its permutations may not.
        ranks = np.random.PCG64(seed).random_raw(len(uids))
        self.positions = np.empty(len(uids), np.int64)
        self.positions[np.argsort(ranks, kind="stable")] = np.arange(len(uids))
        num_shards = -(-len(uids) // samples_per_shard)
        self.starts = np.arange(num_shards + 1) * len(uids) // num_shards

    @property
    def num_shards(self) -> int:
        return len(self.starts) - 1

    def name(self, shard: int) -> str:
        return f"{shard:05d}"

    def size(self, shard: int) -> int:
        return int(self.starts[shard + 1] - self.starts[shard])

    def key(self, shard: int, place: int) -> str:
        digits = max(MIN_KEY_DIGITS, len(str(int(np.diff(self.starts).max()) - 1)))
        return f"{self.name(shard)}{place:0{digits}d}"

    def find(self, uids: Uids) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of `uids` are kept, and for each its rank among the kept ones."""
        ranks = np.minimum(np.searchsorted(self.uids, uids), len(self.uids) - 1)
        return self.uids[ranks] == uids, ranks

    def place(self, rank: int) -> tuple[int, int]:
        """The shard of a kept sample and its place in it."""
        position = int(self.positions[rank])
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return shard, position - int(self.starts[shard])


class Spools:
    """Rows and samples apart: a shard's parquet and its tar are written one after the other."""

    def __init__(self, folder: Path) -> None:
        self.rows = Spool[dict[str, Any]](folder / "rows")
        self.samples = Spool[Sample](folder / "samples")


def _check_apart(root: str, output: str) -> None:
    # --overwrite clears OUT; it must never reach ROOT.
    inner, outer = (storage.join(storage.canonical(url), "") for url in (root, output))
    if inner.startswith(outer):
        raise ConfigError(
            f"OUT {output}: is the corpus itself or a folder around it; expected a place of its own"
        )


def _check_own(output: str) -> None:
    """Nor any other corpus that `pack` did not make: it has no stamp."""
    has_stamp = storage.exists(storage.join(output, "stamp.json"))
    if storage.exists(manifest_url(output)) and not has_stamp:
        raise ConflictError(
            f"OUT {output}: holds a corpus that `carrara pack` did not make; choose another place"
        )


def _read_kept(config: Config, source: Manifest) -> pa.Table:
    table = read_selection(config.root, config.selection)
    toml = selection_url(config.root, config.selection, ".toml")
    again = f"run `carrara select {config.root} --name {config.selection}` again"
    if not storage.exists(toml):
        raise InputError(f"{toml}: missing, so the selection is not whole; {again}")
    of = read_record(toml, _Origin).corpus_digest
    if of != source.digest:
        raise InputError(
            f"{toml}: selects from another corpus (digest {of}, now {source.digest}); {again}"
        )
    kept = table.filter(table["keep"]).select(["uid", "weight"])
    if not kept.num_rows:
        raise InputError(
            f"{config.root}: selection {config.selection!r} keeps none of {table.num_rows} "
            "samples; choose a milder policy"
        )
    return kept


def _input_digest(config: Config, source: Manifest) -> str:
    return digest_of([source.digest, storage.sha256(selection_url(config.root, config.selection))])


def _done_shards(output: str, plan: Plan) -> list[int]:
    """A shard is done when its files, _stats.json being written last, are there."""
    names = set(storage.list_names(storage.join(output, "shards")))
    return [i for i in range(plan.num_shards) if names >= set(shard_files(plan.name(i)))]


def _as_bytes(uids: pa.ChunkedArray) -> Uids:
    data = bytes.fromhex("".join(uids.to_pylist()))
    return np.frombuffer(data, np.dtype("V16"))


def _spool(root: str, source: Manifest, plan: Plan, missing: list[int], spools: Spools) -> None:
    """Read the corpus once and lay what the missing shards need beside each other."""
    wanted = set(missing)
    with track("pack: read", source.num_samples, "samples") as bar:
        for shard in source.shards:
            for rank, sample, row in _kept_samples(root, shard, plan):
                target, place = plan.place(rank)
                if target in wanted:
                    weight = float(plan.weights[rank])
                    spools.rows.add(target, place, row | {"weight": weight})
                    spools.samples.add(target, place, sample)
            bar.advance(shard.num_samples)
    spools.rows.flush()
    spools.samples.flush()


def _kept_samples(
    root: str, shard: Shard, plan: Plan
) -> Iterator[tuple[int, Sample, dict[str, Any]]]:
    """(rank among the kept, sample, its row) of what a shard keeps."""
    rows = read_rows(root, shard)
    rows = rows.filter(pc.equal(rows["status"], SUCCESS))
    if not rows.num_rows:
        return
    is_kept, ranks = plan.find(_as_bytes(rows["uid"]))
    wanted = {
        row["key"]: (int(rank), row)
        for rank, row in zip(
            ranks[is_kept], rows.filter(pa.array(is_kept)).to_pylist(), strict=True
        )
    }
    if not wanted:
        return
    for sample in iter_samples(root, shard):
        if sample.key in wanted:
            rank, row = wanted[sample.key]
            yield rank, sample, row


def _row_schema(root: str, source: Manifest) -> pa.Schema:
    schema = read_rows(root, source.shards[0]).schema.remove_metadata()
    for name, kind in (("source_key", pa.string()), ("weight", pa.float32())):
        if name not in schema.names:
            schema = schema.append(pa.field(name, kind))
    return schema


def _write(output: str, plan: Plan, index: int, spools: Spools, schema: pa.Schema) -> Shard:
    name = plan.name(index)
    rows = [
        row | {"key": plan.key(index, place), "source_key": row["key"]}
        for place, row in spools.rows.read(index)
    ]
    if len(rows) != plan.size(index):
        raise DamagedError(
            f"shard {shard_url(output, name)}: {plan.size(index) - len(rows)} selected samples are "
            "not in the corpus's parquets; `carrara verify` tells which are damaged"
        )

    def samples() -> Iterator[Sample]:
        for row, (_, sample) in zip(rows, spools.samples.read(index), strict=True):
            new = {name: row[name] for name in ("key", "source_key", "weight")}
            yield replace(sample, key=row["key"], metadata=sample.metadata | new)

    table = pa.Table.from_pylist(rows, schema)
    stats = {"count": len(rows), "successes": len(rows), "status_dict": {SUCCESS: len(rows)}}
    shard = write_shard(output, name, samples(), table, stats)
    spools.rows.drop(index)
    spools.samples.drop(index)
    return shard


def _shard_there(output: str, plan: Plan, index: int) -> Shard:
    """What an earlier, killed run has written."""
    name = plan.name(index)
    tar, parquet = shard_url(output, name), shard_url(output, name, ".parquet")
    return Shard(
        name=name,
        num_samples=plan.size(index),
        num_bytes=storage.size_bytes(tar),
        sha256=storage.sha256(tar),
        rows_sha256=storage.sha256(parquet),
    )
