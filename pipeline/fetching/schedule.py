"""Which row is asked for next: by host, in turn, none before its time.

Nothing sleeps while another host could be asked: what must wait lies in a heap by the time it is
due. Reads and writes no files.
"""

import heapq
import itertools
from collections import deque

from pipeline.fetching.hosts import Host
from pipeline.fetching.origins import Job


class Schedule:
    def __init__(self) -> None:
        self._ready: deque[Host] = deque()
        self._due: list[tuple[float, int, Job | Host]] = []
        self._order = itertools.count()

    def put(self, host: Host, job: Job, now: float) -> None:
        host.waiting.append(job)
        self.offer(host, now)

    def put_back(self, host: Host, job: Job, now: float) -> None:
        """First of its host again."""
        host.waiting.appendleft(job)
        self.offer(host, now)

    def put_later(self, job: Job, due: float) -> None:
        heapq.heappush(self._due, (due, next(self._order), job))

    def offer(self, host: Host, now: float) -> None:
        """To be called whenever a host may have got work, room or a later time."""
        if host.is_offered or not host.waiting or not host.has_room():
            return
        host.is_offered = True
        if host.not_before > now:
            heapq.heappush(self._due, (host.not_before, next(self._order), host))
        else:
            self._ready.append(host)

    def due_jobs(self, now: float) -> list[Job]:
        """Jobs whose time has come; hosts whose time has come are ready from here on."""
        jobs: list[Job] = []
        while self._due and self._due[0][0] <= now:
            item = heapq.heappop(self._due)[2]
            if isinstance(item, Job):
                jobs.append(item)
            else:
                item.is_offered = False
                self.offer(item, now)
        return jobs

    def take(self, now: float) -> tuple[Host, Job] | None:
        while self._ready:
            host = self._ready.popleft()
            host.is_offered = False
            if not host.waiting or not host.has_room():
                continue
            if host.not_before > now:
                self.offer(host, now)
                continue
            job = host.waiting.popleft()
            host.begin(now)
            self.offer(host, now)
            return host, job
        return None

    @property
    def next_due(self) -> float:
        return self._due[0][0] if self._due else float("inf")
