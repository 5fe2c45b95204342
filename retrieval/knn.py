"""Vectors of a corpus in a stream, and their exact nearest neighbours by inner product.

Ids are row positions over a list of parts, in their order. n queries, k neighbours, d dimensions.
"""

from collections.abc import Iterator
from typing import Protocol

import faiss
import numpy as np

from infra.progress import Bar
from retrieval.embedding.embeddings import Modality, Part, read_array

TIE = 1e-6
"""Similarities nearer than this are equal: float16 copies of one picture differ by less."""


class Vectors(Protocol):
    num_rows: int
    dim: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """[rows of a part, d] float32, part after part."""

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The rows [len(ids), d] at sorted ids."""


class VectorStream:
    """One modality's rows over all parts, read a part at a time."""

    def __init__(self, folder: str, parts: list[Part], modality: Modality) -> None:
        self._folder, self._parts, self._modality = folder, parts, modality
        self.num_rows = sum(part.num_rows for part in parts)
        self.dim = parts[0].dim if parts else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """[rows of a part, d] float32, part after part."""
        for part in self._parts:
            yield read_array(self._folder, part, self._modality).astype(np.float32)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The rows [len(ids), d] at sorted ids."""
        found = np.empty((len(ids), self.dim), np.float32)
        start = 0
        for part in self._parts:
            first, last = np.searchsorted(ids, [start, start + part.num_rows])
            if first < last:
                rows = read_array(self._folder, part, self._modality)
                found[first:last] = rows[ids[first:last] - start]
            start += part.num_rows
        return found


class Sample:
    """Rows that are in memory."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self.num_rows, self.dim = rows.shape

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self._rows

    def take(self, ids: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self._rows[ids]
        return taken


class Counted:
    """Another one's rows, which a bar is told of once what was wanted of them is done."""

    def __init__(self, stream: Vectors, bar: Bar) -> None:
        self._stream, self._bar = stream, bar
        self.num_rows, self.dim = stream.num_rows, stream.dim

    def __iter__(self) -> Iterator[np.ndarray]:
        for rows in self._stream:
            yield rows
            self._bar.advance(len(rows))

    def take(self, ids: np.ndarray) -> np.ndarray:
        return self._stream.take(ids)


def search_exactly(stream: Vectors, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and ids [n, min(k, rows)], best first, by comparing with every row."""
    k = min(k, stream.num_rows)
    similarities = np.zeros((len(queries), 0), np.float32)
    ids = np.zeros((len(queries), 0), np.int64)
    start = 0
    for rows in stream:
        if len(rows):
            found = faiss.knn(queries, rows, min(k, len(rows)), faiss.METRIC_INNER_PRODUCT)
            similarities = np.concatenate([similarities, found[0]], axis=1)
            ids = np.concatenate([ids, found[1] + start], axis=1)
            best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
            similarities = np.take_along_axis(similarities, best, axis=1)
            ids = np.take_along_axis(ids, best, axis=1)
        start += len(rows)
    return similarities, ids


def evenly_spaced(num_rows: int, num: int) -> np.ndarray:
    """At most `num` ids over all rows, sorted: a sample that needs no seed."""
    return np.unique(np.linspace(0, num_rows - 1, min(num, num_rows)).round().astype(np.int64))
