"""The way out: names resolved a second, requests answered a second, and how wrong the clock is.

A laptop without a network is no fault: downloads won't work, all else does.
"""

import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime

from infra.checks.finding import Finding, Subject, broken, ok, warning

NAMES = (
    *("example.com", "example.org", "wikipedia.org", "wikimedia.org", "archive.org"),
    *("commoncrawl.org", "github.com", "huggingface.co", "python.org", "pytorch.org"),
    *("debian.org", "kernel.org", "mozilla.org", "w3.org", "ietf.org", "arxiv.org"),
)
"""Few, and of hosts that a lookup does not burden."""
DNS_TIMEOUT_S = 10.0
LOW_NAMES_A_S = 20.0
"""A worker's 64 connections ask for about this many new hosts a second (docs/download.md)."""
EGRESS_TIMEOUT_S = 10.0
LEAST_BYTES = 1 << 20
LARGE_BYTES = 32 << 20
"""Of --egress-url no more is read."""
NO_NETWORK = "nothing to do unless you download: then connect, or set HTTPS_PROXY"
IN_ITS_PLACE = "something answers in its place: a proxy, or a network that asks for a login first"
LOW_BYTES_A_S = 1e6
CLOCK_OFF_S, CLOCK_BROKEN_S = 30.0, 900.0
"""Object stores refuse requests signed with a clock that is 15 minutes off."""


def check(subject: Subject) -> Iterator[Finding]:
    yield _dns()
    yield from _egress(subject.egress_url)


def _dns() -> Finding:
    pool = ThreadPoolExecutor(len(NAMES))
    start = time.perf_counter()
    lookups = [pool.submit(_resolves, name) for name in NAMES]
    wait(lookups, DNS_TIMEOUT_S)
    seconds = time.perf_counter() - start
    num = sum(lookup.done() and lookup.result() for lookup in lookups)
    pool.shutdown(wait=False, cancel_futures=True)
    found = f"{num} of {len(NAMES)} names in {seconds:.2f} s"
    if num == 0:
        return warning("dns", f"{found}: no name can be resolved", NO_NETWORK)
    if num < len(NAMES):
        advice = "a resolver that knows few names fails downloads: see /etc/resolv.conf"
        return warning("dns", found, advice)
    found = f"{found}, {num / seconds:.0f} a second"
    if num / seconds < LOW_NAMES_A_S:
        advice = "run a caching resolver here (unbound, dnsmasq): downloads ask for many names"
        return warning("dns", found, advice)
    return ok("dns", found)


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, 443)
    except OSError:
        return False
    return True


def _egress(url: str) -> Iterator[Finding]:
    request = urllib.request.Request(url, headers={"User-Agent": "carrara doctor"})
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=EGRESS_TIMEOUT_S) as answer:
            answered_s = time.perf_counter() - start
            date = answer.headers.get("Date")
            num_bytes = _read(answer.read, start + EGRESS_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        advice = "the way out is there, its rate was not measured: --egress-url of another file"
        yield warning("egress", f"{url}: answered {error.code} {error.reason}", advice)
        return
    except http.client.HTTPException as error:
        yield warning("egress", f"{url}: {type(error).__name__} {error}", IN_ITS_PLACE)
        return
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
        yield warning("egress", f"{url}: {reason}", NO_NETWORK)
        return
    rate = num_bytes / (time.perf_counter() - start)
    found = f"{url}: answered in {answered_s * 1e3:.0f} ms"
    if num_bytes < LEAST_BYTES:
        told = f"{found}; {num_bytes:,} bytes are too few to tell a rate by: --egress-url of a file"
        yield ok("egress", f"{told} of some MB")
    elif rate < LOW_BYTES_A_S:
        advice = "downloads will be bound by this line: use a machine with a better one"
        yield warning("egress", f"{found}, {rate / 1e6:.1f} MB/s", advice)
    else:
        yield ok("egress", f"{found}, {rate / 1e6:.1f} MB/s")
    if date:
        yield _clock(date)


def _read(read: object, deadline: float) -> int:
    assert callable(read)
    num_bytes = 0
    while num_bytes < LARGE_BYTES and time.perf_counter() < deadline:
        block = read(1 << 20)
        if not block:
            break
        num_bytes += len(block)
    return num_bytes


def _clock(date: str) -> Finding:
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return warning("clock", f"not held against the server's, which says {date!r}", IN_ITS_PLACE)
    off_s = abs(time.time() - theirs)
    found = f"{off_s:.0f} s from the server's"
    if off_s > CLOCK_BROKEN_S:
        return broken("clock", found, "set the clock (chrony, ntpd): object stores refuse you")
    if off_s > CLOCK_OFF_S:
        return warning("clock", found, "set the clock (chrony, ntpd)")
    return ok("clock", found)
