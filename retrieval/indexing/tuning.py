"""The cheapest search parameters with which an index finds enough.

Cheap by a count of the bytes that a query reads, not by a clock: the same index and the same
queries give the same parameters.
"""

from collections.abc import Iterator

import faiss

from retrieval.indexing.exam import Exam
from retrieval.indexing.manifest import RECALL_AT, Parameters

K_FACTORS = (128, 64, 32, 16, 8, 4, 2)
"""Candidates that are compared again with finer vectors, as multiples of k."""
BREADTHS = (16, 2048)
"""HNSW's efSearch, the smallest and the largest tried."""
REFINED_WEIGHT = 4
"""What a byte of a candidate's finer vector costs beside one of a list: it lies anywhere in memory,
lists are read in order. Measured with PQ fast-scan at 100,000 x 512: 3 GB/s beside 10."""


def tuned(index: faiss.Index, exam: Exam, recall: float) -> tuple[Parameters, float]:
    """The cheapest parameters that reach `recall` on these queries, and what they reach.

    Where none does: the widest.
    """
    index = faiss.downcast_index(index)
    best: tuple[Parameters, float] | None = None
    limit = float("inf")
    for ladder in _ladders(index):
        for parameters in ladder:
            dearness = cost(index, parameters)
            if dearness >= limit:
                break
            reached = exam.recall(index, parameters)
            if reached >= recall:
                best, limit = (parameters, reached), dearness
                break
        if best is None:  # not even with the most candidates
            return parameters, reached
    assert best is not None
    return best


def _ladders(index: faiss.Index) -> Iterator[Iterator[Parameters]]:
    """Settings to try, each ladder from cheap to dear; the ladder that reaches highest first."""
    ivf = faiss.try_extract_index_ivf(_listed(index))
    if isinstance(index, faiss.IndexRefine):
        # More candidates than half the rows are no candidates.
        most = max(K_FACTORS[-1], index.ntotal // (2 * RECALL_AT))
        for factor in (one for one in K_FACTORS if one <= most):
            probes = _steps(1, ivf.nlist) if ivf is not None else [0]
            yield ({"k_factor": factor} | ({"nprobe": num} if num else {}) for num in probes)
    elif ivf is not None:
        yield ({"nprobe": num} for num in _steps(1, ivf.nlist))
    elif isinstance(index, faiss.IndexHNSW):
        yield ({"efSearch": breadth} for breadth in _steps(*BREADTHS))
    else:
        yield iter([{}])


def _listed(index: faiss.Index) -> faiss.Index:
    return index.base_index if isinstance(index, faiss.IndexRefine) else index


def _steps(first: int, last: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to and with the last."""
    step = first
    while step < last:
        yield step
        if step > 1 and step * 3 // 2 < last:
            yield step * 3 // 2
        step *= 2
    yield last


def cost(index: faiss.Index, parameters: Parameters) -> float:
    """Bytes that a query reads, weighed; of a graph, its breadth."""
    index = faiss.downcast_index(index)
    total = float(parameters.get("efSearch", 0))
    ivf = faiss.try_extract_index_ivf(_listed(index))
    if ivf is not None:
        total += parameters["nprobe"] / ivf.nlist * index.ntotal * ivf.code_size
    if isinstance(index, faiss.IndexRefine):
        finer: int = faiss.downcast_index(index.refine_index).sa_code_size()
        total += REFINED_WEIGHT * parameters["k_factor"] * RECALL_AT * finer
    return total
