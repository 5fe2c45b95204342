"""One polite, safe HTTP fetch: a URL in, its bytes or the reason why not out.

Nothing of a list is trusted. Only http and https; no address that is private, loopback,
link-local, multicast or a cloud's metadata service, at every redirect too (connections.py sees to
it); a cap on the bytes; a deadline for the whole attempt, so that a server that drips a byte a
second ends. The user agent says who asks, and X-Robots-Tag is honoured. Reads and writes no files.
"""

import logging
import random
import ssl
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urljoin

import urllib3
from pydantic import Field
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Timeout, parse_url

from infra.config import EXECUTION_ONLY, Settings
from pipeline.connections import (
    DeadlineTLSSocket,
    HTTPPool,
    HTTPSPool,
    RefusedAddressError,
    limits,
    seconds_left,
)

RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that a later try may better; any other, 404 and 410 above all, is final."""

REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 15.0
"""Also the longest Retry-After waited for: a thread that sleeps fetches nothing."""

_CHUNK_BYTES = 1 << 16


class FetchSettings(Settings):
    """What a fetch may do and whom it says it is."""

    timeout: Annotated[float, EXECUTION_ONLY, Field(gt=0)] = 10.0
    """Seconds for one attempt in all: connecting, redirects and the last byte."""
    retries: Annotated[int, EXECUTION_ONLY, Field(ge=0)] = 2
    """How often a fetch is tried again after a time-out, a broken connection, 429 or 5xx."""
    max_bytes: int = Field(default=50_000_000, gt=0)
    """Give up answers that are longer."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts, as URLs name them, that may be at a private or local address."""
    user_agent_token: str = Field(default="carrara", pattern=r"^[!-~]+$")
    """The name of this program in its user agent and in X-Robots-Tag headers meant for it."""
    contact: Annotated[str | None, EXECUTION_ONLY] = Field(default=None, pattern=r"^[ -~]*$")
    """Where a site's owner can complain (a URL or a mail address): told in the user agent."""
    disallowed_header_directives: tuple[str, ...] = (
        "noai",
        "noimageai",
        "noindex",
        "noimageindex",
    )
    """X-Robots-Tag directives that forbid the use of a picture; img2dataset's defaults."""

    @property
    def user_agent(self) -> str:
        contact = f"; +{self.contact}" if self.contact else ""
        return f"{self.user_agent_token} (image-text dataset builder{contact})"


@dataclass(frozen=True)
class Fetched:
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Failure:
    reason: str
    """One of a small closed set, to be counted: "dns", "timeout", "http 404", ..."""
    retryable: bool = False
    retry_after_s: float | None = None


class Fetcher:
    """Connections and one TLS context, shared by all the threads of a process."""

    def __init__(self, settings: FetchSettings, num_connections: int = 64) -> None:
        self._settings = settings
        self._allow_hosts = frozenset(host.lower() for host in settings.allow_hosts)
        # It warns of every odd header and every certificate that does not match: failures that are
        # counted anyway.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        context = ssl.create_default_context()
        context.sslsocket_class = DeadlineTLSSocket
        self._pool = urllib3.PoolManager(
            num_pools=num_connections,
            maxsize=num_connections,
            headers={"User-Agent": settings.user_agent, "Accept": "image/*,*/*;q=0.8"},
            ssl_context=context,
        )
        self._pool.pool_classes_by_scheme = {"http": HTTPPool, "https": HTTPSPool}

    def fetch(self, url: str) -> Fetched | Failure:
        """The bytes at `url`, tried again while the failure is of a kind that may pass."""
        answer = self._attempt(url)
        for num_retries in range(self._settings.retries):
            if isinstance(answer, Fetched) or not answer.retryable:
                break
            time.sleep(_backoff_s(num_retries, answer.retry_after_s))
            answer = self._attempt(url)
        return answer

    def _attempt(self, url: str) -> Fetched | Failure:
        limits.deadline = time.monotonic() + self._settings.timeout
        limits.allow_hosts = self._allow_hosts
        try:
            return self._follow(url)
        except RefusedAddressError:
            return Failure("refused address")
        except LocationParseError:
            return Failure("invalid url")
        except (HTTPError, OSError) as error:
            return _network_failure(error)

    def _follow(self, url: str) -> Fetched | Failure:
        for _ in range(MAX_REDIRECTS + 1):
            # Percent-encodes what is not ASCII, and IDNA-encodes the host.
            target = parse_url(url.strip())
            if target.scheme not in ("http", "https"):
                return Failure("refused scheme" if target.scheme else "invalid url")
            if not target.host:
                return Failure("invalid url")
            response = self._pool.urlopen(
                "GET",
                target.url,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=Timeout(seconds_left()),
            )
            location = response.headers.get("Location")
            if response.status in REDIRECT_STATUSES and location:
                response.close()
                url = urljoin(target.url, location)
                continue
            try:
                return self._receive(response)
            finally:
                # A connection whose body was read to its end has gone back to the pool already.
                response.close()
        return Failure("too many redirects")

    def _receive(self, response: urllib3.BaseHTTPResponse) -> Fetched | Failure:
        settings = self._settings
        if not 200 <= response.status < 300:
            return Failure(
                f"http {response.status}",
                retryable=response.status in RETRYABLE_STATUSES,
                retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
            )
        if is_disallowed(
            response.headers.getlist("X-Robots-Tag"),
            settings.user_agent_token,
            settings.disallowed_header_directives,
        ):
            return Failure("disallowed by X-Robots-Tag")
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > settings.max_bytes:
            return Failure("too large")
        chunks: list[bytes] = []
        num_bytes = 0
        while chunk := response.read1(_CHUNK_BYTES):
            chunks.append(chunk)
            num_bytes += len(chunk)
            if num_bytes > settings.max_bytes:
                return Failure("too large")
            seconds_left()
        return Fetched(b"".join(chunks)) if chunks else Failure("empty answer")


def is_disallowed(values: list[str], user_agent_token: str, directives: Collection[str]) -> bool:
    """Whether X-Robots-Tag headers forbid the use: `directive, ...` or `agent: directive, ...`."""
    for value in values:
        agent = ""
        for part in value.lower().split(","):
            name, colon, rest = part.strip().partition(":")
            # `max-snippet: 5` is a directive with a value, not an agent's name.
            if colon and not name.startswith(("max-", "unavailable_after")):
                agent, name = name.strip(), rest.strip()
            names = {"noindex", "nofollow"} if name == "none" else {name}
            if agent in ("", user_agent_token.lower()) and not names.isdisjoint(directives):
                return True
    return False


def _network_failure(error: Exception) -> Failure:
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return Failure("dns", retryable=True)
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return Failure("connection refused", retryable=True)
    if isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)):
        return Failure("timeout", retryable=True)
    if isinstance(error, (ssl.SSLError, urllib3.exceptions.SSLError)):
        return Failure("tls")
    if isinstance(error, urllib3.exceptions.DecodeError):
        return Failure("undecodable answer")
    # What is left: the other side went away before the answer's end, or spoke no HTTP.
    return Failure("connection broken", retryable=True)


def _backoff_s(num_retries: int, retry_after_s: float | None) -> float:
    # Jitter keeps the threads that one busy server turned away from coming back all at once.
    backoff_s = FIRST_BACKOFF_S * 2.0**num_retries * random.uniform(0.5, 1.5)
    return min(MAX_BACKOFF_S, max(backoff_s, retry_after_s or 0.0))


def _retry_after_s(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdecimal() else None
