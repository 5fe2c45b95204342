"""An index whose segments are held by actors of a Ray cluster, answering as one.

    retriever = Retriever.open(root, encoder, RemoteSegments.opener(workers, num_actors=4))

An actor opens its segments from storage, on its own machine, and searches them; metadata,
tombstones and the vectors for exact comparisons stay with who asks, and so the answers are those
of one process. An actor that is lost fails the searches under way by name and is started again:
an answer that lacks its rows is never given.

Actors for which the cluster has no cores within START_TIMEOUT_S are given up, by name, too: who
waits for them holds up a service's takedowns.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from infra.cluster import Workers, connect
from infra.errors import ShortfallError
from retrieval.embedding.embeddings import Modality
from retrieval.indexing.manifest import Segment
from retrieval.live.among import AllowedRows, Found
from retrieval.live.segments import LocalSegments
from retrieval.live.snapshot import OpenSegments

START_TIMEOUT_S = 300.0
"""A cluster that grows by itself brings up a machine in a few minutes."""
MAX_RESTARTS = 10
"""Of an actor, when its process or machine is lost."""

Bits = tuple[np.ndarray, int]
"""Rows of a segment that are allowed, eight a byte, and how many there are in all."""


class RemoteSegments:
    """Segments in groups that follow each other, an actor each."""

    def __init__(
        self,
        folder: str,
        segments: Sequence[Segment],
        dim: int,
        workers: Workers,
        num_actors: int | None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Raises ShortfallError where the cluster has no cores for an actor, or one can't open its
        segments."""
        connect(workers)
        import ray

        num_groups = min(num_actors or len(segments), len(segments))
        bounds = np.linspace(0, len(segments), num_groups + 1).round().astype(int)
        self._groups = [segments[a:b] for a, b in pairwise(bounds)]
        make = ray.remote(
            num_cpus=workers.cpus_per_worker,
            max_restarts=MAX_RESTARTS,
            # A search is told that its actor was lost rather than kept waiting for a new one.
            max_task_retries=0,
        )(_SegmentsActor)
        self._folder = folder
        self.actors = [make.remote(folder, list(group), dim) for group in self._groups]
        self._await_cores(workers, start_timeout_s)
        self._gather([actor.open.remote() for actor in self.actors])

    @staticmethod
    def opener(
        workers: Workers,
        num_actors: int | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> OpenSegments:
        """For `Retriever.open`; None: an actor each segment."""
        return lambda folder, segments, dim: RemoteSegments(
            folder, segments, dim, workers, num_actors, start_timeout_s
        )

    def search(
        self,
        queries: np.ndarray,
        k: int,
        modality: Modality,
        allowed: Sequence[AllowedRows | None],
        asked_by: Modality | None,
    ) -> list[Found]:
        import ray

        given, asked = ray.put(queries), []
        packed = [None if rows is None else rows.packed for rows in allowed]
        for group, actor in zip(self._groups, self.actors, strict=True):
            here, packed = packed[: len(group)], packed[len(group) :]
            asked.append(actor.search.remote(given, k, modality, here, asked_by))
        answers: list[list[Found]] = self._gather(asked)
        return [answer for group in answers for answer in group]

    def _await_cores(self, workers: Workers, timeout_s: float) -> None:
        """Until each actor has begun; opening segments, which may lie far away, is not timed."""
        import ray

        begun = [actor.begun.remote() for actor in self.actors]
        _, waiting = ray.wait(begun, num_returns=len(begun), timeout=timeout_s)
        if not waiting:
            return
        for actor in self.actors:
            ray.kill(actor)
        num_cores = len(begun) * workers.cpus_per_worker
        raise ShortfallError(
            f"{self._folder}: {len(waiting)} of {len(begun)} actors for its segments had not begun "
            f"after {timeout_s:g} s; together they take {num_cores:g} cores of the cluster, beside "
            "those of the index that was there before: add machines, or ask for fewer actors"
        )

    def _gather(self, asked: list[Any]) -> list[Any]:
        import ray
        from ray.exceptions import RayError

        answers = []
        for group, ref in zip(self._groups, asked, strict=True):
            try:
                answers.append(ray.get(ref))
            except RayError as error:
                names = ", ".join(repr(segment.name or "first") for segment in group)
                reason = str(error).strip().splitlines()[0]
                raise ShortfallError(
                    f"{self._folder}: no answer from the actor that holds segments {names} "
                    f"({reason}); an answer without their rows would fall short: ask again, it is "
                    "being started anew"
                ) from error
        return answers


class _SegmentsActor:
    def __init__(self, folder: str, segments: list[Segment], dim: int) -> None:
        self._of = folder, segments, dim

    @cached_property
    def _segments(self) -> LocalSegments:
        """Opened when first asked for, so that an actor has begun before that."""
        return LocalSegments(*self._of)

    def begun(self) -> None:
        """Answers once it has its cores."""

    def open(self) -> None:
        """Answers once the segments are open."""
        assert self._segments

    def search(
        self,
        queries: np.ndarray,
        k: int,
        modality: Modality,
        allowed: list[Bits | None],
        asked_by: Modality | None,
    ) -> list[Found]:
        rows = [None if bits is None else AllowedRows.unpacked(*bits) for bits in allowed]
        return self._segments.search(queries, k, modality, rows, asked_by)
