"""What a page says of its pictures -> pairs of URL and caption, or the reason why not.

URLs are resolved as browsers do (the WHATWG's URL standard, by ada): against the page and its
base, with spaces and other letters encoded, hosts in ASCII, default ports left out. So one picture
has one URL, whatever page it is on and however the page spells it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import ada_url

NO_CAPTION = "no alt text"
SHORT_CAPTION = "short caption"
LONG_CAPTION = "long caption"
UNDECODABLE = "undecodable caption"
NO_ADDRESS = "no address"
BAD_ADDRESS = "bad address"
LONG_ADDRESS = "long address"
NOT_HTTP = "not http(s)"

MAX_URL_CHARACTERS = 8190
"""Apache's LimitRequestLine; nginx takes 8 KiB too. A long base makes all of a page's URLs so."""

MAX_CAPTION_CHARACTERS = 8192
"""A page can make its megabyte one caption."""

CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
"""Unicode's category Cc, line breaks among them."""

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no letter; HTML writes it for NUL."""


class Image(NamedTuple):
    """One <img>: the addresses that it gives, best first, and its alternative text."""

    addresses: tuple[str, ...]
    alt: str | None


@dataclass(frozen=True)
class Page:
    """A page's pictures, where it lies on the web and in a WARC file."""

    url: str
    base: str | None
    """Its <base href>, as it stands there."""
    images: list[Image]
    record_id: str
    warc_file: str
    warc_offset: int | None
    """Of the page's record; null where an archive doesn't tell."""


def pair_of(image: Image, base_url: str | None, min_characters: int) -> tuple[str, str] | str:
    """(url, caption), or why this is no pair; `base_url` as `base_url_of` gives it."""
    caption = tidy(image.alt) if image.alt else ""
    if not caption:
        return NO_CAPTION
    if len(caption) < min_characters:
        return SHORT_CAPTION
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return LONG_CAPTION
    if REPLACEMENT in caption:
        return UNDECODABLE
    url = _resolve(image.addresses, base_url)
    return (url, caption) if url.startswith(("http://", "https://")) else url


def tidy(text: str) -> str:
    """White space and control characters, however many, become one space."""
    plain = text if text.isprintable() else text.translate(CONTROLS)
    return " ".join(plain.split())


def base_url_of(page_url: str, base: str | None) -> str | None:
    """What the page's relative URLs are relative to; None: it has no URL that can be."""
    try:
        page = ada_url.normalize_url(page_url)
    except ValueError:
        return None
    if not base or len(base) > MAX_URL_CHARACTERS:
        return page
    try:
        return ada_url.join_url(page, base)
    except ValueError:
        return page


def widest(srcset: str) -> str | None:
    """The candidate with the greatest width or density of an attribute `srcset`."""
    best, best_size = None, -1.0
    # A comma ends a candidate only where white space follows it: URLs have commas in them.
    for candidate in re.split(r",\s+", srcset.strip().rstrip(",")):
        url, _, descriptor = candidate.strip().partition(" ")
        number = re.match(r"\d+(\.\d+)?", descriptor.strip())
        size = float(number.group()) if number else 1.0
        if url and size > best_size:
            best, best_size = url, size
    return best


def _resolve(addresses: Iterable[str], base_url: str | None) -> str:
    """The first that the web can be asked for, else why there is none."""
    reason = NO_ADDRESS
    for address in addresses:
        try:
            url = (
                ada_url.join_url(base_url, address) if base_url else ada_url.normalize_url(address)
            )
        except ValueError:
            reason = BAD_ADDRESS
            continue
        if not url.startswith(("http://", "https://")):
            reason = NOT_HTTP
        elif len(url) > MAX_URL_CHARACTERS:
            reason = LONG_ADDRESS
        else:
            return url.partition("#")[0]  # what follows never reaches the server
    return reason
