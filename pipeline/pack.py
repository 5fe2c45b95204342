"""Make a corpus of what was kept: new, even shards in a seeded random order.

    carrara pack ROOT OUT --selection good --samples-per-shard 10000 --seed 0
    carrara pack ROOT OUT --selection good --splits train=0.98 test=0.02

Reads   ROOT/manifest.json, ROOT/shards/, ROOT/selections/<name>.parquet, ROOT/tombstones.parquet;
        for splits ROOT/columns/duplicates/, where `carrara dedup` was run
Writes  OUT/shards/00000.tar .parquet _stats.json, OUT/manifest.json (last): a corpus like ROOT,
        each sample with its uid, its weight and the key it had in ROOT (`source_key`);
        OUT/tombstones.parquet. With splits each has such a corpus of its own: OUT/train, OUT/test

The order follows from the kept uids and the seed alone, not from how ROOT was sharded. Memory holds
40 bytes a kept sample and a few buffers. Safe to kill: the same command makes only the shards that
are missing. What was taken down, in ROOT or in OUT, is left out.
"""

import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from infra import storage
from infra.config import EXECUTION_ONLY, POSITIONAL, Place, StageConfig
from infra.errors import ConfigError, ConflictError
from infra.records import read_record
from infra.stamp import Stamp, claim, stamp_url
from infra.summary import Stopwatch, Summary
from pipeline.corpus import (
    SUCCESS,
    Manifest,
    Shard,
    list_shard_files,
    manifest_url,
    read_manifest,
    shard_files,
    shard_url,
    write_manifest,
)
from pipeline.pages.page import PAGES
from pipeline.selecting.kept import read_kept
from pipeline.selecting.pack_plan import Plan, Target
from pipeline.selecting.repack import Repacker
from pipeline.selecting.splits import parse_splits
from pipeline.takedown.inventory import DERIVED
from pipeline.takedown.journal import Journal
from pipeline.takedown.tombstones import Tombstones, add_tombstones, read_tombstones

MANY = Parameter(consume_multiple=True)
"""On the command line: --splits train=0.98 test=0.02."""

NUM_REMOVERS = 8
"""Files removed at once, for the sake of object stores."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus to take from: a folder or an fsspec URL."""
    output: Annotated[Place, POSITIONAL]
    """Where the new corpus goes, or with splits the folder of the new corpora."""
    selection: str
    """What to take: a name that was given to `carrara select`."""
    splits: Annotated[tuple[str, ...], MANY] = ()
    """NAME=SHARE of each split, such as train=0.98 test=0.02; none: all in one corpus."""
    samples_per_shard: int = Field(default=10_000, ge=1)
    """At most so many; the sizes of a split's shards differ by one at most."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the samples."""
    sequential: Annotated[bool, EXECUTION_ONLY] = False
    """Read ROOT's tars from front to back, as an object store's always are: for slow disks."""
    spool: Annotated[str | None, EXECUTION_ONLY] = None
    """Local folder for what waits: the kept rows, and where tars are read from front to back all
    that is kept; none: the system's temporary one."""
    num_threads: Annotated[int | None, EXECUTION_ONLY] = Field(default=None, ge=1)
    """Shards that are read, and then written, at once; none: 2, which keep the interpreter busy,
    and 8 with an object store, which answers many at once."""
    overwrite: Annotated[bool, EXECUTION_ONLY] = False
    """Replace a corpus at OUT that `pack` made of something else, and what was computed from it;
    its tombstones and whatever else lies there stay."""


def run(config: Config) -> Summary:
    """Raises InputError where the selection isn't of this corpus or keeps nothing."""
    with Stopwatch() as watch:
        splits = parse_splits(config.splits)
        _check_apart(config.root, config.output)
        made = _made_before(config.output)
        if config.spool is not None and not Path(config.spool).is_dir():
            raise ConfigError(f"spool {config.spool}: no such folder here; expected a local one")
        source = read_manifest(config.root)
        outputs = {
            split.name: storage.join(config.output, split.name).rstrip("/") for split in splits
        }
        for output in outputs.values():
            _check_own(output)
        tombstones = _tombstones([config.root, *made, *outputs.values()])
        kept = read_kept(config.root, source, config.selection, splits, tombstones)
        stamp = Stamp.of("pack", config, kept.digest)
        _claim(config, stamp, made, outputs.values())
        for output in outputs.values():
            add_tombstones(output, tombstones.stones)
        plan = Plan(kept, splits, config.samples_per_shard, config.seed)
        manifests = _pack(config, source, plan, outputs, stamp)
    packed = {name or "kept": manifest.num_samples for name, manifest in manifests.items()}
    num_packed = sum(packed.values())
    left = source.num_samples - num_packed - kept.num_refused
    refused = {"taken down": kept.num_refused} if kept.num_refused else {}
    return Summary(
        stage="pack",
        num_in=source.num_samples,
        num_out=num_packed,
        counts={**packed, "left": left, **refused},
        seconds=watch.seconds,
        outputs={name or "corpus": url for name, url in outputs.items()},
        details={
            "shards": len(plan.targets),
            "size_bytes": sum(s.num_bytes for one in manifests.values() for s in one.shards),
            **{f"{name or 'corpus'} digest": one.digest for name, one in manifests.items()},
        },
    )


def _pack(
    config: Config, source: Manifest, plan: Plan, outputs: dict[str, str], stamp: Stamp
) -> dict[str, Manifest]:
    """The manifest of each split."""
    held = {
        split: read_manifest(output)
        for split, output in outputs.items()
        if storage.exists(manifest_url(output))
    }
    shards = _shards_there(plan, outputs, held)
    missing = [number for number in range(len(plan.targets)) if number not in shards]
    if missing:
        is_local = all("://" not in storage.canonical(url) for url in (config.root, config.output))
        num_threads = config.num_threads or (2 if is_local else 8)
        with tempfile.TemporaryDirectory(prefix="carrara-pack-", dir=config.spool) as folder:
            repacker = Repacker(
                config.root, source, plan, missing, Path(folder), sequential=config.sequential
            )
            repacker.read(num_threads)
            shards |= repacker.write(outputs, num_threads)
    for split, output in outputs.items():
        if missing or split not in held:
            own = [shards[number] for number in plan.numbers_of(split)]
            held[split] = _manifest(stamp, own)
            write_manifest(output, held[split])
    return held


def _manifest(stamp: Stamp, shards: list[Shard]) -> Manifest:
    return Manifest(
        stage="pack",
        config=stamp.config,
        config_digest=stamp.config_digest,
        input_digest=stamp.input_digest,
        shards=shards,
        counts={SUCCESS: sum(shard.num_samples for shard in shards)},
    )


def _shards_there(
    plan: Plan, outputs: dict[str, str], held: dict[str, Manifest]
) -> dict[int, Shard]:
    """What an earlier run has written, by the numbers of the targets.

    A shard is done when its files, _stats.json being written last, are there. A manifest's word
    stands: a shard damaged since must not be taken for good.
    """
    there = {}
    for split, output in outputs.items():
        known = {shard.name: shard for shard in held[split].shards} if split in held else {}
        names = set(storage.list_names(storage.join(output, "shards")))
        for number in plan.numbers_of(split):
            target = plan.targets[number]
            if names >= set(shard_files(target.name)):
                there[number] = known.get(target.name) or _digested(output, target)
    return there


def _digested(output: str, target: Target) -> Shard:
    tar, parquet = (shard_url(output, target.name, suffix) for suffix in (".tar", ".parquet"))
    return Shard(
        name=target.name,
        num_samples=target.num_samples,
        num_bytes=storage.size_bytes(tar),
        sha256=storage.sha256(tar),
        rows_sha256=storage.sha256(parquet),
    )


def _check_apart(root: str, output: str) -> None:
    # --overwrite clears OUT and must never reach ROOT, whose shards might be taken for OUT's.
    ours, theirs = (storage.join(storage.canonical(url), "") for url in (root, output))
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ConfigError(
            f"OUT {output}: is the corpus itself, or around or within it; expected a place of its "
            "own"
        )


def _made_before(output: str) -> list[str]:
    """The places of the corpora that `pack` began at OUT."""
    if not _check_own(output):
        return []
    splits = parse_splits(read_record(stamp_url(output), Stamp).config["splits"])
    return [storage.join(output, split.name).rstrip("/") for split in splits]


def _check_own(place: str) -> bool:
    """Whether `pack` has begun here; raises ConflictError where others have, whose shards would
    pass for its own."""
    url = stamp_url(place)
    if storage.exists(url) and read_record(url, Stamp).stage == "pack":
        return True
    if there := storage.list_names(place):
        raise ConflictError(
            f"OUT {place}: holds {there[0]!r}, which `carrara pack` did not make; expected an "
            "empty place; choose another OUT"
        )
    return False


def _claim(config: Config, stamp: Stamp, made: list[str], outputs: Collection[str]) -> None:
    """Begin or go on; what was made of something else goes first, if that was asked for."""
    claim(config.output, stamp, overwrite=config.overwrite, clear=lambda _: _clear(made))
    for output in outputs:  # a run that was killed in between has left the old stamps here
        claim(output, stamp, overwrite=config.overwrite, clear=lambda place: _clear([place]))


def _clear(corpora: Sequence[str]) -> None:
    """Remove corpora and what was computed from them. Their stamps stay, to be replaced: a run
    that is killed meanwhile leaves what is still `pack`'s own."""
    for corpus in corpora:
        if storage.list_names(Journal(corpus).folder):
            raise ConflictError(
                f"OUT {corpus}: a takedown there has not come to its end; run `carrara forget "
                f"{corpus}` first"
            )
    for corpus in corpora:
        storage.remove(manifest_url(corpus))
        urls = [storage.join(corpus, "shards", name) for name in list_shard_files(corpus)]
        with ThreadPoolExecutor(NUM_REMOVERS) as pool:
            list(pool.map(storage.remove, urls))
        for name in (*DERIVED, "selections", *PAGES):
            storage.remove(storage.join(corpus, name))


def _tombstones(roots: list[str]) -> Tombstones:
    """What was taken down in any of these corpora; --overwrite must not bring it back."""
    return Tombstones(stone for root in roots for stone in read_tombstones(root).stones)
