"""A record of Common Crawl's WAT format -> the pictures of the page that it tells of.

A WAT is a WARC file of JSON metadata, one record for each record of the WARC file it was made from.
Its entities are decoded and its text is UTF-8; URLs are as they stand in the page. It knows `src`
and `alt` of an <img>, nothing of lazy loading.
"""

import re

import msgspec

from pipeline.extraction.web_images import Image, Page

IMAGE_PATH = "IMG@/src"
MARK = IMAGE_PATH.encode()

OFFSET = re.compile("[0-9]{1,18}")
"""What a 64-bit integer holds."""


class _Link(msgspec.Struct, gc=False):
    path: str | None = None
    url: str | None = None
    alt: str | None = None


class _Head(msgspec.Struct):
    base: str | None = msgspec.field(name="Base", default=None)


class _Html(msgspec.Struct):
    head: _Head | None = msgspec.field(name="Head", default=None)
    links: list[_Link] = msgspec.field(name="Links", default_factory=list)


class _Response(msgspec.Struct):
    html: _Html | None = msgspec.field(name="HTML-Metadata", default=None)


class _Payload(msgspec.Struct):
    response: _Response | None = msgspec.field(name="HTTP-Response-Metadata", default=None)


class _Header(msgspec.Struct):
    url: str = msgspec.field(name="WARC-Target-URI", default="")
    record_id: str = msgspec.field(name="WARC-Record-ID", default="")


class _Envelope(msgspec.Struct):
    header: _Header = msgspec.field(name="WARC-Header-Metadata", default_factory=_Header)
    payload: _Payload | None = msgspec.field(name="Payload-Metadata", default=None)


class _Container(msgspec.Struct):
    file: str = msgspec.field(name="Filename", default="")
    offset: str | int | None = msgspec.field(name="Offset", default=None)


class _Record(msgspec.Struct):
    envelope: _Envelope = msgspec.field(name="Envelope")
    container: _Container = msgspec.field(name="Container", default_factory=_Container)


_DECODER = msgspec.json.Decoder(_Record)


def read_wat(data: bytes) -> Page | None:
    """None where the record tells of no picture; raises ValueError where it is not a WAT's."""
    if MARK not in data:
        return None
    try:
        record = _DECODER.decode(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    payload = record.envelope.payload
    html = payload.response.html if payload and payload.response else None
    if html is None:
        return None
    images = [
        Image((link.url,) if link.url else (), link.alt)
        for link in html.links
        if link.path == IMAGE_PATH
    ]
    offset = str(record.container.offset)  # "479" in Common Crawl
    return Page(
        url=record.envelope.header.url.strip("<>"),
        base=html.head.base if html.head else None,
        images=images,
        record_id=record.envelope.header.record_id,
        warc_file=record.container.file,
        warc_offset=int(offset) if OFFSET.fullmatch(offset) else None,
    )
