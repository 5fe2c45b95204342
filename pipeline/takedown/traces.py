"""The search for what was taken down in all that is there: the proof that `verify` gives.

Reads   every tar and parquet of the shards and of ROOT/quarantine, every parquet under
        ROOT/columns, embeddings, index and selections
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.progress import track
from pipeline.corpus import Manifest, Shard, iter_samples, read_rows
from pipeline.sample import Sample
from pipeline.takedown.shard_forget import bits_of_file, quarantine_shards
from pipeline.takedown.tombstones import Tombstones

DERIVED = ("columns", "embeddings", "index", "selections")


def traces(root: str, manifest: Manifest, tombstones: Tombstones) -> dict[str, int]:
    """By path, how much each file still holds of what was taken down; those that hold none left
    out. Raises DamagedError for a shard that can't be searched."""
    found = {
        **dict(_in_shards(root, manifest, tombstones)),
        **dict(_in_tables(root, tombstones)),
    }
    return {path: num for path, num in found.items() if num}


def _in_shards(root: str, manifest: Manifest, tombstones: Tombstones) -> Iterator[tuple[str, int]]:
    with track("verify: taken down", manifest.num_samples, "samples") as bar:
        for shard in manifest.shards:
            yield from _of_shard(root, shard, tombstones, "shards")
            bar.advance(shard.num_samples)
    for folder, shards in quarantine_shards(root).items():
        for shard in shards:
            place = storage.join(root, folder)
            yield from _of_shard(place, shard, tombstones, f"{folder}/shards")


def _in_tables(root: str, tombstones: Tombstones) -> Iterator[tuple[str, int]]:
    for folder in DERIVED:
        for path in sorted(storage.list_files(storage.join(root, folder))):
            if path.endswith(".parquet"):
                table = storage.read_table(storage.join(root, folder, path))
                yield f"{folder}/{path}", _num_in_table(table, tombstones)


def _of_shard(
    root: str, shard: Shard, tombstones: Tombstones, folder: str
) -> Iterator[tuple[str, int]]:
    columns = ["uid", "url", "caption", "sha256", "error_message"]
    rows = read_rows(root, shard, columns)
    yield f"{folder}/{shard.name}.parquet", len(tombstones.matched_rows(rows))
    num = sum(_holds(sample, tombstones) for sample in iter_samples(root, shard))
    yield f"{folder}/{shard.name}.tar", num


def _holds(sample: Sample, tombstones: Tombstones) -> bool:
    row = sample.metadata | {"uid": sample.uid}
    if _matches(row, tombstones):
        return True
    if hashlib.sha256(sample.image).hexdigest() in tombstones.values("sha256"):
        return True
    bits = bits_of_file(sample.image) if tombstones.has_pictures else None
    return bits is not None and tombstones.of_picture(bits) is not None


def _matches(row: dict[str, Any], tombstones: Tombstones) -> bool:
    known = {name: row.get(name) for name in ("uid", "url", "sha256")}
    return tombstones.matched_by(**known) is not None


def _num_in_table(table: pa.Table, tombstones: Tombstones) -> int:
    """Rows in which some text is a uid or a sha256 taken down, or whose url is."""
    forgotten = tombstones.values("uid") | tombstones.values("sha256")
    known = pa.array(sorted(forgotten), pa.string())
    matching = pa.array([False] * table.num_rows, pa.bool_())
    for name in _text_columns(table):
        matching = pc.or_(matching, pc.is_in(table[name].cast(pa.string()), value_set=known))
    if "url" in table.column_names:
        urls = table["url"].to_pylist()
        by_url = pa.array([tombstones.reason(url=url) is not None for url in urls], pa.bool_())
        matching = pc.or_(matching, by_url)
    return int(pc.sum(matching).as_py() or 0)


def _text_columns(table: pa.Table) -> Iterable[str]:
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield field.name
