"""What is known of the hosts of a list while it is fetched, and how fast each may be asked.

A host has a limit of connections that halves with every 429 or 503 and grows again with every good
answer (additive increase, multiplicative decrease), a time before which nothing of it is asked,
and a verdict when it has proved dead. Reads and writes no files.
"""

from collections import OrderedDict, deque

from pipeline.fetching.fetch_settings import Failure, FetchSettings
from pipeline.fetching.origins import Job, Origin

MAX_HOSTS = 10_000
"""Idle hosts remembered; the least lately used are forgotten."""

MAX_RULE_BYTES = 32_000_000
"""Of the robots.txt files remembered in all."""

NUM_ROUNDS_UNTIL_DOWN = 3
"""Tries in a row, each after a longer wait, that made no connection: what one row is given with
img2dataset's users' usual two retries."""

DOWN_S = 300.0
"""How long a dead host isn't asked again."""

_NUM_LOOKED_AT = 4
"""Hosts considered for each new one, so that forgetting keeps up and costs nothing."""

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 15.0

BUSY_REASONS = frozenset({"http 429", "http 503"})


class Host:
    """Times are the Fetcher's, in seconds."""

    def __init__(self, name: str, settings: FetchSettings) -> None:
        self.name = name
        self.may_be_private = name in settings.allow_hosts
        self.waiting: deque[Job] = deque()
        self.origins: dict[str, Origin] = {}
        self.num_active = 0
        self.is_offered = False
        self.is_resolved = False
        self.not_before = 0.0
        rate = settings.requests_per_second_per_host
        self.interval_s = 1.0 / rate if rate else 0.0
        self.verdict: Failure | None = None
        self._verdict_until = 0.0
        self._max_connections = settings.connections_per_host
        self._limit = float(settings.connections_per_host)
        self._num_dead_rounds = 0
        self._last_dead = float("-inf")
        self._num_busy = 0

    @property
    def is_idle(self) -> bool:
        is_waited_for = any(origin.waiting for origin in self.origins.values())
        return not (self.num_active or self.waiting or is_waited_for)

    @property
    def num_rule_bytes(self) -> int:
        return sum(origin.rules.num_bytes for origin in self.origins.values())

    def origin(self, url: str) -> Origin:
        if url not in self.origins:
            self.origins[url] = Origin(url, self.name)
        return self.origins[url]

    def take_waiting(self) -> list[Job]:
        jobs = list(self.waiting)
        self.waiting.clear()
        for origin in self.origins.values():
            jobs += origin.take_waiting()
        return jobs

    def clear_queues(self) -> None:
        self.take_waiting()
        self.num_active = 0
        self.is_offered = False
        for origin in self.origins.values():
            origin.is_asked = False

    def has_room(self) -> bool:
        # The first one finds out the address, which the others then take from libcurl's cache;
        # and one is enough to see whether a host that seemed dead is.
        is_proven = self.is_resolved and not self._num_dead_rounds
        return self.num_active < (int(self._limit) if is_proven else 1)

    def begin(self, now: float) -> None:
        self.num_active += 1
        if self.interval_s:
            self.not_before = max(now, self.not_before) + self.interval_s

    def verdict_at(self, now: float) -> Failure | None:
        """Why nothing of it is asked for now, if so."""
        if self.verdict is not None and now >= self._verdict_until:
            self.verdict = None
            self._num_dead_rounds = max(0, self._num_dead_rounds - 1)
        return self.verdict

    def note_success(self) -> None:
        self._num_dead_rounds = self._num_busy = 0
        self._limit = min(self._max_connections, self._limit + 1.0 / self._limit)

    def note_unreachable(self, failure: Failure, began: float, now: float) -> None:
        """What was tried at the same time is one try; the next waits, for all rows of the host."""
        if began >= self._last_dead:
            self.not_before = max(self.not_before, now + backoff_s(self._num_dead_rounds))
            self._num_dead_rounds += 1
            self._last_dead = now
        if self._num_dead_rounds >= NUM_ROUNDS_UNTIL_DOWN:
            self.close(failure, now + DOWN_S)

    def note_busy(self, now: float, wait_s: float) -> None:
        self._num_dead_rounds = 0
        self._num_busy += 1
        self._limit = max(1.0, self._limit / 2)
        wait_s = max(wait_s, backoff_s(self._num_busy - 1))
        self.not_before = max(self.not_before, now + wait_s)

    def close(self, verdict: Failure, until: float) -> None:
        self.verdict = verdict
        self._verdict_until = until


class Hosts:
    """By name; forgets idle ones beyond its bounds."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self.num_rule_bytes = 0

    def __getitem__(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name, self._settings)
            self._forget()
        else:
            self._hosts.move_to_end(name)
        return host

    def __len__(self) -> int:
        return len(self._hosts)

    def clear_queues(self) -> None:
        for host in self._hosts.values():
            host.clear_queues()

    def _forget(self) -> None:
        for _ in range(_NUM_LOOKED_AT):
            if len(self._hosts) <= MAX_HOSTS and self.num_rule_bytes <= MAX_RULE_BYTES:
                return
            oldest = next(iter(self._hosts.values()))
            if oldest.is_idle:
                self.num_rule_bytes -= oldest.num_rule_bytes
                del self._hosts[oldest.name]
            else:
                self._hosts.move_to_end(oldest.name)


def backoff_s(num_retries: int) -> float:
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(num_retries, 10))
