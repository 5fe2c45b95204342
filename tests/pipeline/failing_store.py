"""An object store that fails half its writes, between its clients and a real one."""

import http.client
import random
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import s3fs

from infra.errors import ShortfallError, StorageError
from infra.summary import Summary

MAX_ATTEMPTS = 300


class FailingStore:
    """Of the writes to paths with `where` in them every other one fails, half of those after it was
    made; None: no write."""

    def __init__(self, endpoint: str) -> None:
        self.where: str | None = None
        self.num_failed = self.num_writes = 0
        self._rng = random.Random(6)
        self._lock = threading.Lock()
        store, target = self, urlsplit(endpoint)

        def answer(request: BaseHTTPRequestHandler) -> None:
            store.answer(request, target.netloc)

        methods = ("GET", "PUT", "POST", "HEAD", "DELETE")
        handler = type("Handler", (_Handler,), {f"do_{name}": answer for name in methods})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, upstream: str) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fails, is_made = self._fate(request)
        status, headers, content = 500, [("Content-Length", "0")], b""
        if is_made:
            connection = http.client.HTTPConnection(upstream, timeout=30)
            connection.request(request.command, request.path, body, dict(request.headers))
            response = connection.getresponse()
            status, content = response.status, response.read()
            headers = [h for h in response.getheaders() if h[0].lower() != "transfer-encoding"]
            connection.close()
        if fails:
            status, headers, content = 500, [("Content-Length", "0")], b""
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _fate(self, request: BaseHTTPRequestHandler) -> tuple[bool, bool]:
        """Whether its answer is that it failed, and whether it is made."""
        is_write = request.command in ("PUT", "POST", "DELETE")
        with self._lock:
            if not is_write or self.where is None or self.where not in request.path:
                return False, True
            self.num_writes += 1
            fails = self._rng.random() < 0.5
            self.num_failed += fails
            return fails, not fails or self._rng.random() < 0.5

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def in_front_of(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingStore]:
    """S3 clients are led to it."""
    store = FailingStore(endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    # The client's own tries would hide most failures: one is left.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        store.close()


def until_it_ends(
    store: FailingStore, run: Callable[[], Summary], kept: Callable[[], Collection[str]]
) -> Summary:
    """A command again and again; nothing of what it `kept`, once whole, may be gone after a later
    one. Any other end than that something could not be written is the test's."""
    before: set[str] = set()
    for _ in range(MAX_ATTEMPTS):
        try:
            summary = run()
        except (ShortfallError, StorageError):
            there = set(kept())
            assert before <= there
            before = there
        else:
            assert before
            assert store.num_failed >= store.num_writes / 4
            return summary
    raise AssertionError("it did not end")
