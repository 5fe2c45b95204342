"""How a list is fetched: in what order, how fast, how often, and what is left of dead hosts."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from infra.errors import ConfigError
from pipeline.fetching import fetch, hosts
from pipeline.fetching.fetch import Failure, Fetched, Fetcher, FetchSettings
from pipeline.fetching.fetch_settings import may_pass
from pipeline.fetching.hosts import DOWN_S, MAX_HOSTS, Host, Hosts
from pipeline.fetching.origins import Job
from pipeline.fetching.web_address import parse_web_address

if TYPE_CHECKING:
    from tests.pipeline.conftest import Script, Site

    MakeFetcher = Callable[..., Fetcher]
    Scripted = Callable[[Script], str]

PICTURE = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\npicture"
CLOSE = b"Content-Length: 0\r\nConnection: close\r\n\r\n"


class Busy:
    """Answers with `refusal` so often, then with pictures; notes when it was asked, and by how many
    at once."""

    def __init__(self, num_refusals: int, refusal: bytes, slow_s: float = 0.0) -> None:
        self.times: list[float] = []
        self.most_at_once = 0
        self._num_refusals = num_refusals
        self._refusal = refusal
        self._slow_s = slow_s
        self._num_now = 0
        self._lock = threading.Lock()

    def __call__(self, _: bytes) -> Iterator[bytes]:
        with self._lock:
            self.times.append(time.monotonic())
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
            is_refused = len(self.times) <= self._num_refusals
        time.sleep(self._slow_s)
        with self._lock:
            self._num_now -= 1
        yield self._refusal if is_refused else PICTURE


def answers_of(fetcher: Fetcher, urls: Iterable[str]) -> dict[int, Fetched | Failure]:
    return dict(fetcher.fetch_all(enumerate(urls)))


def test_every_row_is_answered_once_whatever_it_is(
    site: "Site", make_fetcher: "MakeFetcher"
) -> None:
    urls = [
        site.picture(0),
        "no url",
        f"{site.url}/none.jpg",
        "http://10.0.0.1/x.jpg",
        site.picture(0),
        "http://nowhere.invalid/x.jpg",
    ]
    answers = answers_of(make_fetcher(), urls)
    assert [
        answer.reason if isinstance(answer, Failure) else "fetched"
        for _, answer in sorted(answers.items())
    ] == ["fetched", "invalid url", "http 404", "refused address", "fetched", "dns"]


def test_rows_are_taken_up_as_they_are_answered(
    site: "Site", make_fetcher: "MakeFetcher", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "NUM_WAITING", 5)
    num_taken = 0

    def urls() -> Iterator[tuple[int, str]]:
        nonlocal num_taken
        for number in range(40):
            num_taken += 1
            yield number, site.picture(number)

    for num_answered, _ in enumerate(make_fetcher().fetch_all(urls())):
        assert num_taken <= num_answered + 5 + 8 + 1
    assert num_taken == 40


def test_a_list_given_up_half_way_leaves_nothing_behind(
    site: "Site", make_fetcher: "MakeFetcher"
) -> None:
    site.slow_s = 0.05
    fetcher = make_fetcher()
    answers = fetcher.fetch_all((number, site.picture(number)) for number in range(100))
    next(answers)
    answers.close()
    assert sum(site.hits.values()) < 40
    site.slow_s = 0.0
    urls = [site.picture(number) for number in range(100, 110)]
    assert answers_of(fetcher, urls) == {
        number: Fetched(site.jpeg(100 + number)) for number in range(10)
    }


def test_a_fetcher_closed_in_the_middle_of_a_list_is_closed(
    site: "Site", make_fetcher: "MakeFetcher"
) -> None:
    fetcher = make_fetcher()
    answers = fetcher.fetch_all((number, site.picture(number)) for number in range(100))
    next(answers)
    fetcher.close()
    answers.close()


def test_no_host_gets_more_connections_than_it_is_due(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    server = Busy(0, b"", slow_s=0.03)
    fetcher = make_fetcher(32, connections_per_host=3, opt_outs=())
    url = scripted(server)
    answers_of(fetcher, [f"{url}/{number}" for number in range(20)])
    assert server.most_at_once == 3


def test_a_host_is_asked_no_oftener_than_it_is_said(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    server = Busy(0, b"")
    fetcher = make_fetcher(requests_per_second_per_host=20.0, opt_outs=())
    url = scripted(server)
    answers_of(fetcher, [f"{url}/{number}" for number in range(8)])
    assert server.times[-1] - server.times[0] >= 7 * 0.05 - 0.02


@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Busy"])
def test_a_busy_host_is_left_alone_as_a_whole(
    scripted: "Scripted", make_fetcher: "MakeFetcher", status: bytes
) -> None:
    """Not only the row that was turned away waits: all of its host do."""
    server = Busy(1, b"HTTP/1.1 " + status + b"\r\nRetry-After: 1\r\n" + CLOSE)
    url = scripted(server)
    fetcher = make_fetcher(connections_per_host=1, retries=1, opt_outs=())
    answers = answers_of(fetcher, [f"{url}/{number}" for number in range(10)])
    assert answers == dict.fromkeys(range(10), Fetched(b"picture"))
    assert server.times[1] - server.times[0] >= 0.99


def test_others_are_fetched_while_a_host_waits(
    site: "Site", scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    busy = scripted(Busy(1, b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\n" + CLOSE))
    fetcher = make_fetcher(2, retries=1, opt_outs=(), allow_hosts=["127.0.0.1", "localhost"])
    busy = busy.replace("127.0.0.1", "localhost")
    urls = [busy, *(site.picture(number) for number in range(20))]
    order = [number for number, _ in fetcher.fetch_all(enumerate(urls))]
    assert sorted(order) == list(range(21))
    assert order[-1] == 0


def test_a_date_in_retry_after_is_read_by_the_servers_clock(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    date = b"Date: Mon, 01 Jan 1990 00:00:00 GMT\r\nRetry-After: Mon, 01 Jan 1990 00:00:01 GMT\r\n"
    server = Busy(1, b"HTTP/1.1 503 Busy\r\n" + date + CLOSE)
    answer = make_fetcher(retries=1, opt_outs=()).fetch(scripted(server))
    assert answer == Fetched(b"picture")
    assert 0.99 <= server.times[1] - server.times[0] < 5


def test_a_host_that_wants_an_hour_gets_it(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    server = Busy(1, b"HTTP/1.1 429 Busy\r\nRetry-After: 3600\r\n" + CLOSE)
    url = scripted(server)
    fetcher = make_fetcher(retries=2, connections_per_host=1, opt_outs=())
    answers = answers_of(fetcher, [f"{url}/{number}" for number in range(10)])
    assert answers == dict.fromkeys(range(10), Failure("http 429", True, 3600.0))
    assert len(server.times) == 1


@pytest.mark.parametrize(
    "value", ["", "soon", "-5", "1e9", "nan", "Mon, 99 Foo 1990", "\u0661", "0", "9" * 400]
)
def test_a_retry_after_that_says_nothing_does_no_harm(
    scripted: "Scripted", make_fetcher: "MakeFetcher", value: str
) -> None:
    refusal = f"HTTP/1.1 500 Oops\r\nRetry-After: {value}\r\n".encode() + CLOSE
    answer = make_fetcher(retries=0, opt_outs=()).fetch(scripted(Busy(1, refusal)))
    assert isinstance(answer, Failure)
    assert answer.reason == "http 500"


@pytest.mark.parametrize(
    ("status", "num_asked"), [(404, 1), (410, 1), (403, 1), (501, 1), (408, 3), (500, 3), (504, 3)]
)
def test_what_may_pass_is_tried_again_and_nothing_else(
    scripted: "Scripted",
    make_fetcher: "MakeFetcher",
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    num_asked: int,
) -> None:
    monkeypatch.setattr(hosts, "FIRST_BACKOFF_S", 0.05)
    server = Busy(9, f"HTTP/1.1 {status} No\r\n".encode() + CLOSE)
    answer = make_fetcher(retries=2, opt_outs=()).fetch(scripted(server))
    assert answer == Failure(f"http {status}", retryable=num_asked > 1)
    assert len(server.times) == num_asked
    assert may_pass(f"http {status}") == (num_asked > 1)


def test_each_wait_is_longer_than_the_one_before(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    server = Busy(9, b"HTTP/1.1 500 Oops\r\n" + CLOSE)
    make_fetcher(retries=2, opt_outs=()).fetch(scripted(server))
    first, second, third = server.times
    assert second - first >= 0.24
    assert third - second >= 0.49


def test_rows_turned_away_together_come_back_apart_and_each_time_alike() -> None:
    jobs = [_job(f"http://example.org/{number}") for number in range(100)]
    waits = [fetch.jitter(job) for job in jobs]
    assert waits == [fetch.jitter(job) for job in jobs]
    assert len(set(waits)) == 100
    assert all(0.5 <= wait <= 1.5 for wait in waits)
    jobs[0].num_retries = 1
    assert fetch.jitter(jobs[0]) != waits[0]


def _job(url: str) -> Job:
    address = parse_web_address(url)
    return Job(0, address, address)


@contextmanager
def dead_address() -> Iterator[str]:
    """A port that no connection ever reaches: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as filler:
        filler.connect(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_dead_host_costs_a_few_timeouts_and_not_one_for_each_row(
    make_fetcher: "MakeFetcher",
) -> None:
    with dead_address() as url:
        fetcher = make_fetcher(retries=2, timeout=0.2, opt_outs=())
        answers = answers_of(fetcher, [f"{url}/{number}" for number in range(5000)])
    assert answers == dict.fromkeys(range(5000), Failure("host unreachable", retryable=True))
    assert fetcher.traffic.num_requests < 15


@pytest.mark.parametrize("opt_outs", [(), ("robots.txt",)])
def test_rows_of_a_dead_host_fail_alike_whether_tried_or_not(
    make_fetcher: "MakeFetcher", opt_outs: tuple[str, ...]
) -> None:
    urls = [f"http://nowhere.invalid/{number}" for number in range(300)]
    fetcher = make_fetcher(retries=1, opt_outs=opt_outs)
    assert set(answers_of(fetcher, urls).values()) == {Failure("dns", retryable=True)}
    assert fetcher.traffic.num_requests < 10


def test_a_host_that_comes_back_in_time_is_fetched(make_fetcher: "MakeFetcher") -> None:
    """A restart of a second under many rows: all were turned away, none is lost."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}"

        def serve() -> None:
            time.sleep(0.2)
            place.listen(64)
            for _ in range(20):
                connection, _ = place.accept()
                with connection:
                    connection.recv(9999)
                    connection.sendall(PICTURE)

        thread = threading.Thread(target=serve)
        thread.start()
        fetcher = make_fetcher(retries=2, opt_outs=())
        answers = answers_of(fetcher, [f"{url}/{number}" for number in range(20)])
        thread.join()
    assert answers == dict.fromkeys(range(20), Fetched(b"picture"))


def test_a_dead_host_is_asked_once_more_after_a_while() -> None:
    host = Host("example.org", FetchSettings())
    failure = Failure("dns", retryable=True)
    for now in (0.0, 10.0, 20.0):
        host.note_unreachable(failure, began=now, now=now + 1)
    assert host.verdict_at(21.0 + DOWN_S - 1) == failure
    assert host.verdict_at(21.0 + DOWN_S) is None
    host.begin(400.0)
    assert not host.has_room()
    host.note_unreachable(failure, began=400.0, now=401.0)
    assert host.verdict_at(402.0) == failure


def test_what_failed_together_counts_once() -> None:
    host = Host("example.org", FetchSettings())
    for now in (10.0, 10.1, 10.2, 10.3):
        host.note_unreachable(Failure("connection refused", retryable=True), began=0.0, now=now)
    assert host.verdict_at(10.4) is None


def test_idle_hosts_are_forgotten() -> None:
    known = Hosts(FetchSettings())
    busy = known["busy.example.org"]
    busy.num_active = 1
    for number in range(MAX_HOSTS + 50):
        assert known[f"{number}.example.org"] is not None
    assert len(known) <= MAX_HOSTS + 1
    assert known["busy.example.org"] is busy


def test_more_connections_than_this_machine_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="open files"):
        Fetcher(FetchSettings(), num_connections=10**9)


def test_outcomes_do_not_depend_on_how_many_are_asked_at_once(
    site: "Site", make_fetcher: "MakeFetcher", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "FIRST_BACKOFF_S", 0.1)
    site.headers["/picture/4.jpg"] = {"X-Robots-Tag": "noai"}
    urls = [
        *(site.picture(number) for number in range(8)),
        *(f"{site.url}/status?code={code}" for code in (404, 410, 500, 503)),
        *(f"http://nowhere.invalid/{number}" for number in range(8)),
        *(f"http://127.0.0.1:9/{number}" for number in range(8)),
        *(
            f"{site.url}/{path}"
            for path in ("busy", "broken", "empty", "redirect?to=/none", "drip")
        ),
    ]
    found = []
    for num_connections in (1, 4, 32):
        site.hits.clear()  # /busy goes by them
        found.append(answers_of(make_fetcher(num_connections, retries=1, timeout=0.5), urls))
    assert found[0] == found[1] == found[2]
