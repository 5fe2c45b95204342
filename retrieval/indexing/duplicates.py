"""Groups of near-duplicate pictures, found on the original vectors when an index is built.

Two pictures are near duplicates above a cosine of NEAR_DUPLICATE, and what near duplicates link is
one group. Not on what an index keeps of them: 1,000 vectors fold to 319 groups on the originals,
and to 4 on their PQ32 reconstructions.

The index proposes: each new row's neighbours in every segment, so that time grows with the rows and
not with their pairs. The vectors as they were embedded decide.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.dedup.grouping import Groups
from retrieval import knn
from retrieval.embedding.embeddings import Part
from retrieval.indexing.manifest import Segment
from retrieval.live.segments import OpenSegment
from retrieval.live.vectors import StoredVectors

NEAR_DUPLICATE = 0.94
"""clip-retrieval's, clip_back.py, `connected_components_dedup`."""
MARGIN = 0.03
"""By how much an index's own similarity may be too low for a pair to be looked at; SQ4 misses by
0.01 at 512 dimensions, lists without finer vectors by more: they propose less."""
NUM_PROPOSED, MOST_PROPOSED = 16, 1024
"""Neighbours asked for; of a row whose neighbours all are near, four times as many, and again."""
QUERIES_AT_ONCE = 1024


def joined_groups(
    source: str, folder: str, segments: Sequence[Segment], before: np.ndarray
) -> np.ndarray:
    """[n] int64: the smallest row number of each row's group.

    `before` are the groups of all segments but the last, whose rows join them.
    """
    parts = [part for segment in segments for part in segment.parts]
    dim = parts[0].dim
    originals = StoredVectors(source, parts, "image", dim)
    groups = Groups(sum(part.num_rows for part in parts))
    groups.link(np.arange(len(before)), before)
    opened = [OpenSegment(folder, one, dim) for one in segments]
    starts = np.cumsum([0, *(segment.num_rows for segment in segments)])
    for first, rows in _blocks(source, segments[-1].parts, int(starts[-2])):
        for segment, start in zip(opened, starts, strict=False):
            for i, j in _proposed(segment, rows):
                _link(groups, originals, rows, first, i, start + j)
    return groups.roots()


def _blocks(source: str, parts: list[Part], first: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first row number of a block, and its vectors."""
    for rows in knn.VectorStream(source, parts, "image"):
        for start in range(0, len(rows), QUERIES_AT_ONCE):
            block = rows[start : start + QUERIES_AT_ONCE]
            yield first, block
            first += len(block)


def _proposed(segment: OpenSegment, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a query's place and a row of the segment that may be near duplicates."""
    num, asked = NUM_PROPOSED, np.arange(len(queries))
    while len(asked):
        similarities, ids = segment.search(queries[asked], num, "image", None, "image")
        is_near = (ids >= 0) & (similarities > NEAR_DUPLICATE - MARGIN)
        places, columns = np.nonzero(is_near)
        yield asked[places], ids[places, columns]
        is_full = is_near.all(axis=1) & (num < MOST_PROPOSED)
        num, asked = 4 * num, asked[is_full]


def _link(
    groups: Groups,
    originals: StoredVectors,
    rows: np.ndarray,
    first: int,
    i: np.ndarray,
    j: np.ndarray,
) -> None:
    """Those pairs that are near duplicates on the originals; `i` counts from `first`."""
    for start in range(0, len(i), QUERIES_AT_ONCE):
        here = slice(start, start + QUERIES_AT_ONCE)
        cosines = np.einsum("nd,nd->n", rows[i[here]], originals.take(j[here]).astype(np.float32))
        is_near = cosines > NEAR_DUPLICATE
        groups.link(first + i[here][is_near], j[here][is_near])
