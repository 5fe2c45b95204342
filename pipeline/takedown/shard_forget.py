"""What a worker does to a shard in a takedown: find what must go, and make the shard without it.

Reads   ROOT/shards/<shard>.*, ROOT/columns/hashes/<shard>.parquet where it has been scored
Writes  the new files of a shard that holds anything of it, in a place beside the corpus
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.records import read_mapping, read_record
from pipeline.corpus import (
    SUCCESS,
    ColumnsManifest,
    Manifest,
    Shard,
    iter_samples,
    read_rows,
    shard_url,
    write_shard,
)
from pipeline.picture_hash import from_hex, picture_hash
from pipeline.sample import Sample
from pipeline.signals.hashes import decode_pixels
from pipeline.takedown.blocklists import load_blocklist, match_of
from pipeline.takedown.tombstones import Tombstones, redact

HASHES = "hashes"
"""The signal whose columns hold the pictures' perceptual hashes."""


QUARANTINE = "quarantine"
"""Where within ROOT `download` keeps pictures that are not what their list says."""


class Found(BaseModel):
    """A row that must go."""

    model_config = ConfigDict(frozen=True)

    key: str
    uid: str | None
    found_by: str
    status: str
    """What it was before."""
    error_message: str | None
    width: int | None = None
    height: int | None = None
    """Of the picture as stored."""


class Swept(BaseModel):
    """A shard without what must go."""

    model_config = ConfigDict(frozen=True)

    shard: Shard
    found: list[Found]


class ContentFinder:
    """uids of samples that fall under a tombstone or a blocklist by what their picture is."""

    def __init__(
        self, root: str, tombstones: Tombstones, blocklists: tuple[str, ...], has_hashes: bool
    ) -> None:
        self._root, self._tombstones, self._has_hashes = root, tombstones, has_hashes
        self._blocklists = [load_blocklist(reference) for reference in blocklists]

    def __call__(self, shard: Shard) -> dict[str, str]:
        """By uid, what it was found by."""
        rows = read_rows(self._root, shard, ["uid", "status", "sha256"])
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        sha256s = dict(zip(rows["uid"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
        blocked = self._tombstones.values("sha256")
        found = {uid: "sha256" for uid, sha256 in sha256s.items() if sha256 in blocked}
        for uid, bits, image in self._pictures(shard):
            if bits is not None and self._tombstones.of_picture(bits):
                found.setdefault(uid, "near")
            for blocklist in self._blocklists:
                assert image is not None  # they have it read
                if match := match_of(blocklist, sha256s[uid], image, bits):
                    found.setdefault(uid, f"blocklist {match}")
        return found

    def _pictures(self, shard: Shard) -> Iterator[tuple[str, bytes | None, bytes | None]]:
        """uid, perceptual hash and picture as stored, as far as anybody asks for them."""
        if self._blocklists or (self._tombstones.has_pictures and not self._has_hashes):
            for sample in iter_samples(self._root, shard):
                yield sample.uid, bits_of_file(sample.image), sample.image
        elif self._tombstones.has_pictures:
            url = storage.join(self._root, "columns", HASHES, f"{shard.name}.parquet")
            for row in storage.read_table(url, ["uid", "picture_hash"]).to_pylist():
                text = row["picture_hash"]
                yield row["uid"], None if text is None else from_hex(text), None


@dataclass(frozen=True)
class ShardForgetter:
    """Makes shards without what falls under the tombstones; None for a shard that has none of it.

    What was found is kept in `records`, after the shard's files.
    """

    root: str
    staged: str
    records: str
    tombstones: Tombstones

    def __call__(self, shard: Shard) -> Swept | None:
        found = list(self._find(read_rows(self.root, shard, FINDING)))
        if not found:
            return None
        swept = Swept(shard=self._rewrite(shard, found), found=found)
        url = storage.join(self.records, f"{shard.name}.json")
        storage.publish_text(url, swept.model_dump_json())
        return swept

    def _find(self, rows: pa.Table) -> Iterator[Found]:
        matched = self.tombstones.matched_rows(rows)
        taken = rows.take(pa.array(list(matched), pa.int64()))
        for kind, row in zip(matched.values(), taken.to_pylist(), strict=True):
            yield Found(
                key=row["key"],
                uid=row["uid"],
                found_by=kind,
                status=row["status"],
                error_message=row["error_message"],
                width=row["width"],
                height=row["height"],
            )

    def _rewrite(self, shard: Shard, found: list[Found]) -> Shard:
        keys = {row.key for row in found}
        rows = read_rows(self.root, shard)
        rows = redact(rows, pc.is_in(rows["key"], value_set=pa.array(sorted(keys), pa.string())))
        stats = _stats(self.root, shard, rows)
        if all(row.status != SUCCESS for row in found):  # its tar holds none of them
            return self._publish_rows(shard, rows, stats)

        def samples() -> Iterator[Sample]:
            return (s for s in iter_samples(self.root, shard) if s.key not in keys)

        return write_shard(self.staged, shard.name, samples(), rows, stats)

    def _publish_rows(self, shard: Shard, rows: pa.Table, stats: dict[str, Any]) -> Shard:
        url = shard_url(self.staged, shard.name, ".parquet")
        storage.publish_table(url, rows)
        text = json.dumps(stats, indent=4, sort_keys=True)
        storage.publish_text(shard_url(self.staged, shard.name, "_stats.json"), text)
        return shard.model_copy(update={"rows_sha256": storage.sha256(url)})


FINDING = ["key", "uid", "url", "caption", "sha256", "status", "error_message", "width", "height"]


def quarantine_folders(root: str) -> list[str]:
    """Within ROOT; each retry has one of its own."""
    names = storage.list_names(storage.join(root, QUARANTINE))
    retries = [storage.join(QUARANTINE, name) for name in names if name != "shards"]
    return [QUARANTINE, *retries] if names else []


def quarantine_shards(root: str) -> dict[str, list[Shard]]:
    """What `download` set apart, by folder within ROOT: no manifest lists it."""
    folders = quarantine_folders(root)
    return {folder: _shards_found(storage.join(root, folder)) for folder in folders}


def _shards_found(root: str) -> list[Shard]:
    names = storage.list_names(storage.join(root, "shards"))
    return [
        _shard_found(root, name.removesuffix(".parquet"))
        for name in names
        if name.endswith(".parquet")
    ]


def _shard_found(root: str, name: str) -> Shard:
    tar, parquet = shard_url(root, name), shard_url(root, name, ".parquet")
    statuses = storage.read_table(parquet, ["image_size"])["image_size"]
    return Shard(
        name=name,
        num_samples=len(statuses) - statuses.null_count,
        num_bytes=storage.size_bytes(tar),
        sha256=storage.sha256(tar),
        rows_sha256=storage.sha256(parquet),
    )


def has_hashes(root: str, manifest: Manifest) -> bool:
    """Whether the perceptual hashes of this very corpus have been scored."""
    url = storage.join(root, "columns", HASHES, "manifest.json")
    return (
        storage.exists(url) and read_record(url, ColumnsManifest).corpus_digest == manifest.digest
    )


def bits_of_file(data: bytes) -> bytes | None:
    """The perceptual hash of a picture's file; None for what can't be decoded."""
    pixels = decode_pixels(data)
    return None if pixels is None else picture_hash(pixels).bits


def _stats(root: str, shard: Shard, rows: pa.Table) -> dict[str, Any]:
    """img2dataset's figures of the shard as it is now; its times stay."""
    stats: dict[str, Any] = read_mapping(shard_url(root, shard.name, "_stats.json"))
    statuses = Counter(rows["status"].to_pylist())
    figures = {"successes": statuses[SUCCESS]} | {
        name: statuses[name] for name in ("failed_to_download", "failed_to_resize")
    }
    reasons = Counter(reason or SUCCESS for reason in rows["error_message"].to_pylist())
    return stats | figures | {"status_dict": dict(reasons.most_common())}
