"""WAT records: Common Crawl's, and what is none."""

import json
from typing import Any

import pytest

from pipeline.extraction.wat_record import read_wat
from pipeline.extraction.web_images import Image


def record(links: Any, head: Any = None, **container: Any) -> bytes:
    """As in CC-MAIN, abridged: https://commoncrawl.org/get-started"""
    html = {"Links": links} | ({"Head": head} if head is not None else {})
    document = {
        "Container": {"Filename": "CC-MAIN-1.warc.gz", "Compressed": True, "Offset": "479"}
        | container,
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Length": "415",
            "WARC-Header-Metadata": {
                "WARC-Type": "response",
                "WARC-Target-URI": "https://example.org/page",
                "WARC-Record-ID": "<urn:uuid:43771f4f>",
            },
            "Payload-Metadata": {
                "Actual-Content-Type": "application/http; msgtype=response",
                "HTTP-Response-Metadata": {"Headers": {}, "HTML-Metadata": html},
            },
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def test_pictures_and_their_place_are_read() -> None:
    links = [
        {"path": "A@/href", "url": "/x", "text": "words", "alt": "no picture"},
        {"path": "IMG@/src", "url": "a.jpg", "alt": "naïve 東京", "title": "left out"},
        {"path": "IMG@/longdesc", "url": "b.html"},
        {"path": "IMG@/src", "url": "b.jpg"},
        {"path": "IMG@/src", "alt": "nowhere"},
        {"path": "STYLE/#text", "href": "c.css"},
    ]
    page = read_wat(record(links, {"Base": "/base/", "Title": "T", "Metas": [{"name": "x"}]}))
    assert page is not None
    assert page.images == [
        Image(("a.jpg",), "naïve 東京"),
        Image(("b.jpg",), None),
        Image((), "nowhere"),
    ]
    assert (page.url, page.base) == ("https://example.org/page", "/base/")
    assert (page.record_id, page.warc_file, page.warc_offset) == (
        "<urn:uuid:43771f4f>",
        "CC-MAIN-1.warc.gz",
        479,
    )


def test_entities_are_not_decoded_a_second_time() -> None:
    page = read_wat(record([{"path": "IMG@/src", "url": "a?b&amp;c", "alt": "&lt;b&gt;"}]))
    assert page is not None
    assert page.images == [Image(("a?b&amp;c",), "&lt;b&gt;")]


@pytest.mark.parametrize("offset", [479, "many", "-1", None, "9" * 30, "٣"])
def test_an_odd_offset_is_none(offset: Any) -> None:
    page = read_wat(record([{"path": "IMG@/src", "url": "a"}], Offset=offset))
    assert page is not None
    assert page.warc_offset == (479 if offset == 479 else None)


@pytest.mark.parametrize(
    "data",
    [
        record([]),
        record([{"path": "A@/href", "url": "/x"}]),
        b'{"Envelope":{"note":"IMG@/src"}}',
        b'{"Envelope":{"Payload-Metadata":{"note":"IMG@/src"}}}',
        b"",
        b"no JSON, and no picture",
    ],
)
def test_a_record_without_pictures_is_none(data: bytes) -> None:
    assert read_wat(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b'"IMG@/src"',
        b'{"IMG@/src":1}',
        record([{"path": "IMG@/src", "url": 3}]),
        record({"path": "IMG@/src"}),
        record([{"path": "IMG@/src"}])[:-1],
        record([{"path": "IMG@/src", "alt": "x"}]).replace(b'"x"', b'"\xff"'),
        b'{"Envelope":' * 100_000 + b'"IMG@/src"',
    ],
)
def test_what_is_no_wat_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_wat(data)
