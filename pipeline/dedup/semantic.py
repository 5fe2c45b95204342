"""Pairs of pictures whose embeddings nearly agree: SemDeDup.

Abbas, Tirumala, Simig, Ganguli & Morcos 2023, "SemDeDup: Data-efficient learning at web-scale
through semantic deduplication": k-means cuts the embeddings into cells; within a cell two pictures
are duplicates if their cosine is above 1 - eps. What lies on the two sides of a border is not
compared. Unlike there, the duplicate that stays is chosen by `grouping`, with all other evidence.

The work within cells grows as the number of rows m does, that of finding each row's cell as
m^2 / ROWS_A_CELL.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from infra.progress import track
from pipeline.dedup.embeddings import Unit, Vectors, unit
from pipeline.dedup.grouping import Rows

ROWS_A_CELL = 8800
"""As in the paper: 440 million rows of LAION in 50,000 cells."""
TRAINING_ROWS_A_CELL = 64
"""faiss asks for 39 at least and uses 256 at most."""
NUM_ITERATIONS = 20
NUM_PROBES = 4
"""Nearest cells in which a held-out picture looks for copies."""
NUMBERS_AT_ONCE = 1 << 24
"""Of a matrix of cosines, or of rows to be assigned: 64 MB."""
SEED = 0


class Cells:
    """The rows of `vectors`, cut into k cells by k-means."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        num_rows, self._dim = vectors.rows.shape
        self.num = -(-num_rows // ROWS_A_CELL)
        centroids = self._train() if self.num > 1 else np.zeros((self.num, self._dim), np.float32)
        self._centroids: Unit = centroids
        cells = np.zeros(num_rows, np.int64)
        if self.num > 1:
            with track("dedup: cells", num_rows, "pictures") as bar:
                for rows in _blocks(num_rows, self._dim):
                    cells[rows] = self._nearest(unit(vectors.rows[rows]), 1)[:, 0]
                    bar.advance(rows.stop - rows.start)
        self._order = np.argsort(cells, kind="stable")
        self._ends = np.cumsum(np.bincount(cells, minlength=self.num))

    def near_pairs(self, eps: float) -> Iterator[tuple[Rows, Rows]]:
        """Pictures of one cell whose cosine is at least 1 - eps."""
        with track("dedup: same meaning", len(self._order), "pictures") as bar:
            for cell in range(self.num):
                members = self._members(cell)
                rows = self._rows(cell)
                for block in _blocks(len(members), len(members)):
                    near = rows[block] @ rows[block.start :].T >= 1 - eps
                    left, right = np.nonzero(np.triu(near, 1))
                    yield members[block.start + left], members[block.start + right]
                    bar.advance(block.stop - block.start)

    def near(self, queries: Unit, eps: float) -> Rows:
        """Pictures that are that near to any of the queries, in the cells nearest to it."""
        if not self.num:
            return np.zeros(0, np.int64)
        probed = self._nearest(queries, min(NUM_PROBES, self.num))
        found = [np.zeros(0, np.int64)]
        for cell in range(self.num):
            here = queries[(probed == cell).any(axis=1)]
            rows, members = self._rows(cell), self._members(cell)
            for block in _blocks(len(members), max(len(here), 1)):
                is_near = (rows[block] @ here.T >= 1 - eps).any(axis=1)
                found.append(members[block][is_near])
        return np.concatenate(found)

    def _members(self, cell: int) -> Rows:
        return self._vectors.pictures[self._rows_of(cell)]

    def _rows(self, cell: int) -> Unit:
        return unit(self._vectors.rows[self._rows_of(cell)])

    def _rows_of(self, cell: int) -> Rows:
        return self._order[self._ends[cell - 1] if cell else 0 : self._ends[cell]]

    def _nearest(self, rows: Unit, num: int) -> NDArray[np.int64]:
        """[n, num]: the cells whose centroids are nearest."""
        if num == self.num:
            return np.broadcast_to(np.arange(num), (len(rows), num))
        cosines = rows @ self._centroids.T
        return np.argpartition(-cosines, num - 1, axis=1)[:, :num]

    def _train(self) -> Unit:
        import faiss

        num_rows = len(self._vectors.rows)
        num = min(num_rows, TRAINING_ROWS_A_CELL * self.num)
        sample = np.linspace(0, num_rows - 1, num).round().astype(np.int64)
        means = faiss.Kmeans(
            self._dim, self.num, niter=NUM_ITERATIONS, seed=SEED, spherical=True, verbose=False
        )
        means.train(unit(self._vectors.rows[sample]))
        return np.asarray(means.centroids, np.float32)


def _blocks(num_rows: int, width: int) -> Iterator[slice]:
    """Slices of as many rows, so wide, as NUMBERS_AT_ONCE allows."""
    step = max(1, NUMBERS_AT_ONCE // max(width, 1))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
