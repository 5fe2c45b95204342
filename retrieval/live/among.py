"""The nearest of those rows that may be shown, by faiss: an index and a set of rows in it.

A flat index, a graph and inverted lists all skip rows while they search (faiss's IDSelector), so
that k answers come back; what can't (PQ and RaBitQ fast-scan without lists) is asked for more and
more until k are left.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import faiss
import numpy as np

Parameters = dict[str, int]
"""nprobe, efSearch, k_factor; what is not named is as the index itself has it."""


Found = tuple[np.ndarray, np.ndarray]
"""Similarities and row numbers, [n, k] each, best first; -inf and -1 where there are no more."""


class AllowedRows:
    """Those rows of an index that may be answered with."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        """bool [ntotal]"""
        self.num = int(np.count_nonzero(mask))

    @property
    def share(self) -> float:
        return self.num / len(self.mask)

    @classmethod
    def unpacked(cls, bits: np.ndarray, num_rows: int) -> "AllowedRows":
        """Of what `packed` gave."""
        return cls(np.unpackbits(bits, count=num_rows, bitorder="little").astype(bool))

    @cached_property
    def packed(self) -> tuple[np.ndarray, int]:
        """Eight rows a byte, and their number."""
        return np.packbits(self.mask, bitorder="little"), len(self.mask)

    @cached_property
    def selector(self) -> faiss.IDSelector:
        """Of the array itself, which it then keeps: threads that meet here may each pack their own,
        and the one that is left in `packed` needn't be this one's."""
        bits, _ = self.packed
        make: Any = faiss.IDSelectorBitmap  # type checkers don't know that it takes arrays
        selector: faiss.IDSelector = make(bits)
        return selector


class _Chosen(NamedTuple):
    """Which rows faiss may answer with."""

    selector: faiss.IDSelector | None = None
    share: float = 1.0
    """Of all rows. A graph's search goes through the others, too, and of those that it keeps in
    sight this share can be answered with: it keeps as many times more."""


def search_among(
    index: faiss.Index,
    queries: np.ndarray,
    k: int,
    allowed: AllowedRows | None,
    parameters: Parameters,
) -> Found:
    """The k nearest of `allowed` rows; None: of all.

    Inverted lists are looked into, more and more of them, until k are
    found or there are no more lists.
    """
    depth = min(k, index.ntotal if allowed is None else allowed.num)
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), -1, np.int64)
    if not depth or not len(queries):
        return similarities, ids
    similarities[:, :depth], ids[:, :depth] = _search(index, queries, depth, allowed, parameters)
    similarities[ids < 0] = -np.inf
    return similarities, ids


def _search(
    index: faiss.Index,
    queries: np.ndarray,
    k: int,
    allowed: AllowedRows | None,
    parameters: Parameters,
) -> Found:
    if not takes_selector(index):
        return _overask(index, queries, k, allowed)
    chosen = _Chosen() if allowed is None else _Chosen(allowed.selector, allowed.share)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        found: Found = index.search(queries, k, params=_parameters(index, chosen, parameters))
        return found
    num_probes = min(parameters.get("nprobe", ivf.nprobe), ivf.nlist)
    while True:
        settings = _parameters(index, chosen, parameters | {"nprobe": num_probes})
        similarities, ids = index.search(queries, k, params=settings)
        if num_probes == ivf.nlist or not (ids < 0).any():
            return similarities, ids
        num_probes = min(2 * num_probes, ivf.nlist)


def takes_selector(index: faiss.Index) -> bool:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return takes_selector(index.index)
    if isinstance(index, faiss.IndexRefine):
        return takes_selector(index.base_index)
    return not isinstance(index, faiss.IndexFastScan) or isinstance(index, faiss.IndexIVF)


def _parameters(
    index: faiss.Index, chosen: _Chosen, parameters: Parameters
) -> faiss.SearchParameters:
    """For whatever the index is made of, from the outside in."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, chosen, parameters)
        return _with(faiss.SearchParametersPreTransform(), index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, chosen, parameters)
        factor = parameters.get("k_factor", index.k_factor)
        return _with(faiss.IndexRefineSearchParameters(), base_index_params=inner, k_factor=factor)
    if isinstance(index, faiss.IndexHNSW):
        breadth = int(parameters.get("efSearch", index.hnsw.efSearch) / chosen.share)
        names: Any = faiss  # type checkers miss this one
        return _with(names.SearchParametersHNSW(), sel=chosen.selector, efSearch=breadth)
    if isinstance(index, faiss.IndexIVF):
        probes = parameters.get("nprobe", index.nprobe)
        return _with(faiss.SearchParametersIVF(), sel=chosen.selector, nprobe=probes)
    return _with(faiss.SearchParameters(), sel=chosen.selector)


def _with(settings: Any, **fields: Any) -> faiss.SearchParameters:
    for name, value in fields.items():
        setattr(settings, name, value)
    made: faiss.SearchParameters = settings
    return made


def _overask(index: faiss.Index, queries: np.ndarray, k: int, allowed: AllowedRows | None) -> Found:
    if allowed is None:
        everything: Found = index.search(queries, k)
        return everything
    depth = k
    while True:
        depth = min(2 * depth, index.ntotal)
        similarities, ids = index.search(queries, depth)
        is_shown = (ids >= 0) & allowed.mask[ids]
        if depth == index.ntotal or (is_shown.sum(axis=1) >= k).all():
            break
    first = np.argsort(~is_shown, axis=1, kind="stable")[:, :k]
    ids = np.where(is_shown, ids, -1)
    return np.take_along_axis(similarities, first, 1), np.take_along_axis(ids, first, 1)


def best_of(found: Sequence[Found], k: int) -> Found:
    """The best k of several answers to the same queries, as one."""
    similarities = np.concatenate([one for one, _ in found], axis=1)
    rows = np.concatenate([one for _, one in found], axis=1)
    best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, best, 1), np.take_along_axis(rows, best, 1)
