"""One state of an index and its tombstones, opened: what a search sees from its start to its end.

Reads   ROOT/index/<encoder>/, ROOT/embeddings/<encoder>/, ROOT/tombstones.parquet; and ROOT/shards/
        when pictures are asked for

Whatever is appended, taken down or compacted meanwhile: its files are memory-mapped when it is
opened, so that they stay as they were, and row numbers mean the same rows.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline.corpus import PLACE_SCHEMA
from pipeline.takedown.tombstones import Tombstones
from retrieval.embedding.embeddings import MODALITIES, Modality, embeddings_url, index_url
from retrieval.indexing.manifest import IndexManifest, Segment
from retrieval.live.among import AllowedRows, Found, best_of
from retrieval.live.columns import Columns
from retrieval.live.exact import max_rows, search_exactly_among
from retrieval.live.images import Place, Wanted, read_images
from retrieval.live.metadata import Metadata
from retrieval.live.removal import Removal
from retrieval.live.segments import LocalSegments, Segments
from retrieval.live.vectors import StoredVectors, map_array, stored_vectors

OpenSegments = Callable[[str, Sequence[Segment], int], Segments]
"""Of the index's folder, its segments and their dimensions."""


@dataclass(frozen=True)
class Hit:
    """A sample that answers a query."""

    rank: int
    """From 1."""
    similarity: float
    """Cosine of the query and the sample's picture, or caption, as the index keeps it."""
    row: int
    """Its number in the state of the index that answered."""
    uid: str
    key: str
    shard: str
    caption: str
    url: str
    metadata: dict[str, object] = field(repr=False)
    """All that is known of the sample, by img2dataset's names."""


class Snapshot:
    """An index as its index.json tells of it, without the rows under these tombstones."""

    def __init__(
        self,
        root: str,
        manifest: IndexManifest,
        tombstones: Tombstones,
        before: "Snapshot | None" = None,
        open_segments: OpenSegments = LocalSegments,
    ) -> None:
        """What `before` has read of the same files is taken over from it."""
        self.root = root
        self.manifest = manifest
        self.max_exact = {modality: _max_exact(manifest, modality) for modality in MODALITIES}
        """Allowed rows up to which all of them are compared with."""
        folder = index_url(root, manifest.encoder)
        self.segments = open_segments(folder, manifest.segments, manifest.dim)
        self._starts = np.cumsum([0, *(one.num_rows for one in manifest.segments)])
        earlier = None if before is None else before._metadata
        self._metadata: Metadata = Metadata(folder, manifest.parts, earlier)
        self.columns = Columns(root, self._metadata)
        self._removal = Removal(self._metadata, self.columns)
        self._vectors = stored_vectors(root, manifest)
        self.groups: np.ndarray = _groups(folder, manifest)
        """int64 [num_rows]: the smallest row number of each row's near duplicates."""
        self._remove(tombstones)

    def without(self, tombstones: Tombstones) -> "Snapshot":
        """The same index under other tombstones."""
        if tombstones.digest == self.tombstones.digest:
            return self
        other = copy.copy(self)
        other._remove(tombstones)
        return other

    def scored_anew(self) -> "Snapshot":
        """The same index, with the corpus's columns as they are now."""
        other = copy.copy(self)
        other.columns = Columns(self.root, self._metadata)
        other._removal = Removal(self._metadata, other.columns)
        other._remove(self.tombstones)
        return other

    def _remove(self, tombstones: Tombstones) -> None:
        self.tombstones = tombstones
        self.removed: np.ndarray = self._removal.rows(tombstones)
        """bool [num_rows]"""
        nothing_removed: list[AllowedRows | None] = [None] * len(self.manifest.segments)
        self._shown = self._by_segment(~self.removed) if self.removed.any() else nothing_removed

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    def neighbours(
        self,
        vectors: np.ndarray,
        k: int,
        modality: Modality,
        allowed: np.ndarray | None = None,
        asked_by: Modality | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities [n, k'] and row numbers [n, k'], best first, k' at most the rows there are.

        Never a removed row, and of the others those that `allowed` bool [num_rows] is true of. A
        row's end is filled with -1 where there are no more.

        `asked_by` says what the vectors are, captions or pictures, since either is searched for as
        widely as it needs; None, for what is of both kinds or not known: as widely as both.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.dim:
            raise InputError(
                f"query vectors of shape {vectors.shape}: the index by {self.manifest.encoder!r} "
                f"takes [n, {self.manifest.dim}]"
            )
        queries = np.ascontiguousarray(vectors, np.float32)
        k = min(k, self.num_rows)
        stored = self._stored(modality)
        if allowed is not None:
            assert allowed.shape == (self.num_rows,), allowed.shape
            allowed = allowed & ~self.removed
            is_few = np.count_nonzero(allowed) <= self.max_exact[modality]
            if is_few and stored is not None and stored.is_local:
                return search_exactly_among(stored, np.flatnonzero(allowed), queries, k)
        among = self._shown if allowed is None else self._by_segment(allowed)
        answers = self.segments.search(queries, k, modality, among, asked_by)
        return best_of(
            [
                self._completed(answer, number, among[number], queries, modality)
                for number, answer in enumerate(answers)
            ],
            k,
        )

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        modality: Modality = "image",
        allowed: np.ndarray | None = None,
        asked_by: Modality | None = None,
    ) -> list[list[Hit]]:
        """For each vector [n, d] its k nearest pictures, or captions; fewer in a small corpus."""
        similarities, rows = self.neighbours(vectors, k, modality, allowed, asked_by)
        return [self.hits(*answer) for answer in zip(rows, similarities, strict=True)]

    def hits(self, rows: np.ndarray, similarities: np.ndarray) -> list[Hit]:
        """One query's answers, in their order; places that are -1 left out."""
        is_there = rows >= 0
        rows, similarities = rows[is_there], similarities[is_there]
        known = zip(rows.tolist(), similarities.tolist(), self._metadata.rows_at(rows), strict=True)
        return [self._hit(rank, *one) for rank, one in enumerate(known, 1)]

    def vectors(self, rows: np.ndarray, modality: Modality) -> np.ndarray:
        """[len(rows), d] float32, as embedded."""
        if self._vectors is None:
            raise InputError(
                f"{embeddings_url(self.root, self.manifest.encoder)}: not there, or others than "
                f"the index by {self.manifest.encoder!r} was made of; run `carrara embed` and "
                f"`carrara index` on {self.root}"
            )
        return self._vectors[modality].take(np.asarray(rows, np.int64)).astype(np.float32)

    def urls(self, rows: np.ndarray) -> list[str]:
        """Of each of these rows."""
        return [str(url or "") for url in self._metadata.column_at(rows, "url")]

    def read_images(
        self, hits: Sequence[Hit], on_damage: Callable[[DamagedError], None] | None = None
    ) -> dict[str, bytes]:
        """The encoded pictures of these hits, by uid; those that were taken down are left out.

        Raises DamagedError for a shard that lacks what it lists, unless `on_damage` is to hear of
        it: then its pictures are left out, too.
        """
        wanted: Wanted = {}
        for hit in hits:
            match [hit.metadata.get(name) for name in PLACE_SCHEMA.names]:
                case [int(offset), int(size)]:
                    place: Place | None = (offset, size)
                case _:
                    place = None
            wanted.setdefault(hit.shard, []).append((hit.uid, place))
        return read_images(self.root, wanted, on_damage)

    def select(self, where: str) -> np.ndarray:
        """bool [num_rows]: where this SQL expression over the columns is true."""
        return self.columns.select(where)

    def row_of(self, uid: str) -> int | None:
        """None for what is no uid, is not there, or was taken down."""
        if not re.fullmatch("[0-9a-f]{32}", uid):
            return None
        rows = self._metadata.rows_of([uid])
        shown = rows[~self.removed[rows]]
        return int(shown[0]) if len(shown) else None

    def row_beginning(self, prefix: int, num_bits: int) -> int | None:
        """The first that is shown of the rows whose uid begins with these bits, at most 64."""
        rows = self._metadata.rows_beginning(prefix, num_bits)
        shown = rows[~self.removed[rows]]
        return int(shown[0]) if len(shown) else None

    def _completed(
        self,
        answer: Found,
        number: int,
        allowed: AllowedRows | None,
        queries: np.ndarray,
        modality: Modality,
    ) -> Found:
        """A segment's answer by the row numbers of all: a graph does not reach every row, and what
        it left empty is found by comparing with all."""
        similarities, ids = answer
        start, end = self._starts[number : number + 2]
        rows = np.where(ids < 0, -1, ids + start)
        stored, k = self._stored(modality), ids.shape[1]
        num = end - start if allowed is None else allowed.num
        short = np.flatnonzero((ids[:, : min(k, num)] < 0).any(axis=1))
        if len(short) and stored is not None:
            mask = np.ones(num, bool) if allowed is None else allowed.mask
            similarities = similarities.copy()  # an actor's answer can't be written to
            similarities[short], rows[short] = search_exactly_among(
                stored, start + np.flatnonzero(mask), queries[short], k
            )
        return similarities, rows

    def _stored(self, modality: Modality) -> StoredVectors | None:
        return None if self._vectors is None else self._vectors[modality]

    def _by_segment(self, allowed: np.ndarray) -> "list[AllowedRows | None]":
        return [AllowedRows(rows) for rows in np.split(allowed, self._starts[1:-1])]

    def _hit(self, rank: int, row: int, similarity: float, metadata: dict[str, object]) -> Hit:
        return Hit(
            rank=rank,
            similarity=similarity,
            row=row,
            uid=str(metadata["uid"]),
            key=str(metadata["image_path"]),
            shard=self._metadata.shard_of(row),
            caption=str(metadata["caption"] or ""),
            url=str(metadata["url"] or ""),
            metadata=metadata,
        )


def _max_exact(manifest: IndexManifest, modality: Modality) -> int:
    is_graph = any(one.kinds[modality].startswith("HNSW") for one in manifest.segments)
    return max_rows(manifest.num_rows, is_graph)


def _groups(folder: str, manifest: IndexManifest) -> np.ndarray:
    url = storage.join(folder, manifest.groups_name)
    groups = map_array(url)
    if groups.shape != (manifest.num_rows,):
        raise DamagedError(
            f"{url}: groups of {groups.shape} rows, index.json has {manifest.num_rows}; run "
            "`carrara index` again with --overwrite"
        )
    return groups
