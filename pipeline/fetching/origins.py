"""An origin (scheme, host and port) and what its robots.txt and tdmrep.json said when asked.

Rows wait at their origin until its rules are there. Reads and writes no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.fetching.fetch_settings import Failure, Fetched
from pipeline.fetching.robots import RULE_PATHS, Rules, parse_robots, parse_tdmrep
from pipeline.fetching.web_address import WebAddress

RULES_VALID_S = 24 * 3600.0
"""RFC 9309, section 2.4: use no copy older than a day."""

UNREACHABLE_REASONS = frozenset({"dns", "host unreachable", "connection refused"})
"""No connection was made: what holds for one file of a host holds for all."""

UNAVAILABLE = Failure("robots.txt unavailable", retryable=True)
UNAVAILABLE_S = 300.0
"""How long no rules are asked for again where they could not be had."""


@dataclass(slots=True)
class Job:
    """A row on its way, or a file of rules for the rows of an origin."""

    number: int
    address: WebAddress
    first: WebAddress
    """Where each attempt starts."""
    origin: "Origin | None" = None
    """Whom the file of rules is for; None for a row."""
    opt_out: str = ""
    """Which file of rules."""
    num_redirects: int = 0
    num_retries: int = 0
    seconds_left: float = 0.0
    """Of the attempt under way, over its redirects; 0 before it."""


class Origin:
    def __init__(self, url: str, host: str) -> None:
        self.url = url
        self.host = host
        self.waiting: list[Job] = []
        self.is_asked = False
        self.unasked: list[str] = []
        self.verdict: Failure | None = None
        """Why none of its rows can be asked for now."""
        self.rules = Rules()
        self._valid_until = float("-inf")

    def is_known(self, now: float) -> bool:
        return now < self._valid_until

    def ask(self, names: Sequence[str]) -> None:
        self.is_asked = True
        self.unasked = list(names)
        self.verdict = None
        self.rules = Rules()

    def next_job(self) -> Job:
        address = WebAddress(
            self.url.partition(":")[0], self.host, self.url, RULE_PATHS[self.unasked[0]]
        )
        return Job(-1, address, address, origin=self, opt_out=self.unasked[0])

    def take(self, name: str, outcome: Fetched | Failure, now: float) -> None:
        """One file's text, or why there is none: RFC 9309, section 2.3.1."""
        self.unasked.remove(name)
        self._valid_until = now + RULES_VALID_S
        if isinstance(outcome, Fetched):
            self.rules.num_bytes += len(outcome.data)
            if name == "robots.txt":
                self.rules.robots = parse_robots(outcome.data)
            else:
                self.rules.tdm = parse_tdmrep(outcome.data)
        elif outcome.reason in UNREACHABLE_REASONS:
            self._give_up(outcome, now)
        elif name == "robots.txt" and _is_passing(outcome):
            self._give_up(UNAVAILABLE, now)
        self.is_asked = bool(self.unasked)

    def _give_up(self, verdict: Failure, now: float) -> None:
        self.verdict = verdict
        self._valid_until = now + UNAVAILABLE_S
        self.unasked.clear()

    def take_waiting(self) -> list[Job]:
        jobs, self.waiting = self.waiting, []
        return jobs


def _is_passing(failure: Failure) -> bool:
    """ "Unreachable" in RFC 9309's words (all is disallowed), and not "unavailable" (allowed)."""
    return failure.retryable or failure.reason.startswith("http 5")
