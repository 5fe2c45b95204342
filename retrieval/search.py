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
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

import numpy as np

from infra import storage
from infra.errors import CarraraError, ConflictError, DamagedError
from infra.records import read_record
from pipeline.corpus import list_signals, manifest_url, read_manifest
from pipeline.takedown.tombstones import read_tombstones, tombstones_url
from retrieval.embedding.embeddings import Modality, Part, choose_encoder, index_url
from retrieval.indexing.manifest import IndexManifest
from retrieval.live.segments import LocalSegments
from retrieval.live.snapshot import Hit, OpenSegments, Snapshot

__all__ = ["Hit", "Retriever", "Snapshot", "row_starts"]

NUM_TRIES = 5
"""To open an index while others write to it; each write takes longer than that."""


class Retriever:
    """One encoder's indices over one corpus."""

    def __init__(self, root: str, encoder: str, open_segments: OpenSegments) -> None:
        self.root = root
        self._open_segments = open_segments
        self._lock = Lock()
        self._state: Snapshot | None = None
        self._index_version: str | None = None
        self._versions: _Versions | None = None
        self._take_up(encoder)

    @classmethod
    def open(
        cls,
        root: str,
        encoder: str | None = None,
        open_segments: OpenSegments = LocalSegments,
    ) -> "Retriever":
        """Raises InputError where there is no index or several, ConflictError for a stale one.

        `retrieval.live.remote` opens the segments on a Ray cluster instead.
        """
        encoder = choose_encoder(root, "index", encoder)
        try:
            return cls(root, encoder, open_segments)
        except FileNotFoundError as error:
            raise DamagedError(
                f"{error.filename}: missing, though index.json names it; run `carrara index {root} "
                f"--encoder {encoder} --overwrite`"
            ) from error

    def refresh(self) -> bool:
        """Take up what was appended, taken down or built anew; whether anything was.

        Searches under way keep the state that they began with. While an index is being replaced,
        or where the new one can't be read, which is raised, the one that was there goes on
        answering, without what is taken down meanwhile.
        """
        with self._lock:
            before = self.state
            if _versions(self.root, self.encoder) == self._versions:
                return False
            # At once: opening another index may take its time, or fail.
            self._state = before.without(read_tombstones(self.root))
            with suppress(FileNotFoundError):  # being replaced: the next refresh looks again
                self._take_up(self.encoder)
            return self.state is not before

    @property
    def state(self) -> Snapshot:
        """What is asked now; it stays as it is when another takes its place."""
        assert self._state is not None
        return self._state

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
        self,
        vectors: np.ndarray,
        k: int,
        modality: Modality,
        allowed: np.ndarray | None = None,
        asked_by: Modality | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.state.neighbours(vectors, k, modality, allowed, asked_by)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        modality: Modality = "image",
        allowed: np.ndarray | None = None,
        asked_by: Modality | None = None,
    ) -> list[list[Hit]]:
        return self.state.search(vectors, k, modality, allowed, asked_by)

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

    def _take_up(self, encoder: str) -> None:
        """The state that is there now; raises FileNotFoundError while files of it are missing."""
        for num_left in reversed(range(NUM_TRIES)):
            versions = _versions(self.root, encoder)
            try:
                state, index_version = self._read(encoder, versions)
            except (FileNotFoundError, CarraraError):
                if versions == _versions(self.root, encoder) or not num_left:
                    raise
                continue
            # While files of an index are exchanged its index.json is not there.
            if versions == _versions(self.root, encoder) or not num_left:
                self._state, self._index_version = state, index_version
                self._versions = versions
                return

    def _read(self, encoder: str, versions: "_Versions") -> tuple[Snapshot, str | None]:
        """And which index.json it is of."""
        tombstones, state = read_tombstones(self.root), self._state
        if state is None or versions.index_json not in {self._index_version, None}:
            url = storage.join(index_url(self.root, encoder), "index.json")
            manifest, corpus = read_record(url, IndexManifest), read_manifest(self.root)
            if manifest.corpus_digest == corpus.digest:
                new = Snapshot(self.root, manifest, tombstones, state, self._open_segments)
                return new, versions.index_json
            if state is None:
                raise ConflictError(
                    f"{url}: an index of another state of the corpus (digest "
                    f"{manifest.corpus_digest}, now {corpus.digest}); run `carrara embed "
                    f"{self.root} --encoder {encoder}`, then `carrara index {self.root} --encoder "
                    f"{encoder}`"
                )
        if self._versions is not None and versions.columns != self._versions.columns:
            state = state.scored_anew()
        return state.without(tombstones), self._index_version


def row_starts(parts: Sequence[Part]) -> dict[str, int]:
    """The row number that each shard's rows begin with."""
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    return {part.shard: int(start) for part, start in zip(parts, starts[:-1], strict=True)}


class _Versions(NamedTuple):
    """Of all that a state is read from, without reading it; None: not there."""

    index_json: str | None
    corpus: str | None
    tombstones: str | None
    columns: tuple[str | None, ...]


def _versions(root: str, encoder: str) -> _Versions:
    signals = (storage.join(root, "columns", name, "manifest.json") for name in list_signals(root))
    return _Versions(
        index_json=storage.version(storage.join(index_url(root, encoder), "index.json")),
        corpus=storage.version(manifest_url(root)),
        tombstones=storage.version(tombstones_url(root)),
        columns=tuple(map(storage.version, signals)),
    )
