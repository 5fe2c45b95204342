"""Disk full, an object store that fails half its writes, a clock that jumps: what is kept."""

import http.client
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import s3fs

from infra import storage
from infra.errors import ShortfallError
from infra.summary import Summary
from pipeline.corpus import read_manifest
from pipeline.download import Config, run
from tests.pipeline import downloads

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def config(folder: Path, site: "Site", num: int, **settings: Any) -> Config:
    gentle: dict[str, Any] = {"retries": 2, "opt_outs": ("x-robots-tag",)}
    return downloads.config(folder, downloads.pictures(site, num), "corpus", **gentle | settings)


# A disk without room

PROGRAM = """
import sys
from infra.errors import CarraraError
from pipeline.download import Config, run

try:
    run(Config.model_validate_json(sys.argv[1]))
except CarraraError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_disk_that_fills_up_costs_the_shards_that_do_not_fit(
    site: "Site", tmp_path: Path
) -> None:
    """The kernel refuses a file that grows beyond a limit (EFBIG) as it does on a full disk."""
    settings = config(tmp_path, site, 11, resize_mode="no", number_sample_per_shard=8)
    whole = run(settings.model_copy(update={"root": str(tmp_path / "whole")}))
    large, small = (shard.num_bytes for shard in read_manifest(str(tmp_path / "whole")).shards)
    assert small < large
    site.slow_s = 0.5
    command = [sys.executable, "-c", PROGRAM, settings.model_dump_json()]
    driver = subprocess.Popen(command, cwd=downloads.REPOSITORY, stdout=subprocess.PIPE, text=True)
    root = tmp_path / "corpus"
    downloads.wait_until(lambda: (root / "download" / "plan.json").exists())
    resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (large - 1, large - 1))
    said, _ = driver.communicate()
    assert driver.returncode == 1
    assert said.count("\n") == 1
    assert "1 of 2 shards failed: 00000 (" in said
    assert "File too large" in said
    assert not (root / "manifest.json").exists()
    assert [path.name for path in sorted((root / "shards").glob("*.tar"))] == ["00001.tar"]
    # With room again the same command makes what is missing, and the bytes are the same.
    site.slow_s = 0.0
    assert run(settings).details["corpus_digest"] == whole.details["corpus_digest"]
    assert not list(root.rglob(".*.partial"))


# An object store that fails half its writes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class FailingStore:
    """In front of a real S3 server: fails every other write, half of those after it was made."""

    def __init__(self, endpoint: str) -> None:
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
        with self._lock:
            is_write = request.command in ("PUT", "POST") and "/shards/" in request.path
            self.num_writes += is_write
            fails = is_write and self._rng.random() < 0.5
            self.num_failed += fails
            is_made = not fails or self._rng.random() < 0.5
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

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def failing_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingStore]:
    store = FailingStore(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    # The client's own tries would hide most failures: one is left.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    s3fs.S3FileSystem.clear_instance_cache()
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    store.close()


def test_a_store_that_fails_half_its_writes_keeps_what_was_whole(
    site: "Site", s3_bucket: str, failing_store: FailingStore, tmp_path: Path
) -> None:
    settings = config(tmp_path, site, 24)
    whole = run(settings)
    there = settings.model_copy(update={"root": f"{s3_bucket}/corpus"})
    num_done = [0]
    while (summary := attempt(there)) is None:
        assert not storage.exists(f"{s3_bucket}/corpus/manifest.json")
        num_done.append(len(storage.list_names(f"{s3_bucket}/corpus/download/done")))
        assert len(num_done) < 60
    assert failing_store.num_failed >= failing_store.num_writes / 4
    assert len(num_done) > 1
    assert num_done == sorted(num_done)  # what was whole was kept from command to command
    assert summary.details["corpus_digest"] == whole.details["corpus_digest"]
    for shard in read_manifest(there.root).shards:
        assert storage.sha256(f"{there.root}/shards/{shard.name}.tar") == shard.sha256


def attempt(settings: Config) -> Summary | None:
    """None where shards could not be written; any other end is the test's."""
    try:
        return run(settings)
    except ShortfallError:
        return None


# A clock that jumps

JUMPING = """
import itertools, sys, time

jumps = itertools.cycle([0, 1e9, -1e9, 86400, -1e6])
real = time.time
time.time = lambda: real() + next(jumps)
"""


def test_a_clock_that_jumps_changes_nothing(site: "Site", tmp_path: Path) -> None:
    """Every look at the wall clock sees another year; deadlines and waits go by the monotonic."""
    settings = config(tmp_path, site, 9)
    still = run(settings.model_copy(update={"root": str(tmp_path / "still")}))
    command = [sys.executable, "-c", JUMPING + PROGRAM, settings.model_dump_json()]
    subprocess.run(command, cwd=downloads.REPOSITORY, check=True)
    assert read_manifest(settings.root).digest == still.details["corpus_digest"]
