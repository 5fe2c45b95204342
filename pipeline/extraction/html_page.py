"""The bytes of an HTML page -> its pictures.

The encoding is found as browsers find it: a byte order mark, then the HTTP header, then the page's
own <meta>, then detection.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import ElementNode, HTMLTree

from pipeline.extraction.web_images import REPLACEMENT, Image, widest

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

SUPERSETS = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs"}
"""The WHATWG's encodings are larger than the standards whose names they bear."""

LAZY_ADDRESSES = ("data-src", "data-original", "data-lazy-src")
"""Where pages keep the address that a script puts into `src` once the reader has scrolled there;
until then `src` holds a placeholder. lazysizes and lozad, jQuery.lazyload, WordPress plug-ins."""

IMAGE_TAG = re.compile("<ima?ge?[\\s/>]", re.IGNORECASE)
META_SCAN_BYTES = 131_072
"""How far detection looks, and for <meta> too; browsers stop at 1,024 bytes, many pages don't."""


def read_page(data: bytes, http_charset: str | None) -> tuple[str | None, list[Image]]:
    """The page's <base href> and its <img>s in the order of the page."""
    text = decode(data, http_charset)
    if not IMAGE_TAG.search(text):
        return None, []
    document = HTMLTree.parse(text).document
    assert document is not None  # a tree that was parsed has one
    # `values` walks the collection once; its iterator looks for each element from the start.
    images = [_image(element) for element in document.get_elements_by_tag_name("img").values()]
    base = document.query_selector("base[href]") if images else None
    return (base.getattr("href") if base else None), images


def decode(data: bytes, http_charset: str | None) -> str:
    """Never fails: what is no letter becomes U+FFFD."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    declared = _known(http_charset) or _known(
        detect_encoding(data, META_SCAN_BYTES, from_html_meta=True)
    )
    text = data.decode(declared or "utf-8", "replace")
    return text if _is_plausible(text) else _detected(data)


def _known(charset: str | None) -> str | None:
    """Python's codec for a label out there."""
    name = map_encoding_to_html5((charset or "").strip(" \t\"'"), fallback_utf8=False)
    return SUPERSETS.get(name, name) if name else None


def _is_plausible(text: str) -> bool:
    """A declaration is not believed where most of what isn't ASCII is no letter by it."""
    num_failed = text.count(REPLACEMENT)
    return not num_failed or 2 * num_failed < len(text) - len(text.encode("ascii", "ignore"))


def _detected(data: bytes) -> str:
    encoding = _known(detect_encoding(data, META_SCAN_BYTES)) or "utf-8"
    return data.decode(encoding, "replace")


def _image(element: ElementNode) -> Image:
    alt = element.getattr("alt")
    if not alt:
        return Image((), None)
    candidates = [element.getattr(name) for name in (*LAZY_ADDRESSES, "src")]
    srcsets = filter(None, map(element.getattr, ("data-srcset", "srcset")))
    candidates += map(widest, srcsets)
    return Image(tuple(address for address in candidates if address and address.strip()), alt)
