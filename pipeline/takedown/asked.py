"""What a takedown asks for, given by one's own words or by lists -> tombstones to be.

Reads   files of one URL, domain, uid, sha256 or picture a line, and the pictures of --near
"""

import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter
from pydantic import Field

from infra import storage
from infra.config import Place, Settings
from infra.errors import ConfigError, InputError
from pipeline.picture_hash import PictureHash, dihedral_hashes
from pipeline.signals.hashes import decode_pixels
from pipeline.takedown.blocklist_names import BlocklistName
from pipeline.takedown.receipts import Asked
from pipeline.takedown.tombstones import NEAR, Kind, domain_digest, url_digest

MIN_QUALITY = 50
"""PDQ's paper discards hashes below: too little to see, so that too much looks alike."""

MANY = Parameter(consume_multiple=True)
"""On the command line: --url A B C."""

Stone = tuple[Kind, str, int | None]
"""Kind, value, and the distance of near copies."""


class Request(Settings):
    url: Annotated[tuple[str, ...], MANY] = ()
    """Addresses of pictures; http and https count as one."""
    domain: Annotated[tuple[str, ...], MANY] = ()
    """Domains with all their subdomains."""
    uid: Annotated[tuple[str, ...], MANY] = ()
    """Samples by their uid."""
    sha256: Annotated[tuple[str, ...], MANY] = ()
    """Pictures by the sha256 of their bytes as fetched."""
    near: Annotated[tuple[Place, ...], MANY] = ()
    """Files of pictures: all that look like them go, also turned or mirrored."""
    url_list: Place | None = None
    """A file of addresses, one a line; empty lines and lines that begin with # don't count."""
    domain_list: Place | None = None
    """A file of domains."""
    uid_list: Place | None = None
    """A file of uids."""
    sha256_list: Place | None = None
    """A file of digests."""
    near_list: Place | None = None
    """A file of names of pictures."""
    max_distance: int = Field(default=NEAR, ge=0, le=63)
    """Bits of 256 in which the perceptual hash of what looks like --near may differ."""
    blocklist: Annotated[tuple[BlocklistName, ...], MANY] = ()
    """Lists of hashes: files, or classes as module:Class."""
    note: str = ""
    """Kept in the receipt, such as a ticket's number; no place for personal data."""


def asked_for(request: Request) -> Asked:
    """Raises InputError or ConfigError for what can't be meant."""
    stones: list[Stone] = [
        *(("url", _url(text), None) for text in _all(request.url, request.url_list)),
        *(("domain", _domain(text), None) for text in _all(request.domain, request.domain_list)),
        *(("uid", _hex("uid", text, 32), None) for text in _all(request.uid, request.uid_list)),
        *(
            ("sha256", _hex("sha256", text, 64), None)
            for text in _all(request.sha256, request.sha256_list)
        ),
    ]
    for place in _all(request.near, request.near_list):
        hashes = picture_hashes(storage.absolute(place)).values()
        stones += sorted({("picture", one.hex, request.max_distance) for one in hashes})
    return Asked(note=request.note, stones=stones, blocklists=list(request.blocklist))


def picture_hashes(place: str) -> dict[str, PictureHash]:
    """Of a picture's file, in every position that it may have been turned to."""
    try:
        pixels = decode_pixels(storage.read_bytes(place))
    except FileNotFoundError:
        raise InputError(f"near {place}: no such file; expected a picture") from None
    if pixels is None:
        raise InputError(f"near {place}: can't be decoded; expected a picture")
    hashes = dihedral_hashes(pixels)
    quality = hashes["upright"].quality
    if quality < MIN_QUALITY:
        raise InputError(
            f"near {place}: shows too little to know its like by (PDQ quality {quality}, expected "
            f"{MIN_QUALITY} or more); give its --sha256, --uid or --url"
        )
    return {str(position): one for position, one in hashes.items()}


def _all(given: tuple[str, ...], list_place: str | None) -> Iterator[str]:
    yield from given
    if list_place is None:
        return
    try:
        lines = storage.read_text(list_place).splitlines()
    except FileNotFoundError:
        raise InputError(f"list {list_place}: no such file; expected one name a line") from None
    except UnicodeDecodeError:
        raise InputError(f"list {list_place}: not UTF-8; expected one name a line") from None
    yield from (line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _url(text: str) -> str:
    if "://" not in text:
        raise InputError(
            f"url {text!r}: no address, expected one such as https://example.org/picture.jpg; all "
            "of a site is --domain"
        )
    return url_digest(text)


def _domain(text: str) -> str:
    import tldextract

    try:
        is_host = urlsplit(f"//{text.strip()}").hostname == text.strip().lower()
    except ValueError:
        is_host = False
    if not is_host or "*" in text:
        raise InputError(
            f"domain {text!r}: expected a name such as example.org, which covers its subdomains; "
            "one address is --url"
        )
    # The list of public suffixes that the package brings along; nothing is fetched.
    parts = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)(text.strip())
    if parts.suffix and not parts.domain:
        raise ConfigError(
            f"domain {text!r}: is a public suffix, under which anybody may have a name; expected "
            "one such name"
        )
    return domain_digest(text)


def _hex(kind: str, text: str, num_digits: int) -> str:
    value = text.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{num_digits}}}", value):
        raise InputError(f"{kind} {text!r}: expected {num_digits} hex digits")
    return value
