"""Segments: built from parts of embeddings, published whole, found again.

An index that replaces another is built beside it, under next/, and moved into its place when it is
complete: a kill leaves the old one, or the new one once the command is run again.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infra import storage
from infra.progress import track
from infra.records import read_record
from retrieval import knn
from retrieval.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Modality,
    Part,
    metadata_name,
    read_file,
)
from retrieval.indexing.duplicates import joined_groups
from retrieval.indexing.manifest import GROUPS, IndexManifest, Measurement, Segment, index_name

if TYPE_CHECKING:
    import faiss

RECALL_AT = 10
MAX_FLAT, MAX_HNSW = 50_000, 10_000_000
"""Rows up to which the exact scan is quick enough, and the graph fits one machine's memory: 512
dimensions take 2.3 kB a row in HNSW32, 0.5 kB in SQ8 (github.com/facebookresearch/faiss/wiki,
"Guidelines to choose an index")."""
NEXT = "next"


@dataclass(frozen=True)
class Goal:
    """What an index is to be."""

    kind: str | None
    num_queries: int

    def check(self, embeddings: EmbeddingsManifest) -> None:
        """Raises ConfigError for a kind that can't be."""
        if self.kind is not None:
            knn.check_kind(self.kind, embeddings.num_rows, embeddings.dim)


def kind_for(num_rows: int) -> str:
    """A faiss factory string."""
    if num_rows <= MAX_FLAT:
        return "Flat"
    if num_rows <= MAX_HNSW:
        return "HNSW32"
    # 4 sqrt(n) to 16 sqrt(n) lists, says faiss's guide; a power of two.
    return f"IVF{2 ** round(4 * num_rows**0.5).bit_length()},SQ8"


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
    segment = _segment(source, embeddings.parts, goal, work, "", None)
    manifest = _manifest(embeddings, goal, [segment])
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
    """One segment more, of these parts; what is there stays."""
    segments = list(before.segments)
    if sum(part.num_rows for part in parts):
        name = f"segments/{len(segments):04d}/"
        segments.append(_segment(source, parts, goal, folder, name, before))
    manifest = _manifest(embeddings, goal, segments)
    storage.sweep(folder)
    _publish(folder, manifest)
    return manifest


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
    there = storage.list_files(folder)
    for name in there - manifest.files.keys() - {"stamp.json", f"{NEXT}/index.json"}:
        storage.remove(storage.join(folder, name))
    storage.move(storage.join(work, "index.json"), storage.join(folder, "index.json"))
    for leftover in (NEXT, "segments"):
        storage.remove(storage.join(folder, leftover))


def _segment(
    source: str, parts: list[Part], goal: Goal, folder: str, name: str, before: IndexManifest | None
) -> Segment:
    num_rows = sum(part.num_rows for part in parts)
    dim = parts[0].dim
    kind = goal.kind or kind_for(num_rows)
    streams = {modality: knn.VectorStream(source, parts, modality) for modality in MODALITIES}
    query_ids = knn.evenly_spaced(num_rows, goal.num_queries)
    queries = {modality: streams[modality].take(query_ids) for modality in MODALITIES}
    measured: dict[Modality, dict[Modality, Measurement]] = {}
    with track("index", len(MODALITIES), "indices") as bar:
        for modality in MODALITIES:
            index = knn.build_index(kind, streams[modality], dim)
            measured[modality] = {
                asked_by: Measurement(
                    index=modality,
                    queries=asked_by,
                    kind=kind,
                    parameters={},
                    num_rows=num_rows,
                    # A picture is its own nearest in an index that it is in: it is left out.
                    recall_at_10=knn.recall(
                        index,
                        streams[modality],
                        queries[asked_by],
                        RECALL_AT,
                        query_ids if asked_by == modality else None,
                    ),
                )
                for asked_by in MODALITIES
            }
            _publish_index(storage.join(folder, f"{name}{index_name(modality)}"), index)
            bar.advance(1)
    files = [*(f"{name}{index_name(modality)}" for modality in MODALITIES), f"{name}{GROUPS}"]
    _publish_groups(storage.join(folder, files[-1]), source, before, parts)
    for part in parts:
        files.append(metadata_name(part.file_number))
        storage.publish_bytes(storage.join(folder, files[-1]), read_file(source, part, files[-1]))
    return Segment(
        name=name,
        kinds=dict.fromkeys(MODALITIES, kind),
        parameters={
            modality: {asked_by: one.parameters for asked_by, one in by.items()}
            for modality, by in measured.items()
        },
        measured=measured,
        parts=parts,
        files={file: storage.sha256(storage.join(folder, file)) for file in files},
    )


def _publish_index(url: str, index: "faiss.Index") -> None:
    import faiss

    with storage.publish(url) as path:
        faiss.write_index(index, str(path))


def _publish_groups(url: str, source: str, before: IndexManifest | None, parts: list[Part]) -> None:
    old = before.parts if before is not None else []
    groups = joined_groups(knn.VectorStream(source, [*old, *parts], "image"))
    with storage.publish(url) as path, path.open("wb") as file:
        np.save(file, groups, allow_pickle=False)


def _manifest(embeddings: EmbeddingsManifest, goal: Goal, segments: list[Segment]) -> IndexManifest:
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
        promise=None,
        num_queries=goal.num_queries,
        measured=segments[0].measured,
        frontier=[],
        segments=segments,
        files=files,
    )
