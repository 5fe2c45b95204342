"""The way out, measured against a server of our own; the names of others are not asked for here."""

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.checks import network
from infra.checks.finding import Finding, Subject


class Handler(BaseHTTPRequestHandler):
    ahead_s = 0.0
    size_bytes = 4 << 20

    def do_GET(self) -> None:
        if self.path == "/no-http":
            self.wfile.write(b"<html>please log in</html>\n")
            return
        if self.path == "/forbidden":
            self.send_error(403)
            return
        date = formatdate(time.time() + self.ahead_s, usegmt=True)
        body = bytes(self.size_bytes)
        self.send_response_only(200)
        self.send_header("Date", "soon" if self.path == "/no-date" else date)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(network, "NAMES", ("localhost",))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def findings(url: str) -> dict[str, Finding]:
    return {one.check: one for one in network.check(Subject(None, "", url))}


def test_names_rate_and_clock_are_measured(url: str) -> None:
    found = findings(url)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("dns", "egress", "clock"), "ok"
    )
    assert "MB/s" in found["egress"].found


def test_a_clock_an_hour_off_is_broken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "ahead_s", 3600.0)
    assert findings(url)["clock"].state == "broken"


def test_a_laptop_without_a_network_is_warned_not_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "NAMES", ("nowhere.invalid",))
    found = findings("http://nowhere.invalid/")
    assert {name: one.state for name, one in found.items()} == {
        "dns": "warning",
        "egress": "warning",
    }


@pytest.mark.parametrize(
    ("path", "check", "told"),
    [
        ("no-http", "egress", "BadStatusLine <html>please log in"),
        ("forbidden", "egress", "answered 403 Forbidden"),
        ("no-date", "clock", "which says 'soon'"),
    ],
)
def test_an_odd_answer_is_a_finding(url: str, path: str, check: str, told: str) -> None:
    found = findings(url + path)[check]
    assert found.state == "warning"
    assert told in found.found


def test_where_no_rate_can_be_told_it_says_why(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "size_bytes", 1000)
    found = findings(url)["egress"].found
    assert "1,000 bytes are too few to tell a rate by: --egress-url" in found
