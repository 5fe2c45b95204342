"""Which kind of index a modality gets, with which search parameters, and what both are worth.

A promise is kept by measuring: every kind that fits the RAM is built on a sample of the rows and
asked the exam's questions (the frontier). The kind that answered quickest of those that find enough
is built on all rows and asked again; if it doesn't keep the promise there, with parameters raised,
the next one is taken.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import faiss
import numpy as np

from infra.errors import ConfigError
from infra.progress import track
from infra.summary import Stopwatch
from retrieval import knn
from retrieval.embedding.embeddings import MODALITIES, Modality
from retrieval.indexing.build import built_index
from retrieval.indexing.exam import Exam, Exams, exams_of
from retrieval.indexing.kinds import (
    MAX_FLAT,
    candidates,
    check_kind,
    default_kind,
    estimated_bytes,
    for_rows,
)
from retrieval.indexing.manifest import Measurement, Parameters, Promise, Segment, widest_of
from retrieval.indexing.promise import COMPACT, SAMPLE_SHARE, check_fits, refusal
from retrieval.indexing.tuning import cost, tuned

DEFAULT_RECALL = 0.95
"""What parameters are chosen for where nothing is promised."""
MAX_SAMPLE_BYTES = 2**30
"""Of vectors that centroids are trained on, where nothing is promised."""
COMPARED_ROWS = 50_000
"""That kinds are compared on."""
NUM_RAISES = 4
"""How often parameters are raised when one half of the queries chose them too low for the other."""

Streams = dict[Modality, knn.Vectors]


@dataclass(frozen=True)
class Goal:
    """What an index is to be."""

    kind: str | None
    promise: Promise | None
    num_queries: int
    held_bytes: float = 0.0
    """Of the promised RAM: what other segments take in searches."""

    def beside(self, segments: Sequence[Segment], dim: int) -> "Goal":
        """For one segment more: all lie in memory together, and a query asks one after the other,
        so that what they take is taken off the promise. Raises ConfigError where nothing is left
        of its time."""
        if self.promise is None or not segments:
            return self
        held_bytes = sum(
            estimated_bytes(kind, segment.num_rows, dim)
            for segment in segments
            for kind in segment.kinds.values()
        )
        promise = self.promise
        if promise.p99_ms is not None:
            taken_ms = max(
                sum(segment.measured[modality][asked_by].p99_ms or 0.0 for segment in segments)
                for modality in MODALITIES
                for asked_by in MODALITIES
            )
            if taken_ms >= promise.p99_ms:
                raise ConfigError(
                    f"p99 {promise.p99_ms:g} ms: the segments before take {taken_ms:.3g} ms of it "
                    f"together, which leaves none for another one; give {COMPACT}"
                )
            promise = promise.model_copy(update={"p99_ms": promise.p99_ms - taken_ms})
        return replace(self, promise=promise, held_bytes=held_bytes)

    def check(self, num_rows: int, dim: int) -> None:
        """Raises ConfigError for a kind that can't be, a promise beside it, and a RAM that suffices
        for none."""
        if self.kind is not None and self.promise is not None:
            raise ConfigError(
                f"kind {self.kind!r} with recall {self.promise.recall:g}: a promise chooses the "
                "kind itself; leave one of them out"
            )
        if self.kind is not None:
            check_kind(self.kind, num_rows, dim)
        elif self.promise is not None:
            check_fits(self.promise, candidates(num_rows, dim), num_rows, dim)

    @property
    def sample_bytes(self) -> int:
        if self.promise is None:
            return MAX_SAMPLE_BYTES
        return min(MAX_SAMPLE_BYTES, self.promise.ram_bytes // SAMPLE_SHARE)


@dataclass
class Chosen:
    """An index over all rows, and how it came to be taken."""

    index: faiss.Index
    kind: str
    measured: dict[Modality, Measurement]
    """By the kind of query."""
    frontier: list[Measurement] = field(default_factory=list)


@dataclass(frozen=True)
class Corpus:
    """What is indexed, and the questions to it."""

    streams: Streams
    exams: dict[Modality, Exams]
    held_out: np.ndarray
    """Rows that the questions are taken from: nothing is trained on them."""

    @classmethod
    def of(cls, streams: Streams, num_queries: int) -> "Corpus":
        exams, held_out = exams_of(streams, num_queries)
        return cls(streams, exams, held_out)

    @property
    def num_rows(self) -> int:
        return self.streams["image"].num_rows

    @property
    def dim(self) -> int:
        return self.streams["image"].dim

    def built(
        self, modality: Modality, kind: str, sample_bytes: int, *, is_tracked: bool = True
    ) -> tuple[faiss.Index, float]:
        """And the seconds that it took."""
        stream = self.streams[modality]
        rows = track(f"index: {modality}", stream.num_rows, "rows") if is_tracked else nullcontext()
        with Stopwatch() as watch, rows as bar:
            counted = stream if bar is None else knn.Counted(stream, bar)
            index = built_index(kind, counted, self.held_out, sample_bytes)
        return index, watch.seconds

    def sampled(self, num_rows: int, num_queries: int) -> "Corpus":
        """Some of its rows, evenly spaced; itself if it has no more."""
        if num_rows >= self.num_rows:
            return self
        rows = knn.evenly_spaced(self.num_rows, num_rows)
        streams: Streams = {
            modality: knn.Sample(self.streams[modality].take(rows)) for modality in MODALITIES
        }
        return Corpus.of(streams, num_queries)


def choose(corpus: Corpus, modality: Modality, goal: Goal) -> Chosen:
    """Raises ConfigError where the promise can't be kept."""
    if goal.promise is None:
        return _as_asked(corpus, modality, goal)
    promise, num_rows, dim = goal.promise, corpus.num_rows, corpus.dim
    kinds = candidates(num_rows, dim)
    fitting = check_fits(promise, kinds, num_rows, dim, goal.held_bytes)
    frontier: list[Measurement] = []
    if num_rows > MAX_FLAT or "Flat" not in fitting:
        frontier = list(_frontier(corpus, modality, goal, fitting))
        fitting = _quickest_first(frontier, promise, num_rows)
    tried = list(frontier)
    # A small corpus is scanned as it is, unless that is too slow.
    queue = fitting if frontier else ["Flat"]
    while queue:
        kind = queue.pop(0)
        found = _verified(corpus, modality, kind, goal, promise)
        if _keeps(list(found.measured.values()), promise):
            found.frontier = tried
            return found
        tried += found.measured.values()
        del found  # before the next one is built: the RAM holds one
        if not frontier:
            frontier = list(_frontier(corpus, modality, goal, fitting))
            tried += frontier
            queue = _quickest_first(frontier, promise, num_rows)
    raise refusal(promise, modality, tried, kinds, num_rows, dim, goal.held_bytes)


def _as_asked(corpus: Corpus, modality: Modality, goal: Goal) -> Chosen:
    """By kind, or by the number of rows; no clock has a say in it."""
    kind = goal.kind or default_kind(corpus.num_rows, corpus.dim)
    index, _ = corpus.built(modality, kind, goal.sample_bytes)
    return Chosen(index, kind, _examined(corpus, modality, kind, index, DEFAULT_RECALL))


def _examined(
    corpus: Corpus, modality: Modality, kind: str, index: faiss.Index, recall: float
) -> dict[Modality, Measurement]:
    """What it finds, by the kind of query.

    What is of both kinds, or of none that is known, is asked with the wider search of both. Where
    one has more lists and the other more candidates that would be a third setting: then the dearer
    one is widened to it, so that nothing is asked with what was not measured.
    """
    exams = corpus.exams[modality]
    raised = {asked_by: _raised(index, exam, recall) for asked_by, exam in exams.items()}
    settings = {asked_by: parameters for asked_by, (parameters, _) in raised.items()}
    widest = widest_of(settings.values())
    if widest not in settings.values():
        dearest = max(settings, key=lambda asked_by: cost(index, settings[asked_by]))
        _, judges = exams[dearest].halves()
        raised[dearest] = widest, judges.recall(index, widest)
    return {
        asked_by: Measurement(
            index=modality,
            queries=asked_by,
            kind=kind,
            parameters=parameters,
            num_rows=corpus.num_rows,
            recall_at_10=reached,
        )
        for asked_by, (parameters, reached) in raised.items()
    }


def _raised(index: faiss.Index, exam: Exam, recall: float) -> tuple[Parameters, float]:
    """Parameters chosen by one half of the queries, and the recall of the other half: raised until
    that is kept too, or nothing wider is left."""
    chooses, judges = exam.halves()
    target = recall
    for _ in range(1 + NUM_RAISES):
        parameters, _ = tuned(index, chooses, target)
        reached = judges.recall(index, parameters)
        if reached >= recall:
            break
        target = min(1.0, target + recall - reached)
    return parameters, reached


def _verified(
    corpus: Corpus,
    modality: Modality,
    kind: str,
    goal: Goal,
    promise: Promise,
    *,
    is_tracked: bool = True,
) -> Chosen:
    """That kind built on all rows of the corpus, and what it is worth there."""
    index, build_s = corpus.built(modality, kind, goal.sample_bytes, is_tracked=is_tracked)
    size = estimated_bytes(kind, corpus.num_rows, corpus.dim)
    measured = _examined(corpus, modality, kind, index, promise.recall)
    for asked_by, exam in corpus.exams[modality].items():
        p50_ms, p99_ms = exam.milliseconds(index, measured[asked_by].parameters)
        cost = {
            "p50_ms": round(p50_ms, 3),
            "p99_ms": round(p99_ms, 3),
            "bytes_a_row": round(size / corpus.num_rows, 1),
            "build_s": round(build_s, 1),
        }
        measured[asked_by] = measured[asked_by].model_copy(update=cost)
    return Chosen(index, kind, measured)


def _frontier(
    corpus: Corpus, modality: Modality, goal: Goal, kinds: Sequence[str]
) -> Iterator[Measurement]:
    """Each kind on the same sample of the rows."""
    assert goal.promise is not None
    room = goal.promise.ram_bytes // SAMPLE_SHARE // (4 * corpus.dim * len(MODALITIES))
    sample = corpus.sampled(min(COMPARED_ROWS, room), goal.num_queries)
    with track(f"index: {modality} kinds", len(kinds), "kinds") as bar:
        for kind in kinds:
            here = for_rows(kind, sample.num_rows)
            found = _verified(sample, modality, here, goal, goal.promise, is_tracked=False)
            yield from found.measured.values()
            bar.advance(1, here)


def _quickest_first(frontier: Sequence[Measurement], promise: Promise, num_rows: int) -> list[str]:
    """Kinds for all rows, of those that keep the promise on some; by the slower of both kinds of
    query."""
    by_kind: dict[str, list[Measurement]] = {}
    for one in frontier:
        by_kind.setdefault(one.kind, []).append(one)
    slowest = {
        for_rows(kind, num_rows): max(one.p50_ms or 0.0 for one in both)
        for kind, both in by_kind.items()
        if _keeps(both, promise)
    }
    return sorted(slowest, key=lambda kind: slowest[kind])


def _keeps(measured: Sequence[Measurement], promise: Promise) -> bool:
    return all(
        one.recall_at_10 >= promise.recall
        and (promise.p99_ms is None or (one.p99_ms or 0.0) <= promise.p99_ms)
        for one in measured
    )
