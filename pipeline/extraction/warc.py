"""The pages of one archive: a WARC file's responses, or what a WAT file tells of them.

Reads .warc and .wat, plain or .gz (each record a gzip member of its own, as the format says, or
the file as a whole), at any fsspec URL, as a stream: memory holds one record. What a record lacks
is counted; where the file itself is damaged, reading ends with DamagedError, after every page whose
record is whole.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from infra import storage
from infra.errors import DamagedError
from pipeline.extraction.html_page import read_page
from pipeline.extraction.wat_record import read_wat
from pipeline.extraction.web_images import Page

HTML_TYPES = ("text/html", "application/xhtml+xml")

MAX_RECORD_BYTES = 64 << 20
"""Of a record that is read at all: what is larger is a film, or meant to fill memory."""

HEADER_BYTES = 64 << 10
"""Of a WARC record's header, at most; fastwarc reads 32 KiB of it."""

GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 20


def read_pages(url: str, max_page_bytes: int, counts: Counter[str]) -> Iterator[Page]:
    """Adds to `counts` the records, and by reason those that are of no use.

    Raises FileNotFoundError, StorageError, and DamagedError where the archive is cut or garbled.
    """
    warc_file = url.rsplit("/", 1)[-1]
    with storage.open_read(url) as file:
        held: Page | None = None
        place = 0
        damage: OSError | None = None
        try:
            for record in ArchiveIterator(_Source(file, url), parse_http=False):
                if held:
                    yield held
                held, place = None, record.stream_pos
                counts["records"] += 1
                held = _page(record, warc_file, max_page_bytes, counts)
        except OSError as error:
            damage = error
        if not counts["records"]:
            raise DamagedError(f"not an archive ({damage or 'no record in it'})")
        end = _end_of_record(file, url, place)
        # Its own end may be where the damage is, so the last page waits for this.
        if held and end:
            yield held
        if damage or end is None or not _is_end_of_file(file, url, end):
            what = f"garbled ({damage})" if damage else "cut off"
            raise DamagedError(f"{what} at or after the record at byte {place}")


class _Source:
    """What fastwarc reads from; an error of the storage is no damage, and keeps its own kind."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file, self._url = file, url
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        return storage.read_block(self._file, self._url, size)


def _page(
    record: WarcRecord, warc_file: str, max_page_bytes: int, counts: Counter[str]
) -> Page | None:
    is_wat = record.record_type == WarcRecordType.metadata and (
        record.headers.get("Content-Type") or ""
    ).startswith("application/json")
    if not is_wat and record.record_type != WarcRecordType.response:
        return None
    if record.content_length > MAX_RECORD_BYTES:
        counts["too large"] += 1
        return None
    if is_wat:
        return _wat_page(record, counts)
    return _html_page(record, warc_file, max_page_bytes, counts)


def _wat_page(record: WarcRecord, counts: Counter[str]) -> Page | None:
    data = record.reader.read()
    try:
        return read_wat(data)
    except ValueError:
        counts["bad JSON"] += 1
        return None


def _html_page(
    record: WarcRecord, warc_file: str, max_page_bytes: int, counts: Counter[str]
) -> Page | None:
    answer = _apart(record)
    try:
        answer.parse_http(auto_decode="all", strict_mode=False)
        if not _is_page(answer):
            return None
        data = answer.reader.read(max_page_bytes + 1)
    except OSError:
        counts["bad HTTP"] += 1
        return None
    if len(data) > max_page_bytes:
        counts["cut pages"] += 1
        data = data[:max_page_bytes]
    base, images = read_page(data, answer.http_charset)
    if not images:
        return None
    return Page(
        url=(record.headers.get("WARC-Target-URI") or "").strip("<>"),  # wget writes <URL>
        base=base,
        images=images,
        record_id=record.record_id or "",
        warc_file=warc_file,
        warc_offset=record.stream_pos,
    )


def _apart(record: WarcRecord) -> WarcRecord:
    """Its content on its own: what fails in there is not the archive's damage, nor its end."""
    content = record.reader.read()
    answer = WarcRecord()
    answer.init_headers(WarcRecordType.response, content_length=len(content))
    answer.set_bytes_content(content)
    answer.is_http = True
    return answer


def _is_page(answer: WarcRecord) -> bool:
    """Whether it has the page that was asked for; what is of no stated type may be one."""
    status = answer.http_headers.status_code if answer.http_headers else None
    kind = (answer.http_content_type or HTML_TYPES[0]).lower()
    return status is not None and 200 <= status < 300 and kind in HTML_TYPES


def _end_of_record(file: BinaryIO, url: str, place: int) -> int | None:
    """Where the record at `place` ends; None: its end is missing, which fastwarc doesn't mind."""
    file.seek(0)
    if storage.read_block(file, url, len(GZIP_MAGIC)) == GZIP_MAGIC:
        file.seek(place)
        is_member = storage.read_block(file, url, len(GZIP_MAGIC)) == GZIP_MAGIC
        # Where an archive was compressed as a whole, no member begins at its records' places.
        return _end_of_member(file, url, place if is_member else 0)
    file.seek(place)
    head, blank, _ = storage.read_block(file, url, HEADER_BYTES).partition(b"\r\n\r\n")
    lengths = [
        line.partition(b":")[2].strip()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    if not blank or not lengths or not lengths[0].isdigit():
        return None
    end = place + len(head) + len(blank) + int(lengths[0])
    return end if end <= storage.size_bytes(url) else None


def _end_of_member(file: BinaryIO, url: str, place: int) -> int | None:
    """Of the gzip member that begins at `place`, if its checksum is right."""
    file.seek(place)
    member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        while not member.eof:
            block = storage.read_block(file, url, BLOCK_BYTES)
            if not block:
                return None
            while block and not member.eof:
                member.decompress(block, BLOCK_BYTES)
                block = member.unconsumed_tail
    except zlib.error:
        return None
    return file.tell() - len(member.unused_data)


def _is_end_of_file(file: BinaryIO, url: str, end: int) -> bool:
    """Whether nothing follows but the empty lines that end a plain record, or a tape's zeros."""
    file.seek(end)
    return not storage.read_block(file, url, BLOCK_BYTES).strip(b"\r\n\0")
