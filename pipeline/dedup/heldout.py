"""The pictures of held-out sets, fingerprinted as the corpus's are.

Reads   folders of pictures, however deep, and corpora (a folder with manifest.json): their shards
Writes  nothing

Workers return fingerprints, and embeddings where there is an encoder: 0.2 kB and 2 kB a picture.
They hold one picture at its full size at a time.
"""

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from infra import storage
from infra.cluster import Workers, map_on_workers
from infra.config import digest_of
from infra.errors import ConflictError, InputError, ShortfallError
from pipeline.corpus import Shard, iter_samples, manifest_url, read_manifest
from pipeline.dedup.embeddings import Embeddings, Unit
from pipeline.dedup.pictures import Pictures
from pipeline.picture_hash import Pixels
from pipeline.signals.hashes import HashesSignal, decode_pixels, hash_pixels

ENCODER = "retrieval.encoding.encoder:load_encoder"
"""Named, not imported: without embeddings dedup needs no model."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
FILES_A_TASK = 256
PICTURES_A_BATCH = 64
"""Read and encoded at once: of each only what the encoder sees is held, whatever its size."""

SCHEMA = pa.schema([("sha256", pa.string()), *HashesSignal.schema])

_NO_VECTORS = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class HeldOut:
    pictures: Pictures
    vectors: Unit
    """[h, d]; no rows without an encoder."""
    num_unreadable: int
    """Files that can't be decoded; they are left out."""
    digest: str
    """Of the pictures: the same ones, the same digest, wherever they lie."""


@dataclass(frozen=True)
class _Task:
    """A shard of a corpus, or some files of a folder."""

    root: str
    shard: Shard | None = None
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.root} {self.shard.name if self.shard else self.files[0]}"


@dataclass(frozen=True)
class _Read:
    table: pa.Table
    vectors: Unit
    num_unreadable: int

    @classmethod
    def joined(cls, parts: Sequence["_Read"]) -> "_Read":
        vectors = [part.vectors for part in parts if len(part.vectors)]
        return cls(
            table=pa.concat_tables([SCHEMA.empty_table(), *(part.table for part in parts)]),
            vectors=np.concatenate(vectors) if vectors else _NO_VECTORS,
            num_unreadable=sum(part.num_unreadable for part in parts),
        )


class _Preprocess(Protocol):
    def of_picture(self, picture: Image.Image) -> Pixels: ...


class _Encoder(Protocol):
    weights_digest: str

    @property
    def preprocess(self) -> _Preprocess: ...
    def encode_pixels(self, pixels: Pixels) -> Unit: ...


def read_heldout(places: Sequence[str], embeddings: Embeddings | None, workers: Workers) -> HeldOut:
    """Raises InputError for a place without pictures, ShortfallError for what can't be read."""
    read: list[_Read] = []
    failed: list[str] = []
    for outcome in map_on_workers(
        partial(_Reader, embeddings),
        [task for place in places for task in _tasks(place)],
        workers=workers,
        description="held-out",
        unit="tasks",
    ):
        if outcome.result is None:
            failed.append(f"{outcome.item}: {outcome.error}")
        else:
            read.append(outcome.result)
    if failed:
        raise ShortfallError(
            f"dedup: {len(failed)} parts of the held-out sets can't be read (first: {min(failed)})"
        )
    whole = _Read.joined(read)
    keys = sorted(zip(*(whole.table[name].to_pylist() for name in SCHEMA.names[:2]), strict=True))
    return HeldOut(
        pictures=Pictures.of_table(whole.table),
        vectors=whole.vectors,
        num_unreadable=whole.num_unreadable,
        digest=digest_of(keys),
    )


def _tasks(place: str) -> Iterator[_Task]:
    if storage.exists(manifest_url(place)):
        yield from (_Task(place, shard) for shard in read_manifest(place).shards)
        return
    files = sorted(name for name in storage.list_files(place) if name.lower().endswith(SUFFIXES))
    if not files:
        raise InputError(
            f"heldout {place}: no pictures there; expected a folder of pictures "
            f"({' '.join(SUFFIXES)}) or a corpus"
        )
    for start in range(0, len(files), FILES_A_TASK):
        yield _Task(place, files=tuple(files[start : start + FILES_A_TASK]))


class _Reader:
    """What a worker does."""

    def __init__(self, embeddings: Embeddings | None) -> None:
        self._encoder = _load_encoder(embeddings) if embeddings else None

    def __call__(self, task: _Task) -> _Read:
        images, parts = _images(task), []
        while batch := list(islice(images, PICTURES_A_BATCH)):
            parts.append(self._read(batch))
        return _Read.joined(parts)

    def _read(self, images: Sequence[tuple[str | None, bytes]]) -> _Read:
        rows: list[dict[str, Any]] = []
        seen: list[Pixels] = []
        num_unreadable = 0
        for sha256, image in images:
            pixels = decode_pixels(image)
            if pixels is None:
                num_unreadable += 1
                continue
            rows.append({"sha256": sha256, **hash_pixels(pixels)})
            if self._encoder:
                seen.append(self._encoder.preprocess.of_picture(Image.fromarray(pixels)))
        vectors = _NO_VECTORS
        if self._encoder and seen:
            vectors = self._encoder.encode_pixels(np.stack(seen))
        return _Read(pa.Table.from_pylist(rows, SCHEMA), vectors, num_unreadable)


def _images(task: _Task) -> Iterator[tuple[str | None, bytes]]:
    """sha256 of the bytes as fetched, and the picture's bytes as they are now."""
    if task.shard is not None:
        for sample in iter_samples(task.root, task.shard):
            yield sample.metadata.get("sha256"), sample.image
    for name in task.files:
        image = storage.read_bytes(storage.join(task.root, name))
        yield hashlib.sha256(image).hexdigest(), image


def _load_encoder(embeddings: Embeddings) -> _Encoder:
    module, _, name = ENCODER.partition(":")
    encoder: _Encoder = getattr(importlib.import_module(module), name)(embeddings.encoder)
    if encoder.weights_digest != embeddings.weights_digest:
        raise ConflictError(
            f"encoder {embeddings.encoder!r}: its weights have another digest "
            f"({encoder.weights_digest}) than those that embedded the corpus "
            f"({embeddings.weights_digest}); run `carrara embed` again with --overwrite"
        )
    return encoder
