"""What a fetch may do, whom it says it is and which opt-outs it honours, and how a fetch ends.

Imports no network code, so that a stage can inherit its settings for free. Reads and writes no
files.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, field_validator

from infra.config import EXECUTION_ONLY, Settings
from pipeline.fetching.web_address import ascii_host

OptOut = Literal["robots.txt", "x-robots-tag", "tdm-header", "tdmrep.json"]


class FetchSettings(Settings):
    """What a fetch may do and whom it says it is."""

    timeout: Annotated[float, EXECUTION_ONLY, Field(gt=0)] = 10.0
    """Seconds for one attempt in all: DNS, connecting, TLS, redirects and the last byte."""
    retries: Annotated[int, EXECUTION_ONLY, Field(ge=0)] = 2
    """How often a fetch is tried again after a time-out, a broken connection, 429 or 5xx."""
    max_bytes: int = Field(default=50_000_000, gt=0)
    """Give up answers that are longer."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts, as URLs name them, that may be at a private or local address."""
    user_agent_token: str = Field(default="carrara", pattern=r"^[!-~]+$")
    """This program's name in its user agent, in robots.txt and in X-Robots-Tag headers for it."""
    contact: Annotated[str | None, EXECUTION_ONLY] = Field(default=None, pattern=r"^[ -~]*$")
    """Where a site's owner can complain (a URL or a mail address): told in the user agent."""
    opt_outs: tuple[OptOut, ...] = ("robots.txt", "x-robots-tag", "tdm-header")
    """Opt-outs to honour. robots.txt and tdmrep.json cost a request for each host."""
    disallowed_header_directives: tuple[str, ...] = (
        "noai",
        "noimageai",
        "noindex",
        "noimageindex",
    )
    """X-Robots-Tag directives that forbid the use of a picture; img2dataset's defaults."""
    connections_per_host: Annotated[int, EXECUTION_ONLY, Field(ge=1)] = 8
    """Connections to one host at once; a host that answers 429 or 503 gets fewer."""
    requests_per_second_per_host: Annotated[float, EXECUTION_ONLY, Field(ge=0)] = 0.0
    """Ask no host more often than this (0: as often as the connections to it allow)."""
    max_crawl_delay_s: Annotated[float, EXECUTION_ONLY, Field(ge=0)] = 5.0
    """The longest Crawl-delay of a robots.txt that is kept to; some say days."""
    max_bytes_in_flight: Annotated[int, EXECUTION_ONLY, Field(gt=0)] = 256_000_000
    """Bytes of unfinished answers that one process holds; beyond it the newest ones start anew."""

    @field_validator("allow_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(ascii_host(host.strip("[]")) for host in hosts)

    @property
    def user_agent(self) -> str:
        contact = f"; +{self.contact}" if self.contact else ""
        return f"{self.user_agent_token} (image-text dataset builder{contact})"


@dataclass(frozen=True, slots=True)
class Fetched:
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    reason: str
    """One of a small closed set, to be counted: "dns", "timeout", "http 404", ..."""
    retryable: bool = False
    retry_after_s: float | None = None


RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that a later try may better; any other, 404 and 410 above all, is final."""

_RETRYABLE_REASONS = frozenset(
    {
        "dns",
        "timeout",
        "host unreachable",
        "connection refused",
        "connection broken",
        "robots.txt unavailable",
        *(f"http {status}" for status in RETRYABLE_STATUSES),
    }
)


def may_pass(reason: str) -> bool:
    """Whether rows that failed for this reason are worth another run."""
    return reason in _RETRYABLE_REASONS
