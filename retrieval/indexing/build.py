"""One faiss index over a stream of vectors: trained on a sample, filled a part at a time.

The same vectors give the same bytes: samples are evenly spaced, k-means starts from a fixed seed,
and a graph, whose links depend on who came first, is built on one thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np

from retrieval import knn
from retrieval.indexing.kinds import unusable

EF_CONSTRUCTION = 200
"""HNSW's breadth while building (Malkov & Yashunin 2018, section 4)."""
ROWS_A_LIST = 40
"""Rows that k-means sees for each centroid: faiss asks for 39 at least."""
ENCODER_ROWS = 65_536
"""That a quantizer without lists is trained on."""
BLOCK_ROWS = 16_384
"""Added at once."""


def built_index(
    kind: str,
    stream: knn.Vectors,
    held_out: np.ndarray,
    max_sample_bytes: int,
) -> faiss.Index:
    """An index of that faiss factory string over the stream's rows.

    No row in `held_out` is trained on. Raises ConfigError for a kind that can't be trained on so
    many.
    """
    index = faiss.index_factory(stream.dim, kind, faiss.METRIC_INNER_PRODUCT)
    num_threads = faiss.omp_get_max_threads()
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = EF_CONSTRUCTION
        num_threads = 1
    try:
        _train(index, stream, held_out, max_sample_bytes)
    except RuntimeError as error:
        raise unusable(kind, stream.num_rows, stream.dim, error) from error
    _reserve(index, stream.num_rows)
    with _threads(num_threads):
        for rows in stream:
            for start in range(0, len(rows), BLOCK_ROWS):
                index.add(rows[start : start + BLOCK_ROWS])
    return index


def _train(index: faiss.Index, stream: knn.Vectors, held_out: np.ndarray, max_bytes: int) -> None:
    """On pictures, or on captions, alone: with captions among the pictures some centroids lie where
    captions are, win every query by words, and hold no picture (docs/knn-index.md)."""
    if index.is_trained:
        return
    ivf = faiss.try_extract_index_ivf(index)
    num = ENCODER_ROWS
    if ivf is not None:
        num = ROWS_A_LIST * ivf.nlist
        # A small RAM gives small samples, which is no reason to warn on stderr.
        ivf.cp.min_points_per_centroid = 1
    max_rows = max(1, max_bytes // (4 * stream.dim))
    index.train(_sample(stream, min(num, max_rows), held_out))


def _sample(stream: knn.Vectors, num: int, held_out: np.ndarray) -> np.ndarray:
    """At most so many rows, evenly spaced, none of those held out where there are others."""
    rows = knn.evenly_spaced(stream.num_rows, num)
    others = np.setdiff1d(rows, held_out)
    return stream.take(others if len(others) else rows)


def _reserve(index: faiss.Index, num_rows: int) -> None:
    """Room for all codes that lie in one piece: growing by doubling, they would need it twice."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        _reserve(index.base_index, num_rows)
        _reserve(index.refine_index, num_rows)
    elif isinstance(index, faiss.IndexHNSW):
        _reserve(index.storage, num_rows)
    elif isinstance(index, faiss.IndexFlatCodes):
        index.codes.resize(num_rows * index.code_size)
        index.codes.resize(0)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
