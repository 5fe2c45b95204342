"""How a run of `embed` goes: pictures a second, and which step the workers wait for.

Workers tell a tally, batch by batch; a thread of the command's own process asks it and keeps the
bar moving, from the first second on. Reads and writes nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from infra.cluster import Workers, connect
from infra.progress import LINE_EVERY_S, Bar, repeated
from infra.watching.events import tell

Report = Callable[[str, int, Mapping[str, float]], None]
"""Told a shard's name, how many of its samples are through, and the seconds that its worker has
waited for each step of it."""

ASKED_EVERY_S = 0.25
RECENT_S = 10.0
"""What "now" means of a speed."""


@dataclass
class Progress:
    """Of all workers together."""

    num_done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """That workers waited for each step: reading, decoding, encoding, writing."""
    working_s: float = 0.0
    """Since the first worker had its model loaded."""

    def bound(self) -> str:
        """The step that took most of the workers' time, with the shares of all."""
        total = sum(self.seconds.values())
        if not total:
            return "the workers load the model"
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{step} {seconds / total:.0%}" for step, seconds in ordered)
        return f"bound by {ordered[0][0]} ({shares})"


class Tally:
    """What the workers have told. By shard: one that is done again counts once."""

    def __init__(self) -> None:
        self._by_shard: dict[str, tuple[int, Mapping[str, float]]] = {}
        self._progress = Progress()
        self._start: float | None = None

    def report(self, shard: str, num_done: int, seconds: Mapping[str, float]) -> None:
        if self._start is None:
            self._start = monotonic()
        num_before, before = self._by_shard.get(shard, (0, {}))
        self._by_shard[shard] = (num_done, seconds)
        self._progress.num_done += num_done - num_before
        total = self._progress.seconds
        for step in seconds.keys() | before.keys():
            total[step] = total.get(step, 0.0) + seconds.get(step, 0.0) - before.get(step, 0.0)

    def progress(self) -> Progress:
        working_s = 0.0 if self._start is None else monotonic() - self._start
        return Progress(self._progress.num_done, dict(self._progress.seconds), working_s)


class RemoteReport:
    """A worker's way to a tally that is a Ray actor: it never waits for an answer."""

    def __init__(self, tally: Any) -> None:
        self._tally = tally

    def __call__(self, shard: str, num_done: int, seconds: Mapping[str, float]) -> None:
        self._tally.report.remote(shard, num_done, seconds)


@contextmanager
def tallied(workers: Workers) -> Iterator[tuple[Report, Callable[[], Progress]]]:
    """What workers report to, and what tells how far they are."""
    if workers.local:
        here = Tally()
        yield here.report, here.progress
        return
    connect(workers)
    import ray

    # Where it is lost with its machine another takes its place and counts from there.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    try:
        yield RemoteReport(actor), lambda: ray.get(actor.progress.remote())
    finally:
        ray.kill(actor)


@contextmanager
def said(what: str) -> Iterator[None]:
    """A line every so often, for as long as the `with` takes."""
    start = monotonic()
    with repeated(lambda: tell("note", f"{what}, {monotonic() - start:.0f} s"), LINE_EVERY_S):
        yield


@contextmanager
def followed(bar: Bar, progress: Callable[[], Progress]) -> Iterator[None]:
    """The bar moves as the workers do, for the length of the `with`."""
    follower = _Follower(bar, progress)
    with repeated(follower.ask, ASKED_EVERY_S):
        yield
    follower.ask()


class _Follower:
    def __init__(self, bar: Bar, progress: Callable[[], Progress]) -> None:
        self._bar, self._progress = bar, progress
        self._num_shown = 0
        self._recent: deque[tuple[float, int]] = deque()

    def ask(self) -> None:
        progress = self._progress()
        note = progress.bound()
        if speed := self._speed(progress):
            note = f"now {speed:,.1f}/s, {note}"
        # A tally that took a lost one's place begins anew: the bar waits for it.
        num_new = max(0, progress.num_done - self._num_shown)
        self._bar.advance(num_new, note)
        self._num_shown += num_new

    def _speed(self, progress: Progress) -> float | None:
        self._recent.append((progress.working_s, progress.num_done))
        while self._recent[-1][0] - self._recent[0][0] > RECENT_S:
            self._recent.popleft()
        (start_s, first), (end_s, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else None
