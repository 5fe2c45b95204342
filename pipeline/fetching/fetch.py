"""Polite, safe HTTP fetches, many at once: URLs in, their bytes or the reasons why not out.

Nothing of a list is trusted. Only http and https; no address that is private, loopback,
link-local, multicast or a cloud's metadata service, looked at as each socket is opened
(addresses.py); redirects are followed here, each checked anew; caps on the bytes of an answer and
of all answers under way; a deadline for the whole attempt, so that a server that drips a byte a
second ends. The user agent says who asks, and opt-outs are honoured (robots.py). What may pass
comes again later, by due time, and no host is asked faster than it bears (hosts.py).

One thread drives it all: `fetch_all` is a generator that works while it is asked for its next
answer. Time that the caller keeps it waiting counts against no deadline. Reads and writes no files.
"""

import heapq
import itertools
import resource
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from infra.errors import ConfigError
from pipeline.fetching.answers import outcome_of, refusal_by_headers, target
from pipeline.fetching.curl_loop import CurlLoop
from pipeline.fetching.fetch_settings import Failure as Failure
from pipeline.fetching.fetch_settings import Fetched as Fetched
from pipeline.fetching.fetch_settings import FetchSettings as FetchSettings
from pipeline.fetching.hosts import BUSY_REASONS, Host, Hosts, backoff_s
from pipeline.fetching.origins import UNREACHABLE_REASONS, Job, Origin
from pipeline.fetching.robots import MAX_RULES_BYTES, RULE_PATHS
from pipeline.fetching.schedule import Schedule
from pipeline.fetching.transfers import Answer, Traffic, Transfer
from pipeline.fetching.web_address import WebAddress

MAX_WAIT_S = 60.0
"""The longest Retry-After waited for. A host that asks for more is left alone: its rows end with
this failure, which tells when to come back."""

TURN_S = 1.0
"""After which a caller with something else to look after is given a turn in any case."""

NUM_WAITING = 10_000
"""Rows taken up at once, so that those of slow hosts wait while others are fetched: a few MB."""

MAX_CLOSED_S = 3600.0
"""How long such a host is left alone; a longer wait outlives most runs."""


@dataclass(slots=True)
class _UnderWay:
    job: Job
    host: Host
    began: float
    deadline: float


class Fetcher:
    """Connections, DNS and CA caches, and what was learnt of hosts: make one a process."""

    def __init__(self, settings: FetchSettings, num_connections: int = 64) -> None:
        _reserve_descriptors(num_connections)
        self._settings = settings
        self._num_connections = num_connections
        self._judge = partial(refusal_by_headers, settings=settings)
        self._rule_names = [name for name in RULE_PATHS if name in settings.opt_outs]
        self._hosts = Hosts(settings)
        self._loop = CurlLoop(num_connections)
        self._free: list[Transfer] = []
        self._transfers: dict[object, Transfer] = {}
        self._under_way: dict[Transfer, _UnderWay] = {}
        self._held_s = 0.0
        self._order = itertools.count()
        self.traffic = Traffic()
        self._clear()

    def fetch(self, url: str) -> Fetched | Failure:
        answers = self.fetch_all([(0, url)])
        _, answer = next(answers)
        answers.close()
        return answer

    def fetch_all(
        self, requests: Iterable[tuple[int, str]]
    ) -> Generator[tuple[int, Fetched | Failure], None, None]:
        """The answers to (number, URL) as they come, each tried again while that may help.

        `requests` is read as there is room, at most NUM_WAITING ahead of what was answered.
        """
        with closing(self.fetch_beside(requests)) as answers:
            for answer in answers:
                if answer is not None:
                    yield answer

    def fetch_beside(
        self, requests: Iterable[tuple[int, str]], descriptor: int | None = None
    ) -> Generator[tuple[int, Fetched | Failure] | None, None, None]:
        """As `fetch_all`, and None when `descriptor` is readable, and every TURN_S or so.

        For a caller that waits for something else in the same thread.
        """
        assert not self._num_pending, "a Fetcher serves one list at a time"
        source = iter(requests)
        is_read, last_turn = False, time.monotonic()
        self._loop.watch(descriptor)
        try:
            while True:
                since = time.monotonic()
                while not is_read and self._num_pending < NUM_WAITING:
                    request = next(source, None)
                    if request is None:
                        is_read = True
                    else:
                        self._admit(*request)
                while self._done:
                    yield self._done.popleft()
                if is_read and not self._num_pending:
                    return
                if self._loop.is_watched_ready or since > last_turn + TURN_S:
                    yield None
                    last_turn = since
                self._held_s += time.monotonic() - since
                self._begin_some()
                if not self._done:
                    self._wait(MAX_WAIT_S if descriptor is None else TURN_S)
        finally:
            self._loop.watch(None)
            self._clear()

    def close(self) -> None:
        self._clear()
        for transfer in self._transfers.values():
            transfer.close()
        self._transfers.clear()
        self._loop.close()

    def _now(self) -> float:
        """Seconds that pass only while the caller waits for answers."""
        return time.monotonic() - self._held_s

    def _clear(self) -> None:
        """Give up what is under way, keep what was learnt."""
        for transfer in list(self._under_way):
            self._stop(transfer)
            transfer.end()
        self._schedule = Schedule()
        self._deadlines: list[tuple[float, int, Transfer, _UnderWay]] = []
        self._done: deque[tuple[int, Fetched | Failure]] = deque()
        self._num_pending = 0
        self._hosts.clear_queues()

    def _admit(self, number: int, url: str) -> None:
        self._num_pending += 1
        address = target(url)
        if isinstance(address, Failure):
            self._done.append((number, address))
            self._num_pending -= 1
        else:
            self._enqueue(Job(number, address, first=address))

    def _enqueue(self, job: Job) -> None:
        """To its host's queue, or to where it waits for the rules of its host."""
        now = self._now()
        host = self._hosts[job.address.host]
        verdict = host.verdict_at(now)
        if verdict is None and job.origin is None and self._rule_names:
            origin = host.origin(job.address.origin)
            if not origin.is_known(now):
                origin.waiting.append(job)
                if not origin.is_asked:
                    self._hosts.num_rule_bytes -= origin.rules.num_bytes
                    origin.ask(self._rule_names)
                    self._enqueue(origin.next_job())
                return
            token = self._settings.user_agent_token
            verdict = origin.verdict or origin.rules.refusal(job.address, token)
        if verdict is not None:
            self._finish(job, verdict)
        else:
            self._schedule.put(host, job, now)

    def _begin_some(self) -> None:
        now = self._now()
        for job in self._schedule.due_jobs(now):
            self._enqueue(job)
        max_bytes = self._settings.max_bytes_in_flight
        while len(self._under_way) < self._num_connections:
            if self._under_way and self.traffic.num_bytes_in_flight > max_bytes // 2:
                return
            taken = self._schedule.take(now)
            if taken is None:
                return
            self._begin(*taken, now)

    def _begin(self, host: Host, job: Job, now: float) -> None:
        transfer = self._free.pop() if self._free else self._new_transfer()
        transfer.begin(
            job.address,
            may_be_private=host.may_be_private,
            max_bytes=MAX_RULES_BYTES if job.origin else self._settings.max_bytes,
            judge=None if job.origin else self._judge,
            on_resolved=lambda: self._resolved(host),
        )
        job.seconds_left = job.seconds_left or self._settings.timeout
        under_way = _UnderWay(job, host, now, now + job.seconds_left)
        self._under_way[transfer] = under_way
        self.traffic.eldest = next(iter(self._under_way))
        heapq.heappush(
            self._deadlines, (under_way.deadline, next(self._order), transfer, under_way)
        )
        self.traffic.num_requests += 1
        self._loop.add(transfer.curl)

    def _new_transfer(self) -> Transfer:
        transfer = Transfer(self._settings, self.traffic)
        self._transfers[transfer.curl] = transfer
        return transfer

    def _resolved(self, host: Host) -> None:
        if not host.is_resolved:
            host.is_resolved = True
            self._schedule.offer(host, self._now())

    def _wait(self, at_most_s: float) -> None:
        now = self._now()
        until = self._schedule.next_due
        if self._deadlines:
            until = min(until, self._deadlines[0][0])
        for curl, error in self._loop.wait(min(until - now, at_most_s)):
            transfer = self._transfers[curl]
            self._end(transfer, transfer.end(error))
        now = self._now()
        while self._deadlines:
            deadline, _, transfer, under_way = self._deadlines[0]
            is_over = self._under_way.get(transfer) is not under_way
            if not is_over and deadline > now:
                break
            heapq.heappop(self._deadlines)
            if not is_over:
                self._end(transfer, transfer.time_out())

    def _stop(self, transfer: Transfer) -> _UnderWay:
        under_way = self._under_way.pop(transfer)
        self._loop.remove(transfer.curl)
        self._free.append(transfer)
        self.traffic.eldest = next(iter(self._under_way), None)
        under_way.host.num_active -= 1
        return under_way

    def _end(self, transfer: Transfer, answer: Answer) -> None:
        under_way = self._stop(transfer)
        job, host, now = under_way.job, under_way.host, self._now()
        if answer.is_evicted:
            self.traffic.num_evictions += 1
            job.seconds_left = 0.0
            self._schedule.put_back(host, job, now)
            return
        outcome = outcome_of(answer, job)
        self._note(under_way, outcome, now)
        self._schedule.offer(host, now)
        if isinstance(outcome, WebAddress):
            job.address = outcome
            job.num_redirects += 1
            job.seconds_left = max(0.001, under_way.deadline - now)
            self._enqueue(job)
        elif isinstance(outcome, Failure) and self._may_retry(job, host, outcome, now):
            self._retry(job, outcome, now)
        else:
            self._finish(job, outcome)

    def _note(
        self, under_way: _UnderWay, outcome: Fetched | Failure | WebAddress, now: float
    ) -> None:
        host = under_way.host
        if not isinstance(outcome, Failure):
            host.note_success()
        elif outcome.reason in UNREACHABLE_REASONS:
            host.note_unreachable(outcome, under_way.began, now)
        elif outcome.reason in BUSY_REASONS:
            wait_s = outcome.retry_after_s or 0.0
            host.note_busy(now, wait_s)
            if wait_s > MAX_WAIT_S:
                host.close(outcome, now + min(wait_s, MAX_CLOSED_S))
        if host.verdict is not None:
            for job in host.take_waiting():
                self._finish(job, host.verdict)

    def _may_retry(self, job: Job, host: Host, failure: Failure, now: float) -> bool:
        return (
            failure.retryable
            and job.num_retries < self._settings.retries
            and host.verdict_at(now) is None
            and (failure.retry_after_s or 0.0) <= MAX_WAIT_S
        )

    def _retry(self, job: Job, failure: Failure, now: float) -> None:
        self.traffic.num_retries += 1
        wait_s = backoff_s(job.num_retries) * jitter(job)
        job.num_retries += 1
        job.num_redirects = 0
        job.address = job.first
        job.seconds_left = 0.0
        self._schedule.put_later(job, now + max(wait_s, failure.retry_after_s or 0.0))

    def _finish(self, job: Job, outcome: Fetched | Failure) -> None:
        if job.origin is not None:
            self._end_rules(job.origin, job.opt_out, outcome)
        else:
            self._done.append((job.number, outcome))
            self._num_pending -= 1

    def _end_rules(self, origin: Origin, opt_out: str, outcome: Fetched | Failure) -> None:
        if opt_out not in origin.unasked:
            return  # its rows have gone, and the question with them
        origin.take(opt_out, outcome, self._now())
        if origin.unasked:
            self._enqueue(origin.next_job())
            return
        host = self._hosts[origin.host]
        delay_s = origin.rules.crawl_delay_s(self._settings.user_agent_token)
        host.interval_s = max(host.interval_s, min(delay_s, self._settings.max_crawl_delay_s))
        self._hosts.num_rule_bytes += origin.rules.num_bytes
        for job in origin.take_waiting():
            self._enqueue(job)


def _reserve_descriptors(num_connections: int) -> None:
    """Room for the open and the idle connections, and for what else a process has open."""
    needed = 2 * num_connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if needed > hard != resource.RLIM_INFINITY:
        raise ConfigError(
            f"{num_connections} connections: need {needed} open files, and this machine allows "
            f"{hard}; ask for fewer (thread_count) or raise the limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def jitter(job: Job) -> float:
    """0.5 to 1.5, by URL and try: rows turned away together come back apart, each time alike."""
    return 0.5 + zlib.crc32(f"{job.first.url} {job.num_retries}".encode()) / 2**32
