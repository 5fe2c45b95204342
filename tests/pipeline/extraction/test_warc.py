"""Archives that are cut, garbled or hostile, record by record."""

import base64
import gzip
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from infra.errors import DamagedError
from pipeline.extraction.warc import MAX_RECORD_BYTES, read_pages
from pipeline.extraction.web_images import Page

MAX_PAGE_BYTES = 100_000


def record(content: bytes, kind: str = "response", content_type: str | None = None) -> bytes:
    stated = content_type or f"application/http; msgtype={kind}"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.org/page\r\n"
        f"WARC-Record-ID: <urn:uuid:{random.Random(content).randbytes(8).hex()}>\r\n"
        "WARC-Date: 2026-01-01T00:00:00Z\r\n"
        f"Content-Type: {stated}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def page(html: bytes, headers: str = "Content-Type: text/html", status: str = "200 OK") -> bytes:
    return record(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + html)


def wat(text: str) -> bytes:
    return record(text.encode(), "metadata", "application/json")


GOOD = page(b'<img src="/good.jpg" alt="a good picture">')


def read(path: Path) -> tuple[list[Page], Counter[str], str | None]:
    """Pages, counts, and the damage."""
    counts = Counter[str]()
    pages: list[Page] = []
    try:
        pages.extend(read_pages(str(path), MAX_PAGE_BYTES, counts))
    except DamagedError as error:
        return pages, counts, str(error)
    return pages, counts, None


def read_bytes(folder: Path, data: bytes) -> tuple[list[Page], Counter[str], str | None]:
    path = folder / "x.warc"
    path.write_bytes(data)
    return read(path)


def alts(pages: list[Page]) -> list[str | None]:
    return [image.alt for page in pages for image in page.images]


# Cuts


RECORDS = [page(f'<img src="/{i}.jpg" alt="picture {i}">'.encode()) for i in range(3)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_cut_anywhere_is_seen_and_no_half_record_is_taken(
    pack: type[bytes], tmp_path: Path
) -> None:
    members = [pack(one) for one in RECORDS]
    data = b"".join(members)
    ends = [sum(map(len, members[: i + 1])) for i in range(3)]
    # What ends a plain record, four bytes, may be missing: its content is whole without.
    slack = 4 if pack is bytes else 0
    for length in range(1, len(data)):
        pages, _, damage = read_bytes(tmp_path, data[:length])
        num_whole = sum(length >= end - slack for end in ends)
        assert alts(pages) == [f"picture {i}" for i in range(num_whole)], length
        is_between = any(end - slack <= length <= end for end in ends)
        assert (damage is None) == is_between, (length, damage)


def test_a_flipped_byte_anywhere_in_a_gz_is_seen(tmp_path: Path) -> None:
    data = b"".join(map(gzip.compress, RECORDS))
    whole = alts(read_bytes(tmp_path, data)[0])
    header = 10  # of a gzip member: time stamp and system may say anything
    starts = [data.index(gzip.compress(one)) for one in RECORDS]
    for place in range(len(data)):
        if any(start + 3 <= place < start + header for start in starts):
            continue
        spoiled = bytearray(data)
        spoiled[place] ^= 0x10
        pages, _, damage = read_bytes(tmp_path, bytes(spoiled))
        assert alts(pages) == whole[: len(pages)], place
        assert damage or len(pages) == len(whole), place  # a stream's last bits may mean nothing


def test_an_archive_compressed_as_a_whole_is_read_and_its_cut_seen(tmp_path: Path) -> None:
    data = gzip.compress(b"".join(RECORDS))
    pages, _, damage = read_bytes(tmp_path, data)
    assert (len(pages), damage) == (3, None)
    for length in range(20, len(data)):
        pages, _, damage = read_bytes(tmp_path, data[:length])
        assert damage, length
        assert len(pages) < 3


@pytest.mark.parametrize("tail", [b"garbage at the end", b"\x1f\x8b\x08 and more"])
def test_what_follows_the_last_record_is_seen(tail: bytes, tmp_path: Path) -> None:
    for pack in (bytes, gzip.compress):
        pages, _, damage = read_bytes(tmp_path, pack(RECORDS[0]) + tail)
        assert (len(pages), bool(damage)) == (1, True)


# Hostile records


def bomb() -> bytes:
    """50 MB of a page in 50 KB."""
    return gzip.compress(b'<img src=/first.jpg alt="the first one">' + b"x" * 50_000_000)


NESTED_JSON = '{"Envelope":{"x":' + "[" * 200_000 + "]" * 200_000 + '},"y":"IMG@/src"}'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (page(b"<p>x</p>", "Content-Type: text/html\r\nContent-Encoding: gzip"), "bad HTTP"),
        (page(b"no length", "Content-Type: text/html\r\nTransfer-Encoding: chunked"), "bad HTTP"),
        (page(b"", "Content-Type: text/html\r\nX: " + "y" * 100_000), "bad HTTP"),
        (page(bomb(), "Content-Type: text/html\r\nContent-Encoding: gzip"), "cut pages"),
        (page(b"<div>" * 100_000), "cut pages"),
        (wat('{"Envelope": "IMG@/src"'), "bad JSON"),
        (wat('{"Envelope": "IMG@/src"}'), "bad JSON"),
        (wat('{"IMG@/src": 3}'), "bad JSON"),
        (wat(NESTED_JSON), "bad JSON"),
        (record(b'{"IMG@/src":"\xff"}', "metadata", "application/json"), "bad JSON"),
        (page(b"<img src=/film.jpg alt=large>" + bytes(MAX_RECORD_BYTES)), "too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_record_is_counted_and_the_next_one_read(
    bad: bytes, reason: str, tmp_path: Path
) -> None:
    pages, counts, damage = read_bytes(tmp_path, bad + GOOD)
    assert counts[reason] == 1
    assert (counts["records"], damage) == (2, None)
    assert alts(pages)[-1] == "a good picture"


@pytest.mark.parametrize(
    "other",
    [
        page(b'<img src=/a.jpg alt="not found">', status="404 Not Found"),
        page(b'<img src=/a.jpg alt="moved on">', status="301 Moved"),
        page(b'<img src=/a.jpg alt="a text">', "Content-Type: text/plain"),
        record(b"\xff\xd8 no HTTP at all <img alt=garbage src=/x.jpg>"),
        record(b"", "response"),
        record(b"20260101\nexample.org. IN A 192.0.2.1", "response", "text/dns"),
        record(b'GET / HTTP/1.1\r\n\r\n<img src=/a.jpg alt="a request">', "request"),
        record(b"<img src=/a.jpg alt=about>", "metadata", "application/warc-fields"),
    ],
)
def test_what_is_no_page_gives_nothing(other: bytes, tmp_path: Path) -> None:
    pages, counts, damage = read_bytes(tmp_path, other + GOOD)
    assert (alts(pages), counts["records"], damage) == (["a good picture"], 2, None)


def test_a_page_without_a_type_and_with_an_odd_one_is_a_page(tmp_path: Path) -> None:
    html = b'<img src=/a.jpg alt="a picture">'
    for headers in ("X: y", "Content-Type: TEXT/HTML;charset=utf-8", "content-type: text/html ;x"):
        assert alts(read_bytes(tmp_path, page(html, headers))[0]) == ["a picture"]


def test_lengths_that_lie_are_damage(tmp_path: Path) -> None:
    for length in (b"99999999999999", b"-5", b"many"):
        liar = RECORDS[0].replace(b"Content-Length: ", b"Content-Length: " + length + b" ", 1)
        liar = liar.replace(length + b" ", length + b"\r\nX: ", 1)
        pages, _, damage = read_bytes(tmp_path, liar + GOOD)
        assert not pages
        assert damage


def test_noise_never_raises_anything_else(tmp_path: Path) -> None:
    """Random bytes, and archives with random bytes put over them."""
    generator = random.Random(0)
    archive = b"".join(RECORDS) + wat('{"Envelope":{},"path":"IMG@/src"}') + GOOD
    for number in range(300):
        for data in (archive, gzip.compress(archive)):
            spoiled = bytearray(data)
            start = generator.randrange(len(data))
            noise = generator.randbytes(generator.randrange(1, 30))
            spoiled[start : start + len(noise)] = noise
            read_bytes(tmp_path, bytes(spoiled))
        _, counts, damage = read_bytes(tmp_path, generator.randbytes(number + 1))
        assert damage
        assert counts["records"] <= 1


def test_memory_holds_a_record_not_the_archive(tmp_path: Path) -> None:
    """Peak memory of a process that reads 8 times as much grows by less than a tenth of that."""
    import subprocess
    import sys

    noise = base64.b64encode(os.urandom(60_000))
    one = gzip.compress(page(b'<img src="/a.jpg" alt="a picture">' + noise), 1)
    program = (
        "import re, sys; from collections import Counter; from pathlib import Path;"
        "from pipeline.extraction.warc import read_pages;"
        "n = sum(1 for _ in read_pages(sys.argv[1], 10**6, Counter()));"
        # Not getrusage's: that of a child begins at its parent's.
        "print(n, *re.findall(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text()))"
    )
    peaks = []
    for num in (200, 1600):
        path = tmp_path / f"{num}.warc.gz"
        path.write_bytes(one * num)
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        )
        count, peak_kb = map(int, done.stdout.split())
        assert count == num
        peaks.append(peak_kb * 1024)
    assert peaks[1] - peaks[0] < 0.1 * 1400 * len(noise)
