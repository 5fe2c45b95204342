"""What is refused before it costs: bodies, pictures, addresses; and who may ask how often."""

import base64
import io
import json
import struct
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from PIL import Image

CAT = [{"text": "cat"}]


class StartService(Protocol):
    def __call__(self, *roots: str, **settings: Any) -> AbstractContextManager[httpx.Client]: ...


def error_of(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert "\n" not in error
    return answer.status_code, error


def ask(client: httpx.Client, **asked: Any) -> tuple[int, str]:
    """Status and error of a search that is refused."""
    return error_of(client.post("/v1/search", json=asked))


# Bodies


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "required"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        (b'{"a":' * 50_000, "body"),
        (b"null", "valid"),
        (b'"cat"', "valid"),
        (b'{"terms": [{"embedding": [NaN]}]}', "finite"),
        (b'{"terms": [{"embedding": [1e999]}]}', "embedding.0"),
        (b'{"terms": [{"text": "\\ud800"}]}', "terms.0.text"),
        (b'{"terms": [{"text": "cat", "weight": 1e400}]}', "weight"),
        (b'{"k": 1' + b"0" * 5000 + b', "terms": [{"text": "cat"}]}', ""),
    ],
)
def test_a_body_that_is_no_question_is_4xx(client: httpx.Client, body: bytes, told: str) -> None:
    for path in ("/v1/search", "/knn-service"):
        status, error = error_of(client.post(path, content=body))
        assert status in (400, 422)
        assert path == "/knn-service" or told in error, error


def test_a_question_too_long_for_its_url_is_refused_in_words(client: httpx.Client) -> None:
    # httpx sends no URL of over 65,536 characters; others do.
    url = f"{client.base_url}/v1/search?query={'x' * 500_000}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url)
    with refused.value as answer:
        assert answer.code == 422
        assert "at most" in json.load(answer)["error"]


def test_a_body_far_too_long_is_refused_when_all_of_it_was_sent(
    served_root: str, start_service: StartService
) -> None:
    with start_service(served_root, max_request_bytes=10_000) as client:
        url = f"{client.base_url}/v1/search"
        with pytest.raises(urllib.error.HTTPError) as refused:  # it reads nothing until then
            urllib.request.urlopen(url, data=b"x" * 30_000_000)
        with refused.value as answer:
            assert answer.code == 413


def test_a_long_body_is_refused_unread(served_root: str, start_service: StartService) -> None:
    with start_service(served_root, max_request_bytes=10_000) as client:
        told = [error_of(client.post("/v1/search", content=b"x" * 10_001))]
        # Without a Content-Length it is counted as it comes.
        told += [error_of(client.post("/v1/search", content=iter([b"x" * 6_000] * 2)))]
        assert told == [(413, "longer than 10,000 bytes")] * 2
        short = json.dumps({"terms": CAT, "k": 1}).encode()
        assert client.post("/v1/search", content=short + b" " * 9_000).status_code == 200


# Pictures


def png_of(width: int, height: int) -> bytes:
    """A few hundred bytes that unfold to a grey picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(width + 1, 1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def truncated_jpeg() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(out, "JPEG")
    return out.getvalue()[:500]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (png_of(60_000, 60_000), "pixels; expected at most"),
        (png_of(2**31 - 1, 2**31 - 1), "image"),
        (truncated_jpeg(), "undecodable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"GIF89a", "image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X", "image"),
    ],
)
def test_a_picture_that_can_t_be_used_is_refused(
    client: httpx.Client, data: bytes, told: str
) -> None:
    status, error = ask(client, terms=[{"image": base64.b64encode(data).decode()}])
    assert (status, told in error) == (400, True), error


def test_the_limit_of_pixels_is_a_setting(
    served_root: str, start_service: StartService, picture: str
) -> None:
    with start_service(served_root, max_image_area=1000) as client:
        status, error = ask(client, terms=[{"image": picture}])
        assert (status, "64 x 64" in error) == (400, True)


# Addresses


class Redirects(BaseHTTPRequestHandler):
    """/?http://elsewhere leads there, /bomb.png is a picture far too large; any other path is a
    secret that must not be fetched."""

    fetched: list[str]

    def do_GET(self) -> None:
        path, _, to = self.path.partition("?")
        type(self).fetched.append(path)
        self.send_response(302 if to else 200)
        if to:
            self.send_header("Location", to)
        body = b"" if to else png_of(60_000, 60_000) if path == "/bomb.png" else b"secret"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def inner() -> Iterator[tuple[int, list[str]]]:
    """A server of the machine's own: its port, and the paths that were fetched of it."""
    Redirects.fetched = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirects)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, Redirects.fetched
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST.", "2130706433", "0x7f000001", "0177.0.0.1"),
        *("127.1", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *("[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "user@127.0.0.1"),
        *("169.254.169.254", "10.0.0.1", "192.168.1.1", "[fe80::1]", "metadata.google.internal"),
    ],
)
def test_no_spelling_of_an_inner_address_is_fetched(
    client: httpx.Client, inner: tuple[int, list[str]], host: str
) -> None:
    port, fetched = inner
    before = len(fetched)
    status, error = ask(client, terms=[{"image_url": f"http://{host}:{port}/secret"}])
    assert (status, "can't be fetched" in error) == (400, True), error
    assert len(fetched) == before


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://127.0.0.1/", "/etc/passwd", "http://", "http:///x"]
)
def test_only_the_web_is_fetched(client: httpx.Client, url: str) -> None:
    status, error = ask(client, terms=[{"image_url": url}])
    assert (status, "can't be fetched" in error) == (400, True), error


def test_a_redirect_leads_no_further_than_an_address_itself(
    served_root: str, start_service: StartService, inner: tuple[int, list[str]]
) -> None:
    port, fetched = inner
    # 127.0.0.1 stands for a host of the open internet that sends the service elsewhere.
    fetch = {"allow_hosts": ["127.0.0.1"], "opt_outs": [], "retries": 0}
    with start_service(served_root, fetch=fetch) as client:
        for host in ("localhost", "[::1]", "2130706433", "169.254.169.254"):
            fetched.clear()
            url = f"http://127.0.0.1:{port}/?http://{host}:{port}/secret"
            status, error = ask(client, terms=[{"image_url": url}])
            assert (status, "can't be fetched" in error) == (400, True), error
            assert fetched == ["/"]
        url = f"http://127.0.0.1:{port}/secret"
        status, error = ask(client, terms=[{"image_url": url}])
        assert (status, "not a picture" in error) == (400, True)
        assert fetched[-1] == "/secret"


def test_a_picture_far_too_large_at_an_address_is_refused_by_its_header(
    served_root: str, start_service: StartService, inner: tuple[int, list[str]]
) -> None:
    port, fetched = inner
    fetch = {"allow_hosts": ["127.0.0.1"], "opt_outs": [], "retries": 0}
    with start_service(served_root, fetch=fetch) as client:
        url = f"http://127.0.0.1:{port}/bomb.png"
        status, error = ask(client, terms=[{"image_url": url}])
        assert (status, "60000 x 60000 pixels; expected at most" in error) == (400, True), error
        assert fetched[-1] == "/bomb.png"


# Results


def test_an_answer_of_near_copies_lists_a_hundred_of_a_hit_and_counts_all(
    copies_root: str, start_service: StartService
) -> None:
    with start_service(copies_root) as client:
        asked = {"terms": [{"uid": "0" * 32}], "k": 100, "dedup": True}
        answer = client.post("/v1/search", json=asked).json()
    nums = {hit["uid"]: hit["folded"] for hit in answer["hits"]}
    assert sorted(nums.values()) == [0] * 20 + [119] * 12 + [599]
    listed = [len(hits) for hits in answer["folded"].values()]
    assert (max(listed), sum(listed)) == (100, 1000)


# Keys and rates


def test_with_keys_only_who_has_one_is_answered(
    served_root: str, start_service: StartService, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# mine\n\nada 0123456789abcdef\nbob fedcba9876543210\n")
    with start_service(served_root, keys=str(keys)) as client:
        for path in ("/health", "/config.json", "/", "/openapi.json"):
            assert client.get(path).status_code == 200
        config = client.get("/config.json").json()
        assert (config["needsKey"], config["inlineThumbnails"]) == (True, False)
        for headers in ({}, {"Authorization": "Bearer 0123"}, {"X-API-Key": "ada"}):
            for path in ("/v1/indices", "/indices-list", "/metrics", "//indices-list"):
                answer = client.get(f"{client.base_url}{path}", headers=headers)
                assert answer.status_code == 401
                assert "API key" in answer.json()["error"]
                assert answer.headers["www-authenticate"] == "Bearer"
        allowed: list[dict[str, Any]] = [
            {"headers": {"Authorization": "Bearer 0123456789abcdef"}},
            {"headers": {"X-API-Key": "fedcba9876543210"}},
            {"params": {"key": "fedcba9876543210"}},
        ]
        for good in allowed:
            assert client.get("/v1/indices", **good).status_code == 200


def test_a_proxy_in_front_may_keep_no_picture_for_others(
    client: httpx.Client, samples: list[Any]
) -> None:
    answer = client.get(f"/v1/thumbnail/emoji/{samples[0].uid}")
    kept = answer.headers["cache-control"].split(", ")
    assert "private" in kept
    assert "public" not in kept


def test_beyond_the_rate_is_429_and_tells_when_to_come_back(
    served_root: str, start_service: StartService
) -> None:
    with start_service(served_root, rate_limit=0.5, burst=3) as client:
        assert client.get("/config.json").json()["inlineThumbnails"] is True
        answers = [client.get("/indices-list") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert 1 <= int(answers[3].headers["retry-after"]) <= 2
        assert "too many requests" in answers[3].json()["error"]
        assert client.get("/health").status_code == 200


def test_another_page_s_scripts_may_read(client: httpx.Client) -> None:
    preflight = {
        "Origin": "https://elsewhere.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = client.options("/knn-service", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    refused = client.post("/knn-service", content=b"{", headers=preflight)
    assert refused.headers["access-control-allow-origin"] == "*"
