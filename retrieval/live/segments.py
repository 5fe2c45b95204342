"""An index's segments, each opened by itself, answering as one.

Reads   ROOT/index/<encoder>/image.index text.index, segments/<number>/
"""

from collections.abc import Sequence
from typing import Protocol

import faiss
import numpy as np

from infra import storage
from infra.errors import DamagedError
from retrieval.embedding.embeddings import MODALITIES, Modality
from retrieval.indexing.manifest import Segment
from retrieval.live.among import AllowedRows, Found, search_among


class Segments(Protocol):
    """All segments of one index, wherever they are."""

    def search(
        self,
        queries: np.ndarray,
        k: int,
        modality: Modality,
        allowed: Sequence[AllowedRows | None],
        asked_by: Modality | None,
    ) -> list[Found]:
        """Each segment's own answer, its row numbers counted from its first; all or an error.

        `asked_by` is what the queries are; None: of both kinds, or not known.
        """


class LocalSegments:
    """In this process, memory-mapped."""

    def __init__(self, folder: str, segments: Sequence[Segment], dim: int) -> None:
        self._segments = [OpenSegment(folder, segment, dim) for segment in segments]

    def search(
        self,
        queries: np.ndarray,
        k: int,
        modality: Modality,
        allowed: Sequence[AllowedRows | None],
        asked_by: Modality | None,
    ) -> list[Found]:
        return [
            segment.search(queries, k, modality, rows, asked_by)
            for segment, rows in zip(self._segments, allowed, strict=True)
        ]


class OpenSegment:
    """One segment's two indices, memory-mapped."""

    def __init__(self, folder: str, segment: Segment, dim: int) -> None:
        self._segment = segment
        self._indices = {
            modality: _open(storage.join(folder, segment.index_name(modality)), segment, dim)
            for modality in MODALITIES
        }

    def search(
        self,
        queries: np.ndarray,
        k: int,
        modality: Modality,
        allowed: AllowedRows | None,
        asked_by: Modality | None,
    ) -> Found:
        """Row numbers count from the segment's first."""
        parameters = self._segment.parameters_for(modality, k, asked_by)
        return search_among(self._indices[modality], queries, k, allowed, parameters)


def _open(url: str, segment: Segment, dim: int) -> faiss.Index:
    with storage.local_copy(url) as path:
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            if not path.exists():
                raise FileNotFoundError(url) from error
            raise DamagedError(
                f"{url}: not a faiss index; remove it and run `carrara index` again"
            ) from error
    if (index.ntotal, index.d) != (segment.num_rows, dim):
        raise DamagedError(
            f"{url}: has {index.ntotal} rows of {index.d}, index.json says {segment.num_rows} of "
            f"{dim}; remove it and run `carrara index` again"
        )
    return index
