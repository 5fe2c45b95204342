"""Queries whose best answers are known, to ask an index with.

Queries are pictures and captions of the corpus itself, evenly spaced over it. A caption is held out
in this sense: no index is trained on it (build.py leaves these rows out). The picture that it
belongs to stays in the index as any other answer: one that users ask for. A query's own row, where
pictures are looked for by picture or captions by caption, counts neither as found nor as missed.

One half of the queries chooses search parameters, the other says what they are worth.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import faiss
import numpy as np

from infra.progress import track
from retrieval import knn
from retrieval.embedding.embeddings import MODALITIES, Modality
from retrieval.indexing.manifest import RECALL_AT, Parameters
from retrieval.live.among import search_among

TIE_DEPTH = 3
"""Times RECALL_AT: how deep rows are looked for that are as near as the last that counts."""
MAX_TIMED = 300


@dataclass(frozen=True)
class Exam:
    """m queries of one kind to one index."""

    queries: np.ndarray
    """[m, d]"""
    own: np.ndarray
    """[m]: the row that a query itself is in; -1: none."""
    good: np.ndarray
    """[m, depth]: rows that are among its nearest RECALL_AT, or as near; -2 in the other places."""
    num_good: int
    """RECALL_AT, less in a smaller corpus."""

    def shares(self, found: np.ndarray) -> np.ndarray:
        """[m]: how much of the nearest is among the first RECALL_AT of these row numbers."""
        is_other = found != self.own[:, None]
        is_first = is_other & (np.cumsum(is_other, axis=1) <= self.num_good)
        is_good = (found[:, :, None] == self.good[:, None, :]).any(axis=2)
        shares: np.ndarray = (is_good & is_first).sum(axis=1) / max(1, self.num_good)
        return shares if self.num_good else np.ones(len(found))

    def recall(self, index: faiss.Index, parameters: Parameters) -> float:
        depth = self.num_good + bool((self.own >= 0).any())
        _, found = search_among(index, self.queries, depth, None, parameters)
        return float(self.shares(found).mean())

    def milliseconds(self, index: faiss.Index, parameters: Parameters) -> tuple[float, float]:
        """p50 and p99 of one query, each alone on one thread."""
        seconds = []
        num_threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            for query in self.queries[:MAX_TIMED]:
                start = time.perf_counter()
                search_among(index, query[None], RECALL_AT, None, parameters)
                seconds.append(time.perf_counter() - start)
        finally:
            faiss.omp_set_num_threads(num_threads)
        p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
        return float(p50), float(p99)

    def halves(self) -> tuple["Exam", "Exam"]:
        """The one to choose by and the one to judge by; of a single query, the same."""
        if len(self.queries) < 2:
            return self, self
        return self._every_second(0), self._every_second(1)

    def _every_second(self, first: int) -> "Exam":
        here = slice(first, None, 2)
        return replace(self, queries=self.queries[here], own=self.own[here], good=self.good[here])


Exams = dict[Modality, Exam]
"""Of one index, by the kind of query."""


def exams_of(
    streams: Mapping[Modality, knn.Vectors], num_queries: int
) -> tuple[dict[Modality, Exams], np.ndarray]:
    """By index; and the rows that the queries are in, sorted."""
    num_rows = streams["image"].num_rows
    rows = knn.evenly_spaced(num_rows, num_queries)
    queries = {modality: streams[modality].take(rows) for modality in MODALITIES}
    both = np.concatenate([queries[modality] for modality in MODALITIES])
    exams: dict[Modality, Exams] = {}
    for index in MODALITIES:
        depth = TIE_DEPTH * RECALL_AT + 1
        with track(f"index: {index} exam", num_rows, "rows") as bar:
            similarities, ids = knn.search_exactly(knn.Counted(streams[index], bar), both, depth)
        exams[index] = {}
        for number, asked_by in enumerate(MODALITIES):
            here = slice(number * len(rows), (number + 1) * len(rows))
            own = rows if asked_by == index else np.full(len(rows), -1)
            exams[index][asked_by] = _exam(queries[asked_by], own, similarities[here], ids[here])
    return exams, rows


def _exam(queries: np.ndarray, own: np.ndarray, similarities: np.ndarray, ids: np.ndarray) -> Exam:
    """Rows as near as the last of the nearest are as good as it."""
    others = np.where(ids == own[:, None], -np.inf, similarities)
    has_own = bool((own >= 0).any())
    num_good = min(RECALL_AT, ids.shape[1] - has_own)
    if num_good < 1:
        return Exam(queries, own, np.full((len(ids), 1), -2), 0)
    last = np.sort(others, axis=1)[:, -num_good]
    good = np.where(others >= last[:, None] - knn.TIE, ids, -2)
    return Exam(queries, own, good, num_good)
