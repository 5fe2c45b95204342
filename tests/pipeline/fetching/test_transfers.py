"""Answers that are too large, too slow, too odd or not there at all."""

import gzip
import itertools
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import ConfigError
from pipeline.fetching.fetch import Failure, Fetched, Fetcher

if TYPE_CHECKING:
    from tests.pipeline.conftest import Script, Site

    MakeFetcher = Callable[..., Fetcher]
    Scripted = Callable[[Script], str]

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def only_pictures(script: Callable[[], Iterable[bytes]]) -> "Script":
    """`script` for all but robots.txt, which is not there."""

    def answer(head: bytes) -> Iterable[bytes]:
        if b" /robots.txt " in head:
            return [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
        return script()

    return answer


def drip(head: bytes) -> Iterator[bytes]:
    yield head
    while True:
        time.sleep(0.05)
        yield b"x"


def test_a_body_that_never_ends_is_too_large(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    endless = itertools.chain([OK + b"\r\n"], itertools.repeat(b"x" * 9999))
    answer = make_fetcher(max_bytes=300_000).fetch(scripted(only_pictures(lambda: endless)))
    assert answer == Failure("too large")


def test_headers_that_never_end_are_too_large(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    lines = (b"X-%d: %s\r\n" % (number, b"y" * 500) for number in itertools.count())
    url = scripted(only_pictures(lambda: itertools.chain([OK], lines)))
    assert make_fetcher().fetch(url) == Failure("too large")


def test_interim_answers_that_never_end_are_too_large(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    url = scripted(only_pictures(lambda: itertools.repeat(b"HTTP/1.1 103 Early\r\n\r\n" * 50)))
    assert make_fetcher().fetch(url) == Failure("too large")


def test_an_interim_answer_is_passed_over(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    url = scripted(only_pictures(lambda: [b"HTTP/1.1 103 Early\r\n\r\n" + OK + b"\r\npicture"]))
    assert make_fetcher().fetch(url) == Fetched(b"picture")


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
def test_a_compressed_bomb_is_measured_by_what_it_decodes_to(
    scripted: "Scripted", make_fetcher: "MakeFetcher", coding: str
) -> None:
    bomb = gzip.compress(bytes(50_000_000), 9)
    if coding == "gzip, gzip":
        bomb = gzip.compress(bomb)
    head = OK + f"Content-Encoding: {coding}\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    url = scripted(only_pictures(lambda: [head + bomb]))
    tracemalloc.start()
    assert make_fetcher(max_bytes=1_000_000).fetch(url) == Failure("too large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_an_answer_compressed_unasked_is_decoded(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    head = OK + b"Content-Encoding: gzip\r\n\r\n"
    url = scripted(only_pictures(lambda: [head + gzip.compress(b"picture")]))
    assert make_fetcher().fetch(url) == Fetched(b"picture")
    url = scripted(only_pictures(lambda: [head + b"no gzip at all"]))
    assert make_fetcher().fetch(url) == Failure("undecodable answer")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dripping", [OK + b"\r\n", OK + b"X-Slow: ", b"HTTP/1.1 2"])
def test_a_byte_now_and_then_is_not_waited_for(
    scripted: "Scripted", make_fetcher: "MakeFetcher", dripping: bytes
) -> None:
    url = scripted(only_pictures(lambda: drip(dripping)))
    assert make_fetcher(timeout=0.4).fetch(url) == Failure("timeout", retryable=True)


def test_redirects_all_share_one_deadline(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    def slowly() -> Iterator[bytes]:
        time.sleep(0.15)
        yield b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"

    answer = make_fetcher(timeout=0.4).fetch(scripted(only_pictures(slowly)))
    assert answer == Failure("timeout", retryable=True)


@contextmanager
def mute_server(backlog: int) -> Iterator[str]:
    """One that never accepts what the kernel has put into its queue."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield f"//127.0.0.1:{server.getsockname()[1]}/x.jpg"


@pytest.mark.parametrize("scheme", ["http:", "https:"])
def test_a_server_that_never_answers_times_out(make_fetcher: "MakeFetcher", scheme: str) -> None:
    with mute_server(backlog=8) as address:
        answer = make_fetcher(timeout=0.3, opt_outs=()).fetch(scheme + address)
    assert answer == Failure("timeout", retryable=True)


def test_a_server_that_never_accepts_is_unreachable(make_fetcher: "MakeFetcher") -> None:
    with mute_server(backlog=0) as address, socket.socket() as first, socket.socket() as second:
        port = int(address.split(":")[1].split("/")[0])
        for filler in (first, second):  # the queue's places; the kernel gives one more than asked
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        answer = make_fetcher(timeout=0.3, opt_outs=()).fetch("http:" + address)
    assert answer == Failure("host unreachable", retryable=True)


def test_a_handshake_that_drips_times_out(make_fetcher: "MakeFetcher") -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def shake_slowly() -> None:
            connection, _ = server.accept()
            # A TLS record of 16 KB, a byte at a time.
            with closing(connection), suppress(OSError):
                for byte in b"\x16\x03\x03\x40\x00" + bytes(1000):
                    connection.sendall(bytes([byte]))
                    time.sleep(0.02)

        thread = threading.Thread(target=shake_slowly)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/x.jpg"
        answer = make_fetcher(timeout=0.4, opt_outs=()).fetch(url)
        thread.join()
    assert answer == Failure("timeout", retryable=True)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "connection broken"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connection broken"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "connection broken"),
        (b"<html>no HTTP at all</html>", "connection broken"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "connection broken"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "connection broken"),
        (OK + b"Content-Length: 99999999999999999999999\r\n\r\nx", "too large"),
        (OK + b"\r\n", "empty answer"),
    ],
)
def test_answers_that_are_none(
    scripted: "Scripted", make_fetcher: "MakeFetcher", sent: bytes, reason: str
) -> None:
    answer = make_fetcher().fetch(scripted(only_pictures(lambda: [sent])))
    assert isinstance(answer, Failure)
    assert answer.reason == reason


def test_the_page_of_a_404_is_not_read_to_its_end(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    endless = itertools.chain([b"HTTP/1.1 404 No\r\n\r\n"], itertools.repeat(b"x" * 9999))
    assert make_fetcher().fetch(scripted(only_pictures(lambda: endless))) == Failure("http 404")


def test_all_answers_together_stay_below_their_bound(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    picture = bytes(400_000)

    def slowly() -> Iterator[bytes]:
        yield OK + b"\r\n"
        for start in range(0, len(picture), 50_000):
            yield picture[start : start + 50_000]
            time.sleep(0.005)

    url = scripted(only_pictures(slowly))
    fetcher = make_fetcher(16, max_bytes_in_flight=1_000_000, connections_per_host=16)
    answers = list(fetcher.fetch_all((number, f"{url}/{number}") for number in range(40)))
    assert [answer for _, answer in answers] == [Fetched(picture)] * 40
    assert sorted(number for number, _ in answers) == list(range(40))
    assert fetcher.traffic.num_evictions > 0
    assert fetcher.traffic.peak_bytes_in_flight <= 1_000_000 + len(picture)


def test_time_that_the_caller_takes_is_on_no_answers_bill(
    site: "Site", make_fetcher: "MakeFetcher"
) -> None:
    site.slow_s = 0.2
    urls = [(number, site.picture(number)) for number in range(5)]
    answers = []
    for _, answer in make_fetcher(2, timeout=0.5).fetch_all(urls):
        answers.append(answer)
        time.sleep(0.4)
    assert answers.count(answers[0]) == 1
    assert all(isinstance(answer, Fetched) for answer in answers)


def test_clocks_that_jump_change_nothing(
    site: "Site", make_fetcher: "MakeFetcher", monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = make_fetcher(retries=1)
    jumps = itertools.cycle([0.0, 2e9, -5.0, 4e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    assert fetcher.fetch(site.picture(1)) == Fetched(site.jpeg(1))
    assert fetcher.fetch(f"{site.url}/busy") == Fetched(site.jpeg(1))


def test_nothing_of_the_environment_is_obeyed_but_the_certificates(
    site: "Site", make_fetcher: "MakeFetcher", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert make_fetcher().fetch(site.picture(1)) == Fetched(site.jpeg(1))


def test_no_credentials_and_no_cookies_are_sent(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    heads: list[bytes] = []

    def answer(head: bytes) -> Iterable[bytes]:
        heads.append(head)
        to = b"/second" if b"/first" in head else b""
        status = b"302 Found\r\nLocation: /second" if to else b"200 OK"
        return [
            b"HTTP/1.1 " + status + b"\r\nSet-Cookie: id=1; Path=/\r\n"
            b"Connection: close\r\n\r\npicture"
        ]

    url = scripted(answer).replace("://", "://me:secret@")
    fetcher = make_fetcher(opt_outs=())
    assert fetcher.fetch(f"{url}/first") == Fetched(b"picture")
    assert fetcher.fetch(f"{url}/third") == Fetched(b"picture")
    assert len(heads) == 3
    assert not any(b"cookie" in head.lower() or b"authorization" in head.lower() for head in heads)


def test_a_bundle_of_certificates_that_is_not_there_is_the_users_mistake(
    make_fetcher: "MakeFetcher", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/bundle.pem")
    with pytest.raises(ConfigError, match="can't be read; name a bundle"):
        make_fetcher().fetch("http://127.0.0.1:9/")


def test_the_certificate_store_is_built_once(
    tls_site: tuple["Site", Path],
    make_fetcher: "MakeFetcher",
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A bundle that is gone after the first handshake is missed by none that follows."""
    site, certificate = tls_site
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(certificate.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    fetcher = make_fetcher(1, opt_outs=())
    assert fetcher.fetch(site.picture(0)) == Fetched(site.jpeg(0))
    bundle.unlink()
    site.headers = {f"/picture/{number}.jpg": {"Connection": "close"} for number in range(6)}
    for number in range(1, 6):
        assert fetcher.fetch(site.picture(number)) == Fetched(site.jpeg(number))
    assert fetcher.traffic.num_connections > 3


def test_a_name_is_looked_up_once(site: "Site", make_fetcher: "MakeFetcher") -> None:
    site.headers = {f"/picture/{number}.jpg": {"Connection": "close"} for number in range(30)}
    fetcher = make_fetcher(allow_hosts=["localhost"])
    urls = [site.picture(number).replace("127.0.0.1", "localhost") for number in range(30)]
    answers = dict(fetcher.fetch_all(enumerate(urls)))
    assert answers == {number: Fetched(site.jpeg(number)) for number in range(30)}
    assert fetcher.traffic.num_connections > 8
    assert fetcher.traffic.num_lookups == 1
