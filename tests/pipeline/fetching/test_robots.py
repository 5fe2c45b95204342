"""Opt-outs: robots.txt, X-Robots-Tag, tdm-reservation, tdmrep.json."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest

from pipeline.fetching.fetch import Failure, Fetched, Fetcher
from pipeline.fetching.fetch_settings import FetchSettings
from pipeline.fetching.robots import Rules, is_disallowed, parse_robots, parse_tdmrep
from pipeline.fetching.web_address import parse_web_address

if TYPE_CHECKING:
    from tests.pipeline.conftest import Script, Site

    MakeFetcher = Callable[..., Fetcher]
    Scripted = Callable[[Script], str]

BY_ROBOTS = Failure("disallowed by robots.txt")
UNAVAILABLE = Failure("robots.txt unavailable", retryable=True)
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Files:
    """A site of files by path, or of whole answers; what is not there is a 404."""

    def __init__(self, **files: bytes) -> None:
        self.files = {"/" + name: content for name, content in files.items()}
        self.hits: Counter[str] = Counter()

    def __call__(self, head: bytes) -> Iterable[bytes]:
        path = head.split()[1].decode()
        self.hits[path] += 1
        content = self.files.get(path, NOT_FOUND)
        if not content.startswith(b"HTTP/"):
            size = len(content)
            start = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            content = start.encode() + content
        yield content


def site_of(robots: bytes) -> Files:
    site = Files(a=b"picture a", b=b"picture b")
    site.files["/robots.txt"] = robots
    return site


def refused(robots: bytes, url: str, token: str = "carrara") -> bool:
    rules = Rules(robots=parse_robots(robots))
    return rules.refusal(parse_web_address(url), token) == BY_ROBOTS


@pytest.mark.parametrize(
    ("robots", "path", "is_refused"),
    [
        (b"", "/a", False),
        (b"User-agent: *\nDisallow: /", "/a", True),
        (b"User-agent: *\nDisallow:", "/a", False),
        (b"User-agent: other\nDisallow: /", "/a", False),
        (b"User-agent: Carrara\nDisallow: /private/", "/private/a", True),
        (b"User-agent: carrara\nAllow: /\n\nUser-agent: *\nDisallow: /", "/a", False),
        (b"User-agent: *\nDisallow: /*.jpg$", "/x/a.jpg", True),
        (b"User-agent: *\nDisallow: /*.jpg$", "/x/a.jpg?x", False),
        (b"User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", False),
        (b"User-agent: *\nDisallow: /a%2fb", "/a%2Fb", True),
        ("User-agent: *\nDisallow: /größe".encode(), "/größe.jpg", True),
        (b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /", "/a", True),
        (b"<html>Not Found</html>", "/a", False),
        (b"\x00\xff\xfe" * 1000, "/a", False),
    ],
)
def test_robots_txt_is_read_as_rfc_9309_has_it(robots: bytes, path: str, is_refused: bool) -> None:
    assert refused(robots, "http://example.org" + path) is is_refused


def test_dots_in_a_path_do_not_lead_around_the_rules() -> None:
    robots = b"User-agent: *\nDisallow: /private/"
    assert refused(robots, "http://example.org/public/../private/a")
    assert refused(robots, "http://example.org/public/%2e%2E/private/a")


def test_rules_beyond_500_kb_are_not_read() -> None:
    robots = b"User-agent: *\n" + b"#" * 512_000 + b"\nDisallow: /"
    assert not refused(robots, "http://example.org/a")


@pytest.mark.timeout(60)
def test_stars_by_the_hundred_are_matched_without_trying_every_way() -> None:
    """Of which there are more than 10^100."""
    robots = b"User-agent: *\n" + b"\n".join(b"Disallow: /" + b"*a" * 200 + b"b" for _ in range(50))
    assert not refused(robots, "http://example.org/" + "a" * 3000)


def test_a_site_that_disallows_is_left_alone(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    site = site_of(b"User-agent: *\nDisallow: /a")
    url = scripted(site)
    answers = dict(make_fetcher().fetch_all([(0, f"{url}/a"), (1, f"{url}/b"), (2, f"{url}/a")]))
    assert answers == {0: BY_ROBOTS, 1: Fetched(b"picture b"), 2: BY_ROBOTS}
    assert site.hits == {"/robots.txt": 1, "/b": 1}


def test_it_is_asked_for_once_however_many_rows_and_lists(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    site = site_of(b"User-agent: *\nAllow: /")
    url = scripted(site)
    fetcher = make_fetcher()
    for _ in range(2):
        assert len(list(fetcher.fetch_all((row, f"{url}/a?{row}") for row in range(30)))) == 30
    assert site.hits["/robots.txt"] == 1


@pytest.mark.parametrize(
    ("robots", "expected"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", Fetched(b"picture a")),
        (b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n", Fetched(b"picture a")),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", UNAVAILABLE),
        (b"HTTP/1.1 501 Oops\r\nContent-Length: 0\r\n\r\n", UNAVAILABLE),
        (b"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n", UNAVAILABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut off", UNAVAILABLE),
        (b"HTTP/1.1 302 Found\r\nLocation: /moved\r\nContent-Length: 0\r\n\r\n", BY_ROBOTS),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /robots.txt\r\nContent-Length: 0\r\n\r\n",
            Fetched(b"picture a"),
        ),
        (b"User-agent: *\nDisallow: /a\n" + b"#" * 2_000_000, BY_ROBOTS),
    ],
)
def test_rules_that_are_not_simply_there(
    scripted: "Scripted", make_fetcher: "MakeFetcher", robots: bytes, expected: Fetched | Failure
) -> None:
    site = site_of(robots)
    site.files["/moved"] = b"User-agent: *\nDisallow: /"
    assert make_fetcher().fetch(scripted(site) + "/a") == expected


def test_a_redirect_needs_the_leave_of_where_it_leads(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    there = site_of(b"User-agent: *\nDisallow: /a")
    location = scripted(there).encode() + b"/a"
    here = Files(
        x=b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    )
    assert make_fetcher().fetch(scripted(here) + "/x") == BY_ROBOTS
    assert there.hits == {"/robots.txt": 1}


@pytest.mark.timeout(60)
def test_crawl_delay_is_kept_to_up_to_a_cap(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    url = scripted(site_of(b"User-agent: *\nCrawl-delay: 3600"))
    fetcher = make_fetcher(max_crawl_delay_s=0.2)
    start = time.monotonic()
    assert len(list(fetcher.fetch_all((row, f"{url}/a?{row}") for row in range(4)))) == 4
    assert time.monotonic() - start > 0.55


@pytest.mark.parametrize("delay", ["nan", "inf", "-1", "1e999", "x", ""])
def test_a_crawl_delay_that_is_no_number_is_none(delay: str) -> None:
    rules = Rules(robots=parse_robots(f"User-agent: *\nCrawl-delay: {delay}".encode()))
    assert rules.crawl_delay_s("carrara") == 0.0


def test_each_opt_out_is_honoured_by_choice(
    scripted: "Scripted", make_fetcher: "MakeFetcher"
) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\nTDM-Reservation: 1\r\nContent-Length: 1\r\n\r\nx"
    )
    site = site_of(b"User-agent: *\nDisallow: /")
    site.files["/a"] = head + b"Content-Length: 1\r\n\r\nx"
    site.files["/.well-known/tdmrep.json"] = b'[{"location": "/", "tdm-reservation": 1}]'
    url = scripted(site) + "/a"
    for opt_out, reason in [
        ("robots.txt", "robots.txt"),
        ("x-robots-tag", "X-Robots-Tag"),
        ("tdm-header", "tdm-reservation"),
        ("tdmrep.json", "tdmrep.json"),
    ]:
        answer = make_fetcher(opt_outs=(opt_out,)).fetch(url)
        assert answer == Failure(f"disallowed by {reason}")
    assert make_fetcher(opt_outs=()).fetch(url) == Fetched(b"x")


def test_by_default_all_is_honoured_that_costs_one_request_a_host_or_less() -> None:
    assert FetchSettings().opt_outs == ("robots.txt", "x-robots-tag", "tdm-header")


def test_a_refused_picture_is_not_read(site: "Site", make_fetcher: "MakeFetcher") -> None:
    site.headers["/endless"] = {"X-Robots-Tag": "noimageai"}
    fetcher = make_fetcher()
    assert fetcher.fetch(f"{site.url}/endless") == Failure("disallowed by X-Robots-Tag")
    assert fetcher.traffic.peak_bytes_in_flight == 0


@pytest.mark.parametrize(
    ("rules", "path", "is_reserved"),
    [
        ([{"location": "/", "tdm-reservation": 1}], "/a", True),
        ([{"location": "/", "tdm-reservation": 0}], "/a", False),
        ([{"location": "/b", "tdm-reservation": 1}], "/a", False),
        ([{"location": "/*.jpg$", "tdm-reservation": 1}], "/x/a.jpg", True),
        # The report's own words: the first in sequence.
        (
            [
                {"location": "/open/", "tdm-reservation": 0},
                {"location": "/", "tdm-reservation": 1},
            ],
            "/open/a",
            False,
        ),
        ([{"location": "/", "tdm-reservation": "1"}], "/a", True),
        ([{"location": "/\nAllow: /", "tdm-reservation": 1}], "/a", False),
        ([{"location": 5}, "x", None, {"tdm-reservation": 1}], "/a", False),
        ({"location": "/", "tdm-reservation": 1}, "/a", False),
    ],
)
def test_tdmrep_json_is_read_as_the_report_has_it(
    rules: object, path: str, is_reserved: bool
) -> None:
    parsed = Rules(tdm=parse_tdmrep(json.dumps(rules).encode()))
    refusal = parsed.refusal(parse_web_address("http://example.org" + path), "carrara")
    assert (refusal == Failure("disallowed by tdmrep.json")) is is_reserved


@pytest.mark.parametrize("data", [b"", b"no json", b"[" * 100_000, b"\xff", b"1", b"null"])
def test_a_tdmrep_json_that_is_none_says_nothing(data: bytes) -> None:
    assert parse_tdmrep(data) == ()


@pytest.mark.parametrize(
    ("value", "disallowed"),
    [
        ("noai", True),
        ("NoIndex, nofollow", True),
        ("none", True),
        ("carrara: noai", True),
        ("Carrara: nofollow, noai", True),
        ("otherbot: noai", False),
        ("nofollow", False),
        ("max-snippet: 5, noimageai", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("", False),
    ],
)
def test_robots_tags_are_read_as_written(value: str, disallowed: bool) -> None:
    directives = frozenset(FetchSettings().disallowed_header_directives)
    assert is_disallowed([value], "carrara", directives) is disallowed


@pytest.mark.parametrize(
    "lines",
    [
        b"X-Robots-Tag:\r\n noai\r\n",
        b"x-robots-tag: nofollow\r\nX-ROBOTS-TAG: carrara: noimageai\r\n",
        b"X-Robots-Tag: caf\xe9, noai\r\n",
        b"X-Robots-Tag:noai\n",
    ],
)
def test_an_opt_out_is_seen_however_its_header_is_written(
    scripted: "Scripted", make_fetcher: "MakeFetcher", lines: bytes
) -> None:
    site = Files(a=b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 1\r\n\r\nx")
    answer = make_fetcher().fetch(scripted(site) + "/a")
    assert answer == Failure("disallowed by X-Robots-Tag")
