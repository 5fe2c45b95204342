"""The corpus on disk: manifest, shards, samples, columns, selections. Every stage meets here.

    ROOT/manifest.json                          what is here, with digests; written last
    ROOT/shards/00000.tar .parquet _stats.json  img2dataset's layout: {key}.jpg .txt .json
    ROOT/columns/<signal>/00000.parquet         uid + values, one file a shard
    ROOT/selections/<name>.parquet  <name>.toml uid, keep, weight, reason; the policy

Shards are immutable. A sample is known by its `uid`, which survives resharding; its `key` is its
place in a tar. Join on uid, never on row order.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.config import digest_of
from infra.errors import DamagedError, InputError
from infra.records import read_record
from pipeline import tar
from pipeline.sample import PackedSample, Sample, group_members, pack_sample, sample_of

SCHEMA_VERSION = 1
SUCCESS = "success"

READ_BYTES = 1 << 20
"""Of a tar at once."""

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)
"""What every row of a shard's parquet has, failures included; more columns may follow."""

PLACE_SCHEMA = pa.schema([("image_offset", pa.int64()), ("image_size", pa.int64())])
"""Last in a shard's parquet: where the picture's bytes lie in the tar, null where there are none.
One read of that range gives the picture (`read_image`)."""


class Shard(BaseModel):
    """One tar and its parquet, as the manifest records them."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_samples: int
    num_bytes: int
    """Of the tar."""
    sha256: str
    """Of the tar."""
    rows_sha256: str
    """Of the parquet."""


class Extension(BaseModel):
    """A further list whose shards were added to a corpus."""

    model_config = ConfigDict(frozen=True)

    input_digest: str
    num_shards: int


class Manifest(BaseModel):
    """What a corpus holds and what it was made from."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    stage: str
    config: dict[str, Any]
    config_digest: str
    input_digest: str
    shards: list[Shard]
    counts: dict[str, int]
    """Rows of the input by status or reason."""
    extensions: list[Extension] = []
    """In the order of their shards, which come after those of the input."""

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the corpus: the same samples, the same digest."""
        return digest_of([shard.model_dump() for shard in self.shards])

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)


class ColumnsManifest(BaseModel):
    """One signal's values over the corpus: what they were made from, and sha256 by file."""

    model_config = ConfigDict(frozen=True)

    signal: str
    identity: dict[str, Any]
    config_digest: str
    corpus_digest: str
    files: dict[str, str]


# Manifest


def manifest_url(root: str) -> str:
    return storage.join(root, "manifest.json")


def read_manifest(root: str) -> Manifest:
    """Raises InputError where no corpus is, DamagedError where its manifest can't be read."""
    url = manifest_url(root)
    try:
        manifest = read_record(url, Manifest)
    except FileNotFoundError:
        raise InputError(
            f"{root}: no corpus here (no manifest.json); make one with `carrara download`, or let "
            "an interrupted one finish by running its command again"
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{url}: schema version {manifest.schema_version}, this program reads "
            f"{SCHEMA_VERSION}; use the version of carrara that wrote it"
        )
    return manifest


def write_manifest(root: str, manifest: Manifest) -> None:
    """The last thing that a stage writes: from here on the corpus is whole."""
    storage.sweep(root)
    storage.publish_text(manifest_url(root), manifest.model_dump_json(indent=2) + "\n")


# Shards


def shard_url(root: str, name: str, suffix: str = ".tar") -> str:
    return storage.join(root, "shards", f"{name}{suffix}")


def shard_files(name: str) -> list[str]:
    """Names of a shard's files, in the order in which they are written."""
    return [f"{name}{suffix}" for suffix in (".tar", ".parquet", "_stats.json")]


_SHARD_FILE = re.compile(r"\d+(\.tar|\.parquet|_stats\.json)")


def list_shard_files(root: str) -> list[str]:
    """Names of the files of shards in ROOT/shards; what others put beside them is not listed."""
    names = storage.list_names(storage.join(root, "shards"))
    return [name for name in names if _SHARD_FILE.fullmatch(name)]


def write_shard(
    root: str, name: str, samples: Iterable[Sample], rows: pa.Table, stats: dict[str, Any]
) -> Shard:
    """Publish a shard's tar, parquet and _stats.json; the same input gives the same bytes.

    `samples` come in key order; `rows` has ROW_SCHEMA's columns first.
    """
    shard = write_packed_shard(root, name, map(pack_sample, samples), rows)
    finish_shard(root, name, stats)
    return shard


def write_packed_shard(
    root: str, name: str, samples: Iterable[PackedSample], rows: pa.Table
) -> Shard:
    """As `write_shard`, of samples that are members of a tar already, and not finished yet."""
    places: dict[str, tuple[int, int]] = {}
    with storage.publish(shard_url(root, name)) as path, path.open("wb", buffering=0) as file:
        shard = tar.Writer(file)
        for sample in samples:
            assert sample.key.startswith(name), f"{sample.key} does not belong in shard {name}"
            places[sample.key] = (shard.num_bytes + tar.BLOCK, sample.image_size)
            for part in sample.parts:
                shard.write(part)
        sha256 = shard.close()
    parquet = shard_url(root, name, ".parquet")
    storage.publish_table(parquet, _with_places(rows, places))
    return Shard(
        name=name,
        num_samples=len(places),
        num_bytes=shard.num_bytes,
        sha256=sha256,
        rows_sha256=storage.sha256(parquet),
    )


def finish_shard(root: str, name: str, stats: dict[str, Any]) -> None:
    """Publish the file that says that all of the shard is there."""
    text = json.dumps(stats, indent=4, sort_keys=True)
    storage.publish_text(shard_url(root, name, "_stats.json"), text)


def _with_places(rows: pa.Table, places: dict[str, tuple[int, int]]) -> pa.Table:
    found = [places.get(key, (None, None)) for key in rows["key"].to_pylist()]
    columns = [pa.array(column, pa.int64()) for column in zip(*found, strict=True)] or [
        pa.array([], pa.int64())
    ] * 2
    rows = rows.drop_columns([name for name in PLACE_SCHEMA.names if name in rows.column_names])
    for name, column in zip(PLACE_SCHEMA.names, columns, strict=True):
        rows = rows.append_column(name, column)
    return rows


def read_image(root: str, shard: Shard, image_offset: int, image_size: int) -> bytes:
    """One picture's bytes, without reading the rest of its shard."""
    url = shard_url(root, shard.name)
    try:
        with storage.open_read(url) as file:
            file.seek(image_offset)
            return file.read(image_size)
    except FileNotFoundError:
        raise _damaged(root, url, "missing") from None


def iter_samples(root: str, shard: Shard) -> Iterator[Sample]:
    """The samples of a shard in key order; raises DamagedError naming the shard."""
    url = shard_url(root, shard.name)
    num_read = 0
    try:
        with storage.open_read(url) as opened:
            hashed = _HashedReader(opened)
            file = io.BufferedReader(hashed, READ_BYTES)
            for key, members in group_members(tar.iter_members(file)):
                yield sample_of(key, members)
                num_read += 1
            while file.read(READ_BYTES):
                pass
            sha256 = hashed.hexdigest()
    except FileNotFoundError:
        reason = "missing"
    except (KeyError, TypeError, ValueError, EOFError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if (num_read, sha256) == (shard.num_samples, shard.sha256):
            return
        reason = (
            f"{num_read} samples instead of {shard.num_samples}"
            if num_read != shard.num_samples
            else "other bytes than its manifest says"
        )
    raise _damaged(root, url, reason)


def check_tar(root: str, shard: Shard) -> None:
    """Raises DamagedError for a tar that isn't what its manifest says."""
    url = shard_url(root, shard.name)
    try:
        is_intact = storage.sha256(url) == shard.sha256
    except FileNotFoundError:
        raise _damaged(root, url, "missing") from None
    if not is_intact:
        raise _damaged(root, url, "other bytes than its manifest says")


class _HashedReader(io.RawIOBase):
    """A file read once, from its start, and the digest of what went by."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _damaged(root: str, url: str, reason: str) -> DamagedError:
    return DamagedError(
        f"shard {url}: damaged ({reason}); `carrara verify {root}` lists all damaged shards, "
        "remove them and run the command that made them again"
    )


def read_rows(root: str, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Every row of a shard, failures too; samples are those with status "success".

    Raises DamagedError for a parquet that isn't what its manifest says.
    """
    url = shard_url(root, shard.name, ".parquet")
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise _damaged(root, url, "missing") from None
    if hashlib.sha256(data).hexdigest() != shard.rows_sha256:
        raise _damaged(root, url, "other bytes than its manifest says")
    return storage.parse_table(data, url, columns)


# Columns and selections


def write_columns(root: str, signal: str, shard_name: str, table: pa.Table) -> None:
    """Publish one signal's values for one shard; the first column is uid."""
    assert table.column_names[0] == "uid", table.column_names
    storage.publish_table(storage.join(root, "columns", signal, f"{shard_name}.parquet"), table)


def read_columns(root: str, signal: str) -> pa.Table:
    """One signal's values over the whole corpus, shards in order."""
    folder = storage.join(root, "columns", signal)
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    if not names:
        have = ", ".join(list_signals(root)) or "none"
        raise InputError(
            f"{root}: signal {signal!r} has not been scored (scored: {have}); run "
            f"`carrara score {root} --signals {signal}`"
        )
    return pa.concat_tables(storage.read_table(storage.join(folder, name)) for name in names)


def list_signals(root: str) -> list[str]:
    return storage.list_names(storage.join(root, "columns"))


def selection_url(root: str, name: str, suffix: str = ".parquet") -> str:
    return storage.join(root, "selections", f"{name}{suffix}")


def read_selection(root: str, name: str) -> pa.Table:
    """uid, keep, weight, reason: one row a sample of the corpus."""
    return storage.read_table(_selection_there(root, name))


def iter_selection(root: str, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The same, a part at a time."""
    import pyarrow.parquet as pq

    with storage.open_read(_selection_there(root, name)) as file:
        yield from pq.ParquetFile(file).iter_batches(columns=columns)


def _selection_there(root: str, name: str) -> str:
    url = selection_url(root, name)
    if not storage.exists(url):
        names = {entry.rsplit(".", 1)[0] for entry in storage.list_names(f"{root}/selections")}
        have = ", ".join(sorted(names)) or "none"
        raise InputError(
            f"{root}: no selection {name!r} (there are: {have}); make it with "
            f"`carrara select {root} --name {name}`"
        )
    return url
