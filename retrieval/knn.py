"""Nearest neighbours by inner product of unit vectors: exact, and through faiss indices.

Ids are row positions over a list of parts, in their order. n queries, k neighbours, d dimensions.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from infra.errors import ConfigError, DamagedError
from retrieval.embeddings import Modality, Part, read_array

EF_CONSTRUCTION, EF_SEARCH = 200, 64
"""HNSW's breadth (Malkov & Yashunin 2018, section 4) while building and by default in searches."""
NUM_PROBES = 64
"""IVF lists looked into by default."""
TRAINING_ROWS_A_LIST = 64
"""Rows that k-means sees for each centroid; faiss asks for 39 at least and uses 256 at most."""
TIE = 1e-6
"""Similarities nearer than this are equal: float16 copies of one picture differ by less."""


class VectorStream:
    """One modality's rows over all parts, read a part at a time."""

    def __init__(self, folder: str, parts: list[Part], modality: Modality) -> None:
        self._folder, self._parts, self._modality = folder, parts, modality
        self.num_rows = sum(part.num_rows for part in parts)

    def __iter__(self) -> Iterator[np.ndarray]:
        """[rows of a part, d] float32, part after part."""
        for part in self._parts:
            yield read_array(self._folder, part, self._modality).astype(np.float32)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The rows [len(ids), d] at sorted ids."""
        found, start = [], 0
        for rows in self:
            here = ids[(ids >= start) & (ids < start + len(rows))] - start
            found.append(rows[here])
            start += len(rows)
        return np.concatenate(found)


def check_kind(kind: str, num_rows: int, dim: int) -> None:
    """Raises ConfigError for a kind that faiss doesn't know or can't build over so many rows."""
    try:
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _unusable(kind, num_rows, dim, error) from error
    if isinstance(index, faiss.IndexIDMap):
        raise _unusable(kind, num_rows, dim, "it takes ids of its own; here they are the rows")
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None and ivf.nlist > num_rows:
        raise _unusable(kind, num_rows, dim, f"{ivf.nlist:,} lists are more than the rows")


def build_index(kind: str, stream: VectorStream, dim: int) -> faiss.Index:
    """An index of that faiss factory string over the stream's rows.

    Raises ConfigError for a kind that can't be trained on them.
    """
    index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.nprobe = min(NUM_PROBES, ivf.nlist)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
    if not index.is_trained:
        num = TRAINING_ROWS_A_LIST * ivf.nlist if ivf is not None else stream.num_rows
        try:
            index.train(stream.take(evenly_spaced(stream.num_rows, num)))
        except RuntimeError as error:
            raise _unusable(kind, stream.num_rows, dim, error) from error
    for rows in stream:
        index.add(rows)
    return index


def _unusable(kind: str, num_rows: int, dim: int, reason: object) -> ConfigError:
    # faiss puts the C++ function and its source line before the reason.
    text = re.sub(r"^Error in .* at \S+: ", "", str(reason).splitlines()[0])
    return ConfigError(
        f"kind {kind!r}: faiss can't build it over {num_rows:,} rows of {dim} ({text}); leave it "
        "out, or give a faiss factory string such as HNSW32 or IVF64,SQ8"
    )


def read_index(path: Path) -> faiss.Index:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise DamagedError(
            f"{path}: not a faiss index; remove it and run `carrara index` again"
        ) from error


def search(index: faiss.Index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities [n, k] and ids [n, k], best first, k at most the number of rows.

    An IVF index that finds too few in its lists looks into more of them. A graph may still leave
    places empty at the end of a row: their id is -1.
    """
    k = min(k, index.ntotal)
    queries = np.ascontiguousarray(queries, np.float32)
    similarities, ids = index.search(queries, k)
    ivf = faiss.try_extract_index_ivf(index)
    num_probes = ivf.nprobe if ivf is not None else 0
    while ivf is not None and (ids < 0).any() and num_probes < ivf.nlist:
        num_probes = min(2 * num_probes, ivf.nlist)
        in_lists = faiss.SearchParametersIVF()
        in_lists.nprobe = num_probes
        parameters: faiss.SearchParameters = in_lists
        if isinstance(index, faiss.IndexPreTransform):
            parameters = faiss.SearchParametersPreTransform()
            parameters.index_params = in_lists
        similarities, ids = index.search(queries, k, params=parameters)
    return similarities, ids


def search_exactly(
    stream: VectorStream, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, by comparing with every row."""
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


def recall(
    index: faiss.Index,
    stream: VectorStream,
    queries: np.ndarray,
    k: int,
    own_ids: np.ndarray | None = None,
) -> float:
    """Mean share of the k truly nearest rows that the index finds.

    `own_ids` [n] are the rows that the queries themselves are in: found or not, they don't count.
    Rows as near as the k-th are as good as it.
    """
    num_own = 0 if own_ids is None else 1
    k = min(k, stream.num_rows - num_own)
    if k < 1:
        return 1.0
    # Deeper than k, so that what ties with the k-th is seen.
    true_similarities, true_ids = search_exactly(stream, queries, 3 * k + num_own)
    _, found = search(index, queries, k + num_own)
    shares = []
    for i in range(len(queries)):
        own = -1 if own_ids is None else int(own_ids[i])
        others = true_ids[i] != own
        threshold = true_similarities[i][others][k - 1] - TIE
        good = set(true_ids[i][others & (true_similarities[i] >= threshold)].tolist())
        answer = [row for row in found[i].tolist() if row != own][:k]
        shares.append(len(good.intersection(answer)) / k)
    return float(np.mean(shares))


def evenly_spaced(num_rows: int, num: int) -> np.ndarray:
    """At most `num` ids over all rows, sorted: a sample that needs no seed."""
    return np.unique(np.linspace(0, num_rows - 1, min(num, num_rows)).round().astype(np.int64))
