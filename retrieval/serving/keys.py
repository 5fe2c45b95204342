"""Who may ask, and how often: API keys from a file, and a rate limit for each key or address.

Reads   the file of keys: a line each, NAME KEY; empty lines and those that begin with # are skipped
"""

import hashlib
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass

from infra import storage
from infra.errors import ConfigError

MIN_KEY_CHARACTERS = 16
"""Fewer can be guessed."""

MAX_CLIENTS = 100_000
"""Remembered by the rate limit; the least lately seen are forgotten, and begin anew."""

IPV6_PREFIX = 64
"""Bits of an address that tell one customer of a network from the next (RFC 6177)."""


def read_keys(url: str) -> dict[str, str]:
    """Names by the sha256 of their keys; raises ConfigError for a file that can't be used."""
    try:
        lines = storage.read_text(url).splitlines()
    except FileNotFoundError:
        raise ConfigError(f"--keys {url}: no such file; expected lines of NAME KEY") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--keys {url}: not text; expected lines of NAME KEY") from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 2 or len(words[1]) < MIN_KEY_CHARACTERS:
            raise ConfigError(
                f"--keys {url}, line {number}: expected NAME KEY, the key of at least "
                f"{MIN_KEY_CHARACTERS} characters without spaces"
            )
        names[digest(words[1])] = words[0]
    if not names:
        raise ConfigError(f"--keys {url}: no key in it; expected lines of NAME KEY")
    return names


def digest(key: str) -> str:
    # A look-up by digest takes as long for a nearly right key as for a wrong one.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def client_of(address: str) -> str:
    """What the rate limit knows a client without a key by."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, IPV6_PREFIX), strict=False))
    return address


@dataclass
class _Bucket:
    tokens: float
    since: float


class RateLimit:
    """A bucket of tokens for each client: `burst` at most, `rate` new ones a second."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, client: str, now: float | None = None) -> float:
        """0.0: go ahead, a token is taken; else how long until there is one."""
        now = time.monotonic() if now is None else now
        bucket = self._buckets.setdefault(client, _Bucket(float(self._burst), now))
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.since) * self._rate)
        bucket.since = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._rate
        bucket.tokens -= 1
        return 0.0
