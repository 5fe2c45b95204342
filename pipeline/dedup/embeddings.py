"""The corpus's embeddings, read as the files that `carrara embed` leaves, onto a local disk.

Reads   ROOT/embeddings/<encoder>/manifest.json, img_emb/, metadata/: clip-retrieval's layout
Writes  one temporary file of float16 rows: 2 d bytes a picture, on disk rather than in memory

n pictures, of which m have an embedding of d numbers.
"""

import hashlib
import io
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from infra import storage
from infra.config import digest_of
from infra.errors import ConflictError, DamagedError, InputError
from infra.records import read_record
from pipeline.corpus import Manifest
from pipeline.dedup.exact import is_among
from pipeline.dedup.grouping import Rows
from pipeline.dedup.pictures import Digests, digests
from pipeline.dedup.samples import Samples

Unit = NDArray[np.float32]
"""[., d], rows of length 1."""


class Part(BaseModel):
    """The embeddings of one shard."""

    shard: str
    file_number: str
    num_rows: int


class Embeddings(BaseModel):
    """What dedup needs of a manifest of embeddings."""

    encoder: str
    weights_digest: str
    corpus_digest: str
    dim: int
    parts: list[Part]
    files: dict[str, str]

    @cached_property
    def digest(self) -> str:
        return digest_of(self.files)


class Vectors:
    """Embeddings of n pictures; those of some may be missing."""

    def __init__(self, rows: NDArray[np.float16], places: Rows) -> None:
        self.rows = rows
        """[m, d] float16."""
        self.pictures = np.flatnonzero(places >= 0)[np.argsort(places[places >= 0])]
        """[m]: whose rows they are."""
        self._places = places
        """[n]: the row of each picture, -1 where there is none."""

    def cosines(self, a: Rows, b: Rows) -> NDArray[np.float32]:
        """Of two arrays of pictures, pair by pair; -1 where one has no embedding."""
        first, second = self._places[a], self._places[b]
        found = np.full(len(a), -1, np.float32)
        (both,) = np.nonzero((first >= 0) & (second >= 0))
        left, right = unit(self.rows[first[both]]), unit(self.rows[second[both]])
        found[both] = np.einsum("nd,nd->n", left, right)
        return found


def unit(rows: NDArray[np.float16]) -> Unit:
    """Float16 leaves rows a little off their length; a threshold of a few hundredths tells."""
    exact = rows.astype(np.float32)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    scaled: Unit = exact / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def find_embeddings(root: str, manifest: Manifest, encoder: str | None) -> Embeddings:
    """Those by `encoder`, else the only ones; raises InputError, or ConflictError if outdated."""
    base = storage.join(root, "embeddings")
    urls = [storage.join(base, name, "manifest.json") for name in storage.list_names(base)]
    there = [read_record(url, Embeddings) for url in urls if storage.exists(url)]
    wanted = [one for one in there if encoder in (None, one.encoder)]
    if len(wanted) != 1:
        have = ", ".join(one.encoder for one in there) or "none"
        asked = f" --encoder {encoder}" if encoder else ""
        raise InputError(
            f"{root}: semantic dedup needs the embeddings of one encoder (there are: {have}); "
            + ("say which with --encoder" if wanted else f"run `carrara embed {root}{asked}` first")
        )
    if wanted[0].corpus_digest != manifest.digest:
        raise ConflictError(
            f"{root}: the embeddings by {wanted[0].encoder!r} are of another state of the corpus "
            f"(digest {wanted[0].corpus_digest}, now {manifest.digest}); make them anew with "
            f"`carrara embed {root} --encoder {wanted[0].encoder} --overwrite`"
        )
    return wanted[0]


def spool_vectors(root: str, embeddings: Embeddings, samples: Samples, spool: Path) -> Vectors:
    """Copy the rows to a file in the folder `spool`."""
    num_rows = sum(part.num_rows for part in embeddings.parts)
    rows = _new_file(spool / "embeddings.npy", num_rows, embeddings.dim)
    places = np.full(len(samples), -1)
    row = 0
    for part in embeddings.parts:
        uids, array = _read_part(root, embeddings, part)
        shard = samples.shards[part.shard]
        # Both are in key order; a picture that could not be decoded has no embedding.
        here = shard.start + np.flatnonzero(is_among(samples.uids[shard], uids))
        assert np.array_equal(samples.uids[here], uids), part.shard
        places[here] = np.arange(row, row + len(array))
        rows[row : row + len(array)] = array
        row += len(array)
    return Vectors(rows, places)


def _new_file(path: Path, num_rows: int, dim: int) -> NDArray[np.float16]:
    if not num_rows:
        return np.zeros((0, dim), np.float16)
    with storage.filling(str(path)):
        rows = np.lib.format.open_memmap(path, "w+", np.float16, (num_rows, dim))
        if hasattr(os, "posix_fallocate"):
            # All its room now: a write to mapped memory that finds no room ends the process.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return rows


def _read_part(
    root: str, embeddings: Embeddings, part: Part
) -> tuple[Digests, NDArray[np.float16]]:
    number = part.file_number
    metadata = _read(root, embeddings, f"metadata/metadata_{number}.parquet")
    array = _read(root, embeddings, f"img_emb/img_emb_{number}.npy")
    uids = pq.read_table(storage.arrow_file(metadata), columns=["uid"])["uid"]
    return digests(uids), np.load(io.BytesIO(array), allow_pickle=False)


def _read(root: str, embeddings: Embeddings, name: str) -> bytes:
    url = storage.join(root, "embeddings", embeddings.encoder.replace("/", "__"), name)
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != embeddings.files[name]:
        raise DamagedError(
            f"{url}: missing or damaged; remove it and run `carrara embed {root}` again"
        )
    return data
