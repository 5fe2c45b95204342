"""The nearest among few rows, by comparing with each of them as it was embedded."""

import math

import faiss
import numpy as np

from retrieval.live.among import Found, best_of
from retrieval.live.vectors import StoredVectors

MAX_ROWS = 20_000
"""Up to which comparing with all allowed rows is quicker than an index that skips the others, or no
slower and exact (`python -m benchmarks.live_index`)."""
GRAPH_ROWS = 3_200
"""A graph takes about 1 ms over the share of its rows that are allowed, comparing 1 ms for each
3,200 rows: n of N rows take as long either way where n^2 = 3,200 N (the same benchmark)."""
ROWS_AT_ONCE = 1 << 10
"""They stay in the processor's cache: half the time of all at once."""


def max_rows(num_rows: int, is_graph: bool) -> int:
    """Up to how many allowed rows of an index are to be compared with."""
    return max(MAX_ROWS, math.isqrt(GRAPH_ROWS * num_rows)) if is_graph else MAX_ROWS


def search_exactly_among(
    stored: StoredVectors, rows: np.ndarray, queries: np.ndarray, k: int
) -> Found:
    """Similarities [n, k] and row numbers [n, k] of these sorted rows; -inf and -1 beyond them."""
    index = faiss.IndexScalarQuantizer(
        stored.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.is_trained = True  # half precision has nothing to learn
    found = [(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1))]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        index.reset()
        index.add_sa_codes(stored.take(some).view(np.uint8))
        depth = min(k, len(some))
        similarities, places = index.search(queries, depth)
        found = [best_of([*found, (similarities, some[places])], k)]
    return found[0]
