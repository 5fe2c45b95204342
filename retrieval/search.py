"""Answers from an index that may change: vectors in, samples of the corpus out, best first.

Reads   ROOT/manifest.json, ROOT/index/<encoder>/, ROOT/tombstones.parquet, ROOT/embeddings/ and
        ROOT/columns/ for what asks for them, ROOT/shards/ when pictures are asked for

What an index answers with are row numbers. They are looked up only in the metadata that its own
index.json names and digests, and the index itself must be of the corpus as it is now: a wrong
caption under a picture is worse than an error.

A Retriever holds one state at a time; `refresh` exchanges it for what is on disk now. Row numbers
mean something within one state: whoever takes several steps for one answer takes `state` once and
asks that.
"""

from collections.abc import Sequence
from threading import Lock

import numpy as np

from infra import storage
from infra.errors import CarraraError, ConflictError, DamagedError
from infra.records import read_record
from pipeline.corpus import manifest_url, read_manifest
from pipeline.takedown.tombstones import read_tombstones, tombstones_url
from retrieval.embeddings import Modality, Part, choose_encoder, index_url
from retrieval.indexing.manifest import IndexManifest
from retrieval.live.snapshot import Hit, Snapshot

__all__ = ["Hit", "Retriever", "Snapshot", "row_starts"]

NUM_TRIES = 5
"""To open an index while others write to it; each write takes longer than that."""


class Retriever:
    """One encoder's indices over one corpus."""

    def __init__(self, root: str, state: Snapshot, versions: tuple[str | None, ...]) -> None:
        self.root = root
        self.state = state
        """What is asked now; it stays as it is when another takes its place."""
        self._versions = versions
        self._lock = Lock()

    @classmethod
    def open(cls, root: str, encoder: str | None = None) -> "Retriever":
        """Raises InputError where there is no index or several, ConflictError for a stale one."""
        encoder = choose_encoder(root, "index", encoder)
        return cls(root, *_open(root, encoder, None))

    def refresh(self) -> bool:
        """Take up what was appended, taken down or built anew; whether anything was.

        Searches under way keep the state that they began with. While an index is being replaced
        the one that was there goes on answering, without what is taken down meanwhile.
        """
        with self._lock:
            if _versions(self.root, self.encoder) == self._versions:
                return False
            before = self.state
            self.state, self._versions = _open(self.root, self.encoder, before)
            return self.state is not before

    @property
    def manifest(self) -> IndexManifest:
        return self.state.manifest

    @property
    def encoder(self) -> str:
        return self.manifest.encoder

    @property
    def num_rows(self) -> int:
        """Of the index, those that were taken down included."""
        return self.manifest.num_rows

    @property
    def groups(self) -> np.ndarray:
        """int64 [num_rows]: the smallest row number of each row's near duplicates."""
        return self.state.groups

    @property
    def removed(self) -> np.ndarray:
        """bool [num_rows]: taken down."""
        return self.state.removed

    def neighbours(
        self, vectors: np.ndarray, k: int, modality: Modality, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.state.neighbours(vectors, k, modality, allowed)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        modality: Modality = "image",
        allowed: np.ndarray | None = None,
    ) -> list[list[Hit]]:
        return self.state.search(vectors, k, modality, allowed)

    def hits(self, rows: np.ndarray, similarities: np.ndarray) -> list[Hit]:
        return self.state.hits(rows, similarities)

    def vectors(self, rows: np.ndarray, modality: Modality) -> np.ndarray:
        return self.state.vectors(rows, modality)

    def row_of(self, uid: str) -> int | None:
        return self.state.row_of(uid)

    def select(self, where: str) -> np.ndarray:
        return self.state.select(where)

    def read_images(self, hits: Sequence[Hit]) -> dict[str, bytes]:
        return self.state.read_images(hits)


def row_starts(parts: Sequence[Part]) -> dict[str, int]:
    """The row number that each shard's rows begin with."""
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    return {part.shard: int(start) for part, start in zip(parts, starts[:-1], strict=True)}


def _open(
    root: str, encoder: str, before: Snapshot | None
) -> tuple[Snapshot, tuple[str | None, ...]]:
    """What is there now, and its versions."""
    for num_left in reversed(range(NUM_TRIES)):
        versions = _versions(root, encoder)
        try:
            state = _read(root, encoder, before)
        except (FileNotFoundError, CarraraError) as error:
            if versions != _versions(root, encoder) and num_left:
                continue
            if isinstance(error, FileNotFoundError):
                raise DamagedError(
                    f"{error.filename}: missing, though index.json names it; run `carrara index "
                    f"{root} --encoder {encoder} --overwrite`"
                ) from error
            raise
        # While files of an index are exchanged its index.json is not there.
        if versions == _versions(root, encoder):
            break
    return state, versions


def _read(root: str, encoder: str, before: Snapshot | None) -> Snapshot:
    url = storage.join(index_url(root, encoder), "index.json")
    tombstones = read_tombstones(root)
    if before is not None and not storage.exists(url):
        return before.without(tombstones)
    manifest, corpus = read_record(url, IndexManifest), read_manifest(root)
    if manifest.corpus_digest == corpus.digest:
        return Snapshot(root, manifest, tombstones, before)
    if before is not None:
        return before.without(tombstones)
    raise ConflictError(
        f"{url}: an index of another state of the corpus (digest {manifest.corpus_digest}, now "
        f"{corpus.digest}); run `carrara embed {root} --encoder {encoder}`, then `carrara index "
        f"{root} --encoder {encoder}`"
    )


def _versions(root: str, encoder: str) -> tuple[str | None, ...]:
    """Of all that a state is read from, without reading it."""
    index = storage.join(index_url(root, encoder), "index.json")
    return tuple(map(storage.version, (index, manifest_url(root), tombstones_url(root))))
