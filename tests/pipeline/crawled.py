"""A site on 127.0.0.1 as wget archives it, the WAT derived from that, and what is to be found."""

import hashlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import Workers
from infra.summary import Summary
from pipeline.extract import Config, run
from tests.pipeline.derived_wat import derive_wat

HERE = Workers(local=True)
HTML = "text/html"


@dataclass(frozen=True)
class Answer:
    content_type: str
    body: bytes
    is_chunked: bool = False
    status: int = 200


def pages(port: int) -> dict[str, Answer]:
    """By path. Pages of several encodings, which say so in several ways or not at all."""
    index = f"""<!doctype html><meta charset="utf-8"><title>Start</title>
        <a href="/deep/cp1252.html">1</a> <a href="/deep/sjis.html">2</a> <a href="/u16.html">3</a>
        <a href="/base.html">4</a> <a href="/silent.html">5</a> <a href="/lazy.html">6</a>
        <a href="/gone.html">7</a> <a href="/notes.txt">8</a>
        <img src="picture/1.jpg" alt="Une  crêperie\n à Quimper">
        <img src="//127.0.0.1:{port}/picture/2.jpg" alt="the other picture">
        <img src="/picture/3.jpg?a=1&amp;b=2#top" alt="Salt &amp; pepper &eacute;t&#233; &#x1F600;">
        <img src="/picture/4.jpg" alt="four"><img src="/picture/5.jpg"><img alt="without address">
        <img src="data:image/gif;base64,R0lGOD" alt="inline picture">
        <img src="http://[" alt="broken">
        <figure><img src="/picture/6.jpg" alt=""><figcaption>a caption, no alt</figcaption></figure>
        <noscript><img src="/picture/2.jpg" alt="the other picture"></noscript>"""
    cp1252 = """<html><head>
        <meta http-equiv="Content-Type" content="text/html; charset=windows-1252"></head>
        <body><img src="../picture/7.jpg" alt="Straße – “Köln”, 5 €"></body></html>"""
    sjis = '<p>こんにちは</p><img src="/picture/8.jpg" alt="東京タワーの夜景①">'
    u16 = '<html><body><img src="picture/9.jpg" alt="Закат над морем"></body></html>'
    base = (
        """<head><base href="/elsewhere/x.html"></head>
        <img src="../picture/10.jpg" alt="seen from the base">
        <img src="/picture/1.jpg" alt="Une crêperie à Quimper">"""
        + "<p>" * 500
    )
    silent = "<p>Это страница без объявленной кодировки, на русском языке.</p>" + (
        '<img src="/picture/11.jpg" alt="Красная площадь зимой">'
    )
    lazy = """<img src="/spinner.gif" data-src="/picture/12.jpg" alt="lazily loaded">
        <img srcset="/picture/13.jpg 100w, /picture/14.jpg 800w" alt="in several sizes">"""
    return {
        "/": Answer(HTML, index.encode()),
        "/deep/cp1252.html": Answer(HTML, cp1252.encode("cp1252")),
        "/deep/sjis.html": Answer(f"{HTML}; charset=Shift_JIS", sjis.encode("cp932")),
        "/u16.html": Answer(HTML, u16.encode("utf-16")),
        "/base.html": Answer(f"{HTML};charset=utf-8", base.encode(), is_chunked=True),
        "/silent.html": Answer(HTML, silent.encode("cp1251")),
        "/lazy.html": Answer(HTML, lazy.encode()),
        "/gone.html": Answer(
            HTML, b'<img src="/picture/1.jpg" alt="not found, sadly">', status=404
        ),
        "/notes.txt": Answer("text/plain", b'<img src="/picture/1.jpg" alt="no page at all">'),
    }


IN_BOTH = {
    ("/picture/1.jpg", "Une crêperie à Quimper", "/"),
    ("/picture/2.jpg", "the other picture", "/"),
    ("/picture/3.jpg?a=1&b=2", "Salt & pepper été 😀", "/"),
    ("/picture/7.jpg", "Straße – “Köln”, 5 €", "/deep/cp1252.html"),
    ("/picture/8.jpg", "東京タワーの夜景①", "/deep/sjis.html"),
    ("/picture/9.jpg", "Закат над морем", "/u16.html"),
    ("/picture/10.jpg", "seen from the base", "/base.html"),
}
SILENT = {("/picture/11.jpg", "Красная площадь зимой", "/silent.html")}
"""What takes detection, which a WAT's maker does, here not."""
LAZY = {
    ("/picture/12.jpg", "lazily loaded", "/lazy.html"),
    ("/picture/14.jpg", "in several sizes", "/lazy.html"),
}
"""What only the page itself tells of."""
ALL = IN_BOTH | SILENT | LAZY


@dataclass(frozen=True)
class Crawl:
    """The archives and the site that they are of."""

    url: str
    warc: Path
    plain_warc: Path
    wat: Path


@contextmanager
def crawled(folder: Path) -> Iterator[Crawl]:
    assert shutil.which("wget"), "wget is missing: these tests need Debian's package of that name"
    server = serve_pages()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for name, options in (("site", []), ("plain", ["--no-warc-compression"])):
            command = ["wget", "--quiet", "--recursive", "--level=1", "--delete-after", *options]
            command += [f"--warc-file={folder / name}", f"--directory-prefix={folder}", f"{url}/"]
            # 8: an answer was an error, as /gone.html is.
            assert subprocess.run(command, cwd=folder, check=False).returncode == 8
        warc, wat = folder / "site.warc.gz", folder / "site.warc.wat.gz"
        derive_wat(warc, wat)
        yield Crawl(url, warc, folder / "plain.warc", wat)
    finally:
        server.shutdown()
        server.server_close()


def serve_pages() -> ThreadingHTTPServer:
    from tests.pipeline.conftest import jpeg

    answers: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number = self.path.removeprefix("/picture/").partition(".")[0]
            missing = Answer("image/jpeg", jpeg(int(number)) if number.isdigit() else b"", False)
            answer = answers.get(self.path, missing)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            if answer.is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body)
            else:
                self.send_header("Content-Length", str(len(answer.body)))
                body = answer.body
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    answers |= pages(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def extract(root: Path, *archives: Path, **settings: Any) -> Summary:
    return run(config(root, *archives, **settings))


def config(root: Path, *archives: Path, **settings: Any) -> Config:
    settings = {"workers": HERE} | settings
    return Config(archives=tuple(map(str, archives)), root=str(root), **settings)


def pairs(root: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(root.glob("pairs-*.parquet")))


def found(root: Path, crawl: Crawl) -> set[tuple[str, str, str]]:
    """(path of the picture, caption, path of the page)."""
    rows = pairs(root).to_pylist()
    assert all(row["url"].startswith(crawl.url) for row in rows)
    names = ("url", "caption", "page_url")
    triples = [tuple(row[name].removeprefix(crawl.url) for name in names) for row in rows]
    assert len(set(triples)) == len(triples)
    return set(triples)


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
