"""A web site on 127.0.0.1 with all that a list of URLs meets out there."""

import io
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from benchmarks.certificate import self_signed
from infra.summary import Summary
from pipeline.download import run
from pipeline.fetching.fetch import Fetcher, FetchSettings
from tests.pipeline.downloads import Pair, config

if TYPE_CHECKING:
    from tests.pipeline.crawled import Crawl
    from tests.pipeline.failing_store import FailingStore

NUM_BUSY_ANSWERS = 1


@dataclass
class Site:
    """`hits` counts the requests by path; a slow site waits so long before each picture; /busy
    answers with `busy_status` at first."""

    url: str = ""
    hits: Counter[str] = field(default_factory=Counter)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    slow_s: float = 0.0
    busy_status: int = 429

    def picture(self, number: int) -> str:
        return f"{self.url}/picture/{number}.jpg"

    @staticmethod
    def jpeg(number: int) -> bytes:
        return jpeg(number)


@pytest.fixture
def site() -> Iterator[Site]:
    """/picture/N.jpg, and the bad answers in `_Handler`; a path that isn't there is a 404."""
    with_site = Site()
    server = _serve(with_site)
    with_site.url = f"http://127.0.0.1:{server.server_port}"
    yield with_site
    server.shutdown()
    server.server_close()


@pytest.fixture
def tls_site(tmp_path: Path) -> Iterator[tuple[Site, Path]]:
    """The same over https, and the certificate that makes it trusted."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(b"".join(self_signed()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with_site = Site()
    server = _serve(with_site, context)
    with_site.url = f"https://127.0.0.1:{server.server_port}"
    yield with_site, certificate
    server.shutdown()
    server.server_close()


@pytest.fixture
def make_fetcher() -> Iterator[Callable[..., Fetcher]]:
    """A Fetcher with the settings given, for sites on 127.0.0.1."""
    with ExitStack() as stack:

        def make(num_connections: int = 8, **settings: Any) -> Fetcher:
            defaults: dict[str, Any] = {"allow_hosts": ["127.0.0.1"], "retries": 0, "timeout": 5.0}
            made = Fetcher(FetchSettings(**defaults | settings), num_connections)
            return stack.enter_context(closing(made))

        yield make


@pytest.fixture
def download(tmp_path: Path) -> Callable[..., Summary]:
    """download(pairs, root="corpus", **settings) in this process, from a parquet list."""

    def call(pairs: Sequence[Pair], root: str = "corpus", **settings: Any) -> Summary:
        return run(config(tmp_path, pairs, root, **settings))

    return call


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Crawl]":
    """Archives of a site of nine pages, and the site."""
    from tests.pipeline.crawled import crawled

    with crawled(tmp_path_factory.mktemp("crawl")) as made:
        yield made


@pytest.fixture
def failing_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> "Iterator[FailingStore]":
    """Between S3 clients and the server; fails nothing until it is told where."""
    from tests.pipeline.failing_store import in_front_of

    with in_front_of(s3_endpoint, monkeypatch) as store:
        yield store


Script = Callable[[bytes], Iterable[bytes]]


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], str]]:
    """Start servers that send what a script makes of each request's head; gives their URLs."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(script: Script) -> str:
        handler = type("Handler", (_ScriptHandler,), {"script": staticmethod(script)})
        server = _ScriptServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class _ScriptServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested."""


class _ScriptHandler(socketserver.StreamRequestHandler):
    script: Script

    def handle(self) -> None:
        lines = []
        while (line := self.rfile.readline(100_000)).strip():
            lines.append(line)
        with suppress(OSError):
            for chunk in self.script(b"".join(lines)):
                self.wfile.write(chunk)


@cache
def jpeg(number: int, width: int = 48, height: int = 32) -> bytes:
    """A picture of its own for every number."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested."""


def _serve(site: Site, context: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"site": site})
    server = _QuietServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the client's delayed ACK costs 40 ms an answer
    site: Site

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.site.hits[parts.path] += 1
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path.split("/")[1]:
            case "picture":
                time.sleep(self.site.slow_s)
                self._answer(200, jpeg(int(parts.path.split("/")[2].removesuffix(".jpg"))))
            case "page.jpg":
                self._answer(200, b"<!doctype html><title>Moved</title>")
            case "cut.jpg":
                self._answer(200, jpeg(1)[:-200])
            case "redirect":
                self._answer(302, headers={"Location": query["to"]})
            case "busy":
                busy = self.site.hits[parts.path] <= NUM_BUSY_ANSWERS
                status = self.site.busy_status if busy else 200
                self._answer(status, jpeg(1), {"Retry-After": "0"})
            case "status":
                self._answer(int(query["code"]))
            case "empty":
                self._answer(200)
            case "agent":
                self._answer(200, self.headers["User-Agent"].encode())
            case "broken":
                self._head({"Content-Length": "1000"})
                self.wfile.write(b"short")
                self.close_connection = True
            case "declared-large":
                self._head({"Content-Length": "1000000000"})
            case "endless":
                self._chunks(b"x" * 60_000, pause_s=0.0)
            case "drip":
                self._chunks(b"x", pause_s=0.1)
            case "drip-headers":
                self._drip_headers()
            case _:
                self._answer(404, b"not here")

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self._head({"Content-Length": str(len(body))} | (headers or {}), status)
        self.wfile.write(body)

    def _head(self, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers | self.site.headers.get(self.path, {})).items():
            self.send_header(name, value)
        self.end_headers()

    def _chunks(self, chunk: bytes, pause_s: float) -> None:
        self._head({"Transfer-Encoding": "chunked"})
        while True:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            time.sleep(pause_s)

    def _drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.1)

    def log_message(self, format: str, *args: object) -> None:
        pass
