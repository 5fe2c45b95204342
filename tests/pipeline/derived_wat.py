"""A WAT file from a WARC file, as Common Crawl's own program writes it.

No package of PyPI, Debian or npm makes WAT files; the program that does, ia-web-commons, is Java
and in none of them. So this follows its sources (WATExtractorOutput, ExtractingParseObserver,
HTMLMetaData) in the parts that a reader of links can meet. It shares nothing with what it tests:
warcio reads the WARC file, html.parser the pages.
"""

import gzip
import json
import re
import uuid
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from warcio.archiveiterator import ArchiveIterator

URL_ATTRIBUTES = {
    "iframe": ("src",),
    "embed": ("src",),
    "source": ("src",),
    "video": ("src", "poster"),
    "input": ("src",),
}


class _Observer(HTMLParser):
    """The links of a page in the order of its tags; an <a> comes at its end, with its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.head: dict[str, Any] = {}
        self.links: list[dict[str, str]] = []
        self._anchors: list[tuple[dict[str, str], list[str]]] = []
        self._title: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        match tag:
            case "base" if "href" in attributes:
                self.head["Base"] = attributes["href"]
            case "title":
                self._title = []
            case "meta":
                self.head.setdefault("Metas", []).append(attributes)
            case "link" if "href" in attributes:
                self.head.setdefault("Link", []).append(
                    {"path": "LINK@/href", "url": attributes["href"]}
                )
            case "a":
                link = _link("A@/href", "href", attributes, "target", "title", "rel")
                self._anchors.append((link, []))
            case "img" if "src" in attributes:
                self.links.append(_link("IMG@/src", "src", attributes, "alt", "title"))
            case _:
                self.links += [
                    _link(f"{tag.upper()}@/{name}", name, attributes)
                    for name in URL_ATTRIBUTES.get(tag, ())
                    if name in attributes
                ]

    def handle_endtag(self, tag: str) -> None:
        if tag == "title" and self._title is not None:
            self.head["Title"] = "".join(self._title).strip()
            self._title = None
        if tag == "a" and self._anchors:
            link, texts = self._anchors.pop()
            if "url" in link:
                text = "".join(texts).strip()[:128]
                self.links.append(link | ({"text": text} if text else {}))

    def handle_data(self, data: str) -> None:
        if self._title is not None:
            self._title.append(data)
        for _, texts in self._anchors:
            texts.append(data)


def derive_wat(warc: Path, wat: Path) -> None:
    """One metadata record for each record of the WARC file; a gzip member each where it ends so."""
    with warc.open("rb") as source, wat.open("wb") as target:
        pack = gzip.compress if wat.suffix == ".gz" else bytes
        info = {"WARC-Type": "warcinfo", "WARC-Filename": wat.name}
        target.write(
            pack(_record(info, "application/warc-fields", b"format: WARC File Format 1.0\r\n"))
        )
        records = ArchiveIterator(source)
        for record in records:
            headers = dict(record.rec_headers.headers)
            payload = _payload(record)  # first: warcio knows a record's offset once it has read it
            document = {
                "Container": {
                    "Filename": warc.name,
                    "Compressed": warc.suffix == ".gz",
                    "Offset": str(records.get_record_offset()),
                },
                "Envelope": {
                    "Format": "WARC",
                    "WARC-Header-Metadata": headers,
                    "Payload-Metadata": payload,
                },
            }
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            about = {
                "WARC-Type": "metadata",
                "WARC-Target-URI": headers.get("WARC-Target-URI", warc.name),
                "WARC-Refers-To": headers["WARC-Record-ID"],
            }
            target.write(pack(_record(about, "application/json", text.encode())))


def _record(headers: dict[str, str], content_type: str, content: bytes) -> bytes:
    headers |= {
        "WARC-Date": "2026-01-01T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid4()}>",
        "Content-Type": content_type,
        "Content-Length": str(len(content)),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + content + b"\r\n\r\n"


def _payload(record: Any) -> dict[str, Any]:
    kind = {"Actual-Content-Type": record.rec_headers.get_header("Content-Type")}
    body = record.content_stream().read()
    if record.rec_type != "response" or record.http_headers is None:
        return kind
    http = record.http_headers
    response: dict[str, Any] = {
        "Response-Message": {"Version": http.protocol, "Status": http.get_statuscode()},
        "Headers": dict(http.headers),
        "Entity-Length": str(len(body)),
    }
    content_type = http.get_header("Content-Type") or ""
    if content_type.startswith("text/html") and http.get_statuscode() == "200":
        observer = _Observer()
        observer.feed(_text(body, content_type))
        observer.close()
        html = {"Head": observer.head, "Links": observer.links}
        response["HTML-Metadata"] = {name: value for name, value in html.items() if value}
    return kind | {"HTTP-Response-Metadata": response}


def _text(body: bytes, content_type: str) -> str:
    """By the page's first bytes, by the header, by the page; no detection."""
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return body.decode("utf-16")
    declared = re.search(r"charset=[\"']?([\w-]+)", content_type) or re.search(
        r"charset=[\"']?([\w-]+)", body[:1024].decode("latin-1")
    )
    name = declared[1].lower() if declared else "utf-8"
    return body.decode({"shift_jis": "cp932"}.get(name, name), "replace")


def _link(path: str, url: str, attributes: dict[str, str], *others: str) -> dict[str, str]:
    """Each attribute that is there, by its own name but for the URL."""
    link = {"path": path, "url": attributes[url]} if url in attributes else {}
    return link | {name: attributes[name] for name in others if name in attributes}
