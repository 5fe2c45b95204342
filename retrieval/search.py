"""Answers from an index: vectors in, samples of the corpus out, best first.

Reads   ROOT/manifest.json, ROOT/index/<encoder>/, and ROOT/shards/ when pictures are asked for

What an index answers with are row numbers. They are looked up only in the metadata that its own
index.json names and digests, and the index itself must be of the corpus as it is now: a wrong
caption under a picture is worse than an error.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.errors import ConflictError, DamagedError, InputError
from infra.records import read_record
from pipeline.corpus import Manifest, iter_samples, read_manifest
from retrieval import knn
from retrieval.embeddings import Modality, Part, choose_encoder, index_url, metadata_name
from retrieval.indexing.manifest import IndexManifest


@dataclass(frozen=True)
class Hit:
    """A sample that answers a query."""

    rank: int
    """From 1."""
    similarity: float
    """Cosine of the query and the sample's picture, or caption, as the index keeps it."""
    uid: str
    key: str
    shard: str
    caption: str
    url: str
    metadata: dict[str, object] = field(repr=False)
    """All that is known of the sample, by img2dataset's names."""


class Retriever:
    """One encoder's indices over one corpus."""

    def __init__(self, root: str, corpus: Manifest, manifest: IndexManifest) -> None:
        self.manifest = manifest
        self._root = root
        self._corpus = corpus
        self._folder = index_url(root, manifest.encoder)
        self._starts = np.cumsum([0, *(part.num_rows for part in manifest.parts)])
        self._index = cache(self._read_index)
        self._metadata = cache(self._read_metadata)

    @classmethod
    def open(cls, root: str, encoder: str | None = None) -> "Retriever":
        """Raises InputError where there is no index or several, ConflictError for a stale one."""
        corpus = read_manifest(root)
        encoder = choose_encoder(root, "index", encoder)
        url = storage.join(index_url(root, encoder), "index.json")
        manifest = read_record(url, IndexManifest)
        if manifest.corpus_digest != corpus.digest:
            raise ConflictError(
                f"{url}: an index of another state of the corpus (digest {manifest.corpus_digest},"
                f" now {corpus.digest}); run `carrara embed {root} --encoder {encoder} "
                f"--overwrite`, then `carrara index {root} --encoder {encoder} --overwrite`"
            )
        return cls(root, corpus, manifest)

    @property
    def encoder(self) -> str:
        return self.manifest.encoder

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    def neighbours(
        self, vectors: np.ndarray, k: int, modality: Modality
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and row numbers [n, min(k, num_rows)]; -1 where a graph found no more."""
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.dim:
            raise InputError(
                f"query vectors of shape {vectors.shape}: the index by {self.encoder!r} takes "
                f"[n, {self.manifest.dim}]"
            )
        return knn.search(self._index(modality), vectors, k)

    def search(self, vectors: np.ndarray, k: int, modality: Modality = "image") -> list[list[Hit]]:
        """For each vector [n, d] its k nearest pictures, or captions; fewer in a small corpus."""
        similarities, rows = self.neighbours(vectors, k, modality)
        return [
            [
                self._hit(rank, float(similarity), int(row))
                for rank, (similarity, row) in enumerate(zip(*answer, strict=True), 1)
                if row >= 0
            ]
            for answer in zip(similarities, rows, strict=True)
        ]

    def read_images(self, hits: Sequence[Hit]) -> dict[str, bytes]:
        """The encoded pictures of these hits, by uid, from the shards."""
        images = {}
        for shard in self._corpus.shards:
            wanted = {hit.key: hit.uid for hit in hits if hit.shard == shard.name}
            samples = iter_samples(self._root, shard)
            while wanted:
                sample = next(samples, None)
                if sample is None:
                    raise DamagedError(
                        f"{self._root}: shard {shard.name} lacks {', '.join(wanted)}, which the "
                        f"index has; `carrara verify {self._root}` tells what is damaged"
                    )
                if uid := wanted.pop(sample.key, None):
                    images[uid] = sample.image
        return images

    def _hit(self, rank: int, similarity: float, row: int) -> Hit:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        part = self.manifest.parts[number]
        place = row - int(self._starts[number])
        metadata = self._metadata(part.file_number).slice(place, 1).to_pylist()[0]
        return Hit(
            rank=rank,
            similarity=similarity,
            uid=metadata["uid"],
            key=metadata["image_path"],
            shard=part.shard,
            caption=metadata["caption"],
            url=metadata["url"],
            metadata=metadata,
        )

    def _read_index(self, modality: Modality) -> faiss.Index:
        (segment,) = self.manifest.segments
        name = segment.index_name(modality)
        with storage.local_copy(storage.join(self._folder, name)) as path:
            index = knn.read_index(path)
        if (index.ntotal, index.d) != (self.manifest.num_rows, self.manifest.dim):
            raise DamagedError(
                f"{self._folder}: {name} has {index.ntotal} rows of {index.d}, "
                f"index.json says {self.manifest.num_rows} of {self.manifest.dim}; remove it "
                f"and run `carrara index {self._root}` again"
            )
        return index

    def _read_metadata(self, file_number: str) -> pa.Table:
        name = metadata_name(file_number)
        url = storage.join(self._folder, name)
        data = storage.read_bytes(url) if storage.exists(url) else b""
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name]:
            raise DamagedError(
                f"{url}: is not what index.json says it is; remove it and run "
                f"`carrara index {self._root}` again"
            )
        return pq.read_table(io.BytesIO(data))


def row_starts(parts: Sequence[Part]) -> dict[str, int]:
    """The row number that each shard's rows begin with."""
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    return {part.shard: int(start) for part, start in zip(parts, starts[:-1], strict=True)}
