"""What a takedown would find: by what is known of a row, and by what its picture is.

Reads   the shards of ROOT and of ROOT/quarantine
Writes  nothing
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import pyarrow as pa

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.errors import ShortfallError
from pipeline.corpus import Manifest, Shard, read_manifest, read_rows
from pipeline.takedown.receipts import Asked
from pipeline.takedown.shard_forget import FINDING, ContentFinder, has_hashes, quarantine_shards
from pipeline.takedown.tombstones import Tombstone, Tombstones, read_tombstones

Answer = TypeVar("Answer")


def preview(root: str, asked: Asked, workers: Workers) -> list[dict[str, Any]]:
    """key, found_by, uid, caption and url of each row that would go."""
    manifest = read_manifest(root)
    stones = [Tombstone(*stone, "", "") for stone in asked.stones]
    tombstones = Tombstones([*read_tombstones(root).stones, *stones])
    by_content = find_by_content(workers, root, manifest, tombstones, tuple(asked.blocklists))
    stones = [Tombstone("uid", uid, None, "", "") for uid in by_content]
    tombstones = Tombstones([*tombstones.stones, *stones])
    found = []
    for place, shards in places(root, manifest).items():
        make = partial(_RowFinder, place, tombstones)
        rows = on_all(workers, place, make, shards, "forget: find")
        found += [row for name in sorted(rows) for row in rows[name]]
    return [row | {"found_by": by_content.get(row["uid"], row["found_by"])} for row in found]


@dataclass(frozen=True)
class _RowFinder:
    root: str
    tombstones: Tombstones

    def __call__(self, shard: Shard) -> list[dict[str, Any]]:
        rows = read_rows(self.root, shard, FINDING)
        matched = self.tombstones.matched_rows(rows)
        taken = rows.take(pa.array(list(matched), pa.int64())).to_pylist()
        shown = ("uid", "caption", "url")
        return [
            {"key": row["key"], "found_by": kind} | {name: row[name] for name in shown}
            for kind, row in zip(matched.values(), taken, strict=True)
        ]


def find_by_content(
    workers: Workers,
    root: str,
    manifest: Manifest,
    tombstones: Tombstones,
    blocklists: tuple[str, ...],
) -> dict[str, str]:
    """By uid, what a sample was found by whose picture or its digest is refused."""
    found: dict[str, str] = {}
    if blocklists or tombstones.has_pictures or tombstones.values("sha256"):
        for place, shards in places(root, manifest).items():
            hashed = place == root and has_hashes(root, manifest)
            make = partial(ContentFinder, place, tombstones, blocklists, hashed)
            for by_uid in on_all(workers, place, make, shards, "forget: look").values():
                found |= by_uid
    return found


def places(root: str, manifest: Manifest) -> dict[str, list[Shard]]:
    """Where there are pictures, and in which shards."""
    apart = quarantine_shards(root)
    return {root: manifest.shards} | {
        storage.join(root, folder): shards for folder, shards in apart.items()
    }


def on_all(
    workers: Workers,
    root: str,
    make: Callable[[], Callable[[Shard], Answer]],
    shards: list[Shard],
    description: str,
) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    failed: dict[str, str] = {}
    for outcome in map_on_workers(
        make,
        shards,
        workers=workers,
        description=description,
        unit="samples",
        size=lambda shard: shard.num_samples,
    ):
        if outcome.error is None:
            answers[outcome.item.name] = cast(Answer, outcome.result)
        else:
            failed[outcome.item.name] = outcome.error
    if failed:
        raise ShortfallError(
            f"forget {root}: {len(failed)} of {len(shards)} shards failed "
            f"({', '.join(sorted(failed))}; first error: {failed[min(failed)]}); what was asked "
            "for is refused from now on, but still there: run the command again"
        )
    return answers
