"""A signal's columns on disk: what each file says of its making, and the manifest over all.

ROOT/columns/<signal>/<shard>.parquet   each column names its models in its metadata, each file
                                        all that decides its values
ROOT/columns/<signal>/manifest.json     sha256 and nulls of every file; written last
"""

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra import storage
from infra.config import digest_of
from infra.errors import ConfigError
from infra.records import read_mapping, read_record
from infra.stamp import Stamp
from pipeline.corpus import ColumnsManifest, Manifest, Shard, write_columns

if TYPE_CHECKING:
    from pipeline.score import Signal


def folder_of(root: str, signal: "Signal") -> str:
    return storage.join(root, "columns", signal.name)


def stamp_of(signal: "Signal", manifest: Manifest) -> Stamp:
    identity = signal.identity()
    return Stamp(
        stage="score",
        input_digest=manifest.digest,
        config_digest=digest_of([signal.name, identity]),
        config=identity,
    )


def score_shard(signal: "Signal", root: str, shard: Shard) -> None:
    """Raises ConfigError for a signal whose table is not what it declares."""
    table = signal(shard)
    declared = ["uid", *signal.schema.names]
    if table.column_names != declared or table.num_rows != shard.num_samples:
        raise ConfigError(
            f"signal {signal.name}: gave {table.num_rows} rows of {', '.join(table.column_names)} "
            f"for shard {shard.name}, expected {shard.num_samples} rows of {', '.join(declared)}"
        )
    write_columns(root, signal.name, shard.name, _with_provenance(table, signal))


def publish_manifest(
    root: str, signal: "Signal", manifest: Manifest, scored_now: set[str]
) -> dict[str, int]:
    """Returns how many nulls there are, by column."""
    folder = folder_of(root, signal)
    url = storage.join(folder, "manifest.json")
    # What was there before keeps its digest: a file damaged since must not be taken for good.
    known: dict[str, Any] = {}
    if storage.exists(url):
        there = read_record(url, ColumnsManifest)
        nulls = read_mapping(url).get("nulls", {})
        known = {name: (digest, nulls.get(name, {})) for name, digest in there.files.items()}
    files = {
        name: known[name]
        if name in known and name not in scored_now
        else digest_and_nulls(storage.join(folder, name))
        for name in (f"{shard.name}.parquet" for shard in manifest.shards)
    }
    record = {
        "signal": signal.name,
        "identity": signal.identity(),
        "config_digest": stamp_of(signal, manifest).config_digest,
        "corpus_digest": manifest.digest,
        "files": {name: digest for name, (digest, _) in files.items()},
        "nulls": {name: nulls for name, (_, nulls) in files.items() if nulls},
    }
    storage.sweep(folder)
    storage.publish_text(url, json.dumps(record, indent=2, sort_keys=True) + "\n")
    total = Counter[str]()
    for _, nulls in files.values():
        total.update(nulls)
    return dict(total)


def digest_and_nulls(url: str) -> tuple[str, dict[str, int]]:
    """A file's sha256, and how many nulls each of its columns has, where it has any."""
    import pyarrow.parquet as pq

    data = storage.read_bytes(url)
    table = pq.read_table(storage.arrow_file(data))
    nulls = {name: table[name].null_count for name in table.column_names}
    return hashlib.sha256(data).hexdigest(), {name: num for name, num in nulls.items() if num}


def _with_provenance(table: pa.Table, signal: "Signal") -> pa.Table:
    """The same values; fields and table say by which models, formulas and parameters."""
    identity = signal.identity()
    fields = []
    for field in table.schema:
        models = json.dumps(identity.get("models", {}).get(field.name, {}), sort_keys=True)
        metadata = {"carrara.signal": signal.name, "carrara.models": models}
        fields.append(field if field.name == "uid" else field.with_metadata(metadata))
    metadata = {
        **(table.schema.metadata or {}),
        "carrara.signal": signal.name,
        "carrara.identity": json.dumps(identity, sort_keys=True),
    }
    return table.cast(pa.schema(fields, metadata))
