"""Corpora made up for a benchmark or a test, as `download` writes them: samples that are there,
shards of them, the manifest."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra import storage
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    ColumnsManifest,
    Manifest,
    Shard,
    iter_samples,
    read_manifest,
    read_rows,
    write_manifest,
    write_shard,
)
from pipeline.sample import Sample, sample_uid

NO_DIGEST = "0" * 16


def made_sample(
    key: str, url: str, caption: str, image: bytes, extension: str = "jpg", **known: Any
) -> Sample:
    """`known`: further columns of its row."""
    uid = sample_uid(url, caption)
    row = dict.fromkeys(ROW_SCHEMA.names) | {
        "key": key,
        "uid": uid,
        "url": url,
        "caption": caption,
        "status": SUCCESS,
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    return Sample(key, uid, caption, image, extension, row | known)


def write_made_shard(root: str, name: str, samples: Sequence[Sample]) -> Shard:
    rows = pa.Table.from_pylist([sample.metadata for sample in samples], ROW_SCHEMA)
    return write_shard(root, name, samples, rows, {})


def write_made_manifest(
    root: str,
    shards: Sequence[Shard],
    *,
    stage: str = "download",
    failed: Mapping[str, int] | None = None,
) -> Manifest:
    """`failed`: how many rows failed, by reason."""
    manifest = Manifest(
        stage=stage,
        config={},
        config_digest=NO_DIGEST,
        input_digest=NO_DIGEST,
        shards=list(shards),
        counts={SUCCESS: sum(shard.num_samples for shard in shards), **(failed or {})},
    )
    write_manifest(root, manifest)
    return manifest


def write_made_signal(root: str, signal: str) -> None:
    """The manifest of columns that `write_columns` wrote: of the files that are there now."""
    folder = storage.join(root, "columns", signal)
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    record = ColumnsManifest(
        signal=signal,
        identity={},
        config_digest=NO_DIGEST,
        corpus_digest=read_manifest(root).digest,
        files={name: storage.sha256(storage.join(folder, name)) for name in names},
    )
    storage.publish_text(storage.join(folder, "manifest.json"), record.model_dump_json())


def change_samples(root: str, change: Callable[[Sample], Sample]) -> None:
    """One by one, in shards written anew; their rows stay as they are."""
    manifest = read_manifest(root)
    shards = []
    for shard in manifest.shards:
        samples = [change(sample) for sample in iter_samples(root, shard)]
        shards.append(write_shard(root, shard.name, samples, read_rows(root, shard), {}))
    write_manifest(root, manifest.model_copy(update={"shards": shards}))
