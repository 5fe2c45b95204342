"""A URL as a list has it -> the one that is asked for, in pieces that no two parsers differ on.

Hosts are lower case and ASCII (IDNA), paths percent-encoded with their dots resolved, credentials
and fragments gone. What goes to libcurl is put together again from checked pieces, so that the
host that was looked up in the allow-list is the host that is connected to. Reads and writes no
files.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import idna

MAX_URL_CHARACTERS = 8000
"""What RFC 9110 (section 4.1) asks every server to bear."""

MAX_HOST_CHARACTERS = 253
"""RFC 1035, section 2.3.4, without the length bytes at both ends."""

_PLAIN = re.compile(
    r"(https?)://((?:[a-z0-9-]{1,63}\.)+[a-z0-9-]{1,63})"
    r"(:[1-9][0-9]{3}|:[1-5][0-9]{4})?(/[!$&-;=?-Z_a-z~]*)?"
)
"""Most URLs of most lists: nothing to be done."""

_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_UNSAFE = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]|%(?![0-9A-Fa-f]{2})")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:[/?]|$)", re.IGNORECASE)
_ENCODED_DOT = re.compile("%2e", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RefusedSchemeError(ValueError):
    """A URL of another kind than http and https."""


@dataclass(frozen=True, slots=True)
class WebAddress:
    scheme: str
    host: str
    """Lower case, ASCII, without a trailing dot; an IPv6 address without its brackets."""
    origin: str
    """`scheme://host[:port]`, the port only where it isn't the scheme's own."""
    path: str
    """With the query; starts with a slash."""

    @property
    def url(self) -> str:
        return self.origin + self.path


def parse_web_address(text: str, base: WebAddress | None = None) -> WebAddress:
    """Raises RefusedSchemeError, or ValueError for what is no URL. `base`: of a redirect."""
    text = text.strip()
    if len(text) > MAX_URL_CHARACTERS:
        raise ValueError("longer than servers take")
    plain = _PLAIN.fullmatch(text)
    if plain and len(plain[2]) <= MAX_HOST_CHARACTERS and not _DOTS.search(text):
        scheme, host, port, path = plain.groups()
        return WebAddress(scheme, host, f"{scheme}://{host}{port or ''}", path or "/")
    if _CONTROL.search(text):
        raise ValueError("control characters")
    if base is not None:
        text = urljoin(base.url, text)
    return _parse(text)


def _parse(text: str) -> WebAddress:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https"):
        raise RefusedSchemeError(text) if _SCHEME.match(text) else ValueError("no scheme")
    # What browsers take a backslash for, and what parsers part company over.
    if "\\" in parts.netloc or not parts.hostname:
        raise ValueError("no host")
    host = ascii_host(parts.hostname)
    port = parts.port
    bracketed = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    suffix = "" if port in (None, default) else f":{port}"
    if port == 0:
        raise ValueError("port 0")
    origin = f"{parts.scheme}://{bracketed}{suffix}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return WebAddress(parts.scheme, host, origin, _encoded(_without_dots(path)))


def ascii_host(host: str) -> str:
    """As it stands in a WebAddress; raises ValueError for what is no host name."""
    if ":" in host:
        return ipaddress.IPv6Address(host.partition("%")[0]).compressed
    if not host.isascii():
        # UTS 46 as browsers do it; IDNAError is a ValueError.
        host = idna.encode(host, uts46=True, transitional=False).decode()
    host = host.lower().removesuffix(".")
    if not _HOST.fullmatch(host) or len(host) > MAX_HOST_CHARACTERS:
        raise ValueError("no host name")
    return host


def _without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4: robots.txt must judge the path that the server will see."""
    if not _DOTS.search(path):
        return path
    head, mark, query = path.partition("?")
    return urljoin("http://h/", _ENCODED_DOT.sub(".", head)).removeprefix("http://h") + mark + query


def _encoded(path: str) -> str:
    return _UNSAFE.sub(lambda found: _percent(found[0]), path)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))
