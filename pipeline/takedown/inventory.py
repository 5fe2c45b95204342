"""Every file of a corpus that has a digest, and what that digest is.

Reads   ROOT/manifest.json, the manifests under ROOT/columns, ROOT/embeddings and ROOT/index, and
        ROOT/selections/*.toml
"""

from collections.abc import Iterator

from pydantic import BaseModel

from infra import storage
from infra.records import read_record
from pipeline.corpus import Manifest

DERIVED = {"columns": "manifest.json", "embeddings": "manifest.json", "index": "index.json"}
"""Folders of folders, each of which names its files and their sha256 in this file."""


class _Files(BaseModel):
    """What the records of DERIVED have in common."""

    files: dict[str, str]


class _Digest(BaseModel):
    """What is needed of a selection's record."""

    sha256: str


def inventory(root: str, manifest: Manifest) -> dict[str, str]:
    """sha256 by path within ROOT, as it was when each file was written."""
    return dict(_files(root, manifest))


def _files(root: str, manifest: Manifest) -> Iterator[tuple[str, str]]:
    for shard in manifest.shards:
        yield f"shards/{shard.name}.tar", shard.sha256
        yield f"shards/{shard.name}.parquet", shard.rows_sha256
    for folder, record_name in DERIVED.items():
        for name in storage.list_names(storage.join(root, folder)):
            url = storage.join(root, folder, name, record_name)
            # No record: its command has not come to an end yet and will check for itself.
            if storage.exists(url):
                for path, sha256 in read_record(url, _Files).files.items():
                    yield f"{folder}/{name}/{path}", sha256
    for name in storage.list_names(storage.join(root, "selections")):
        if name.endswith(".toml"):
            record = read_record(storage.join(root, "selections", name), _Digest)
            yield f"selections/{name.removesuffix('.toml')}.parquet", record.sha256
