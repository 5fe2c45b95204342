"""Segments: built from parts of embeddings, published whole, found again.

An index that replaces another is built beside it, under next/, and moved into its place when it is
complete: a kill leaves the old one, or the new one once the command is run again. What a killed run
had finished of a segment is found by its record (image.json, text.json) and kept.
"""

from dataclasses import dataclass

import faiss
import numpy as np

from infra import storage
from infra.config import digest_of
from infra.records import read_record
from retrieval import knn
from retrieval.embedding.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Modality,
    Part,
    metadata_name,
    read_file,
)
from retrieval.indexing.choice import Corpus, Goal, choose
from retrieval.indexing.duplicates import joined_groups
from retrieval.indexing.manifest import (
    GROUPS,
    IndexManifest,
    Measurement,
    Record,
    Segment,
    index_name,
)

NEXT = "next"


class Finished(Record):
    """One index of a segment that is not complete yet."""

    goal: str
    """Digest of all that it follows from."""
    kind: str
    measured: dict[Modality, Measurement]
    """By the kind of query."""
    frontier: list[Measurement]
    sha256: str


def current(folder: str) -> IndexManifest | None:
    """The index there, once one that is complete under next/ has taken its place."""
    if storage.exists(storage.join(folder, NEXT, "index.json")):
        _install(folder)
    url = storage.join(folder, "index.json")
    if not storage.exists(url):
        return None
    manifest = read_record(url, IndexManifest)
    return manifest if storage.list_files(folder) >= manifest.files.keys() else None


def anew(source: str, embeddings: EmbeddingsManifest, goal: Goal, folder: str) -> IndexManifest:
    """One segment of all parts, in the place of what is there."""
    work = storage.join(folder, NEXT)
    builder = _Builder(source, work, "", embeddings.parts, goal)
    segment = builder.segment([], np.zeros(0, np.int64))
    manifest = _manifest(embeddings, goal, [segment], builder.frontier)
    storage.sweep(folder)
    _publish(work, manifest)
    _install(folder)
    return manifest


def appended(
    source: str,
    embeddings: EmbeddingsManifest,
    goal: Goal,
    folder: str,
    before: IndexManifest,
    parts: list[Part],
) -> IndexManifest:
    """One segment more, of these parts; what is there stays. Raises ConfigError where what it
    leaves of a promise is too little."""
    segments, frontier = list(before.segments), before.frontier
    if sum(part.num_rows for part in parts):
        name = f"segments/{len(segments):04d}/"
        left = goal.beside(segments, embeddings.dim)
        builder = _Builder(source, folder, name, parts, left)
        segments.append(builder.segment(segments, read_groups(folder, before)))
        frontier = [*frontier, *builder.frontier]
    manifest = _manifest(embeddings, goal, segments, frontier)
    storage.sweep(folder)
    _publish(folder, manifest)
    _forget_records(folder, segments[-1].name)
    return manifest


def read_groups(folder: str, manifest: IndexManifest) -> np.ndarray:
    """[n] int64: the smallest row number of each row's near duplicates."""
    with storage.local_copy(storage.join(folder, manifest.groups_name)) as path:
        groups: np.ndarray = np.load(path, allow_pickle=False)
    return groups


@dataclass
class _Builder:
    source: str
    folder: str
    name: str
    parts: list[Part]
    goal: Goal

    def __post_init__(self) -> None:
        self.frontier: list[Measurement] = []
        self._corpus: Corpus | None = None
        promise = self.goal.promise
        settings = [self.goal.kind, self.goal.num_queries, promise and promise.model_dump()]
        self._digest = digest_of(
            [settings, self.goal.held_bytes, [part.files for part in self.parts]]
        )

    def segment(self, before: list[Segment], groups: np.ndarray) -> Segment:
        """`before` are the other segments, `groups` theirs."""
        finished: dict[Modality, Finished] = {}
        for modality in MODALITIES:
            finished[modality] = self._finished(modality) or self._build(modality)
            self.frontier += finished[modality].frontier
        self._corpus = None
        segment = Segment(
            name=self.name,
            kinds={modality: one.kind for modality, one in finished.items()},
            parameters={
                modality: {queries: each.parameters for queries, each in one.measured.items()}
                for modality, one in finished.items()
            },
            measured={modality: one.measured for modality, one in finished.items()},
            parts=self.parts,
            files={self._index_file(modality): one.sha256 for modality, one in finished.items()},
        )
        files = dict(segment.files)
        groups = joined_groups(self.source, self.folder, [*before, segment], groups)
        files |= self._publish_groups(groups) | self._publish_metadata()
        return segment.model_copy(update={"files": files})

    def _index_file(self, modality: Modality) -> str:
        return f"{self.name}{index_name(modality)}"

    def _record_url(self, modality: Modality) -> str:
        return storage.join(self.folder, record_name(self.name, modality))

    def _finished(self, modality: Modality) -> Finished | None:
        """What an earlier run, now killed, has built to the same end."""
        url = self._record_url(modality)
        if not storage.exists(url):
            return None
        record = read_record(url, Finished)
        is_there = storage.exists(storage.join(self.folder, self._index_file(modality)))
        return record if is_there and record.goal == self._digest else None

    def _build(self, modality: Modality) -> Finished:
        chosen = choose(self._read_corpus(), modality, self.goal)
        url = storage.join(self.folder, self._index_file(modality))
        with storage.publish(url) as path:
            faiss.write_index(chosen.index, str(path))
        record = Finished(
            goal=self._digest,
            kind=chosen.kind,
            measured=chosen.measured,
            frontier=chosen.frontier,
            sha256=storage.sha256(url),
        )
        storage.publish_text(self._record_url(modality), record.model_dump_json(indent=2) + "\n")
        return record

    def _read_corpus(self) -> Corpus:
        """Once: its exam compares with every row."""
        if self._corpus is None:
            streams: dict[Modality, knn.Vectors] = {
                modality: knn.VectorStream(self.source, self.parts, modality)
                for modality in MODALITIES
            }
            self._corpus = Corpus.of(streams, self.goal.num_queries)
        return self._corpus

    def _publish_groups(self, groups: np.ndarray) -> dict[str, str]:
        name = f"{self.name}{GROUPS}"
        url = storage.join(self.folder, name)
        with storage.publish(url) as path, path.open("wb") as file:
            np.save(file, groups, allow_pickle=False)
        return {name: storage.sha256(url)}

    def _publish_metadata(self) -> dict[str, str]:
        digests = {}
        for part in self.parts:
            name = metadata_name(part.file_number)
            data = read_file(self.source, part, name)
            storage.publish_bytes(storage.join(self.folder, name), data)
            digests[name] = part.files[name]
        return digests


def record_name(segment_name: str, modality: Modality) -> str:
    return f"{segment_name}{modality}.json"


def _forget_records(folder: str, segment_name: str) -> None:
    for modality in MODALITIES:
        storage.remove(storage.join(folder, record_name(segment_name, modality)))


def _publish(folder: str, manifest: IndexManifest) -> None:
    text = manifest.model_dump_json(indent=2) + "\n"
    storage.publish_text(storage.join(folder, "index.json"), text)


def _install(folder: str) -> None:
    """Move what is complete under next/ into place; goes on where a killed try stopped."""
    work = storage.join(folder, NEXT)
    manifest = read_record(storage.join(work, "index.json"), IndexManifest)
    # Rows of the old record must never be looked up in the new files.
    storage.remove(storage.join(folder, "index.json"))
    for name in sorted(storage.list_files(work) & manifest.files.keys()):
        storage.move(storage.join(work, name), storage.join(folder, name))
    for name in storage.list_files(folder) - manifest.files.keys() - {"stamp.json"}:
        if not name.startswith(f"{NEXT}/"):
            storage.remove(storage.join(folder, name))
    storage.move(storage.join(work, "index.json"), storage.join(folder, "index.json"))
    for leftover in (NEXT, "segments"):
        storage.remove(storage.join(folder, leftover))


def _manifest(
    embeddings: EmbeddingsManifest,
    goal: Goal,
    segments: list[Segment],
    frontier: list[Measurement],
) -> IndexManifest:
    files: dict[str, str] = {}
    for segment in segments:
        files |= segment.files
    return IndexManifest(
        encoder=embeddings.encoder,
        weights_digest=embeddings.weights_digest,
        dim=embeddings.dim,
        num_rows=sum(segment.num_rows for segment in segments),
        corpus_digest=embeddings.corpus_digest,
        embeddings_digest=embeddings.digest,
        promise=goal.promise,
        num_queries=goal.num_queries,
        measured={
            modality: {queries: _over_all(segments, modality, queries) for queries in MODALITIES}
            for modality in MODALITIES
        },
        frontier=frontier,
        segments=segments,
        files=files,
    )


def _over_all(segments: list[Segment], modality: Modality, queries: Modality) -> Measurement:
    """All segments as one: a query asks each in turn, so recall is their mean by rows, and times
    add up."""
    each = [segment.measured[modality][queries] for segment in segments]
    if len(each) == 1:
        return each[0]
    num_rows = sum(one.num_rows for one in each)
    return Measurement(
        index=modality,
        queries=queries,
        kind=" + ".join(dict.fromkeys(one.kind for one in each)),
        parameters={},
        num_rows=num_rows,
        recall_at_10=sum(one.recall_at_10 * one.num_rows for one in each) / num_rows,
        p50_ms=_sum([one.p50_ms for one in each]),
        p99_ms=_sum([one.p99_ms for one in each]),
        build_s=_sum([one.build_s for one in each]),
    )


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
