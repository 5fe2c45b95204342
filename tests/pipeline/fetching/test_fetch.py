from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from pipeline.fetching.fetch import Failure, Fetched, Fetcher, FetchSettings

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def fetch(url: str, **settings: Any) -> Fetched | Failure:
    with closing(fetcher(**settings)) as only:
        return only.fetch(url)


def fetcher(num_connections: int = 2, **settings: Any) -> Fetcher:
    defaults: dict[str, Any] = {"allow_hosts": ["127.0.0.1"], "retries": 0, "timeout": 5.0}
    return Fetcher(FetchSettings(**defaults | settings), num_connections)


def reason(answer: Fetched | Failure) -> str:
    assert isinstance(answer, Failure), answer
    return answer.reason


def test_the_bytes_of_a_picture_arrive_as_they_were_sent(site: "Site") -> None:
    assert fetch(site.picture(3)) == Fetched(site.jpeg(3))


def test_connections_are_used_again(site: "Site") -> None:
    with closing(fetcher()) as only:
        for number in range(4):
            assert only.fetch(site.picture(number)) == Fetched(site.jpeg(number))
        assert only.traffic.num_connections == 1


def test_redirects_are_followed(site: "Site") -> None:
    there = quote(site.picture(1), safe="")
    assert fetch(f"{site.url}/redirect?to={there}") == Fetched(site.jpeg(1))


def test_a_long_chain_of_redirects_ends(site: "Site") -> None:
    here = "/redirect?to="
    for _ in range(7):
        here = "/redirect?to=" + quote(here, safe="")
    assert reason(fetch(site.url + here)) == "too many redirects"


def test_a_404_is_final(site: "Site") -> None:
    assert fetch(f"{site.url}/none.jpg", retries=3) == Failure("http 404")
    assert site.hits["/none.jpg"] == 1


def test_a_busy_server_is_asked_again(site: "Site") -> None:
    assert fetch(f"{site.url}/busy", retries=1) == Fetched(site.jpeg(1))
    assert site.hits["/busy"] == 2


def test_a_busy_server_is_not_asked_for_ever(site: "Site") -> None:
    assert reason(fetch(f"{site.url}/status?code=503", retries=1)) == "http 503"
    assert site.hits["/status"] == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_a_server_that_drips_is_given_up_at_the_deadline(site: "Site", path: str) -> None:
    assert reason(fetch(f"{site.url}/{path}", timeout=0.6)) == "timeout"


@pytest.mark.parametrize("path", ["endless", "declared-large"])
def test_an_answer_that_is_too_large_is_not_read_on(site: "Site", path: str) -> None:
    assert reason(fetch(f"{site.url}/{path}", max_bytes=500_000)) == "too large"


def test_an_answer_cut_off_is_no_answer(site: "Site") -> None:
    assert reason(fetch(f"{site.url}/broken")) == "connection broken"


def test_an_empty_answer_is_a_failure(site: "Site") -> None:
    assert reason(fetch(f"{site.url}/empty")) == "empty answer"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/picture/1.jpg",
        "http://[::1]:{port}/picture/1.jpg",
        "http://2130706433:{port}/picture/1.jpg",
        "http://0x7f.1:{port}/picture/1.jpg",
        "http://0.0.0.0:{port}/picture/1.jpg",
        "http://[::ffff:127.0.0.1]:{port}/picture/1.jpg",
        "http://017700000001:{port}/picture/1.jpg",
        "http://0177.0.0.1:{port}/picture/1.jpg",
        "http://0x7f000001:{port}/picture/1.jpg",
        "http://127.1:{port}/picture/1.jpg",
        "http://0:{port}/picture/1.jpg",
        "http://127.0.0.2:{port}/picture/1.jpg",
        "http://localhost.:{port}/picture/1.jpg",
        "http://LOCALHOST:{port}/picture/1.jpg",
        "http://sub.localhost:{port}/picture/1.jpg",
        "http://ⓛocalhost:{port}/picture/1.jpg",
        "http://[::]:{port}/picture/1.jpg",
        "http://[::127.0.0.1]:{port}/picture/1.jpg",
        "http://[::ffff:7f00:1]:{port}/picture/1.jpg",
        "http://[64:ff9b::7f00:1]:{port}/picture/1.jpg",
        "http://[2002:7f00:1::]:{port}/picture/1.jpg",
        "http://[fe80::1%25lo]:{port}/picture/1.jpg",
        "http://127.0.0.1@localhost:{port}/picture/1.jpg",
        "http://127.0.0.1:80@localhost:{port}/picture/1.jpg",
        "http://localhost:{port}#@127.0.0.1/",
        "http://localhost:{port}/?@127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://168.63.129.16/machine?comp=goalstate",
        "http://100.100.100.200/latest/meta-data/",
        "http://192.0.0.192/opc/v2/instance/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://metadata.google.internal./computeMetadata/v1/",
        "http://10.0.0.1/x.jpg",
        "http://192.168.0.1/x.jpg",
        "http://172.31.255.255/x.jpg",
        "http://224.0.0.1/x.jpg",
        "http://255.255.255.255/x.jpg",
    ],
)
def test_private_addresses_are_refused_however_they_are_written(site: "Site", url: str) -> None:
    port = site.url.rsplit(":", 1)[1]
    assert reason(fetch(url.format(port=port))) == "refused address"
    assert not site.hits


def test_nothing_private_is_allowed_by_default(site: "Site") -> None:
    assert reason(fetch(site.picture(1), allow_hosts=[])) == "refused address"
    assert not site.hits


@pytest.mark.parametrize(
    "there", ["//localhost:{port}/picture/1.jpg", "http://[::1]:{port}/picture/1.jpg"]
)
def test_a_redirect_to_a_private_address_is_refused(site: "Site", there: str) -> None:
    inside = quote(there.format(port=site.url.rsplit(":", 1)[1]), safe="")
    assert reason(fetch(f"{site.url}/redirect?to={inside}")) == "refused address"
    assert "/picture/1.jpg" not in site.hits


def test_a_host_allowed_is_the_one_connected_to(site: "Site") -> None:
    """A backslash, a tab, a null: what one parser takes for the host's end, another doesn't."""
    port = site.url.rsplit(":", 1)[1]
    for trick in ("\\", "\t", "\x00", "%00", "\r\n", " "):
        url = f"http://127.0.0.1{trick}@localhost:{port}/picture/1.jpg"
        assert reason(fetch(url)) in ("invalid url", "refused address")
    assert not site.hits


def test_hosts_are_allowed_by_their_names_in_any_spelling() -> None:
    assert FetchSettings(allow_hosts=("Exämple.ORG.", "[::1]")).allow_hosts == (
        "xn--exmple-cua.org",
        "::1",
    )
    with pytest.raises(ValidationError):
        FetchSettings(allow_hosts=("not a host",))


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/x.jpg", "data:,x"])
def test_other_schemes_are_refused(url: str) -> None:
    assert reason(fetch(url)) == "refused scheme"


def test_a_redirect_to_a_file_is_refused(site: "Site") -> None:
    assert reason(fetch(f"{site.url}/redirect?to=file%3A%2F%2F%2Fetc%2Fhostname")) == (
        "refused scheme"
    )


@pytest.mark.parametrize("url", ["", "no url", "http://", "http:///x.jpg", "http://[::1/", "//x/y"])
def test_what_is_no_url_is_a_failure(url: str) -> None:
    assert reason(fetch(url)) == "invalid url"


def test_a_path_outside_ascii_is_encoded(site: "Site") -> None:
    assert reason(fetch(f"{site.url}/größe ü.jpg")) == "http 404"
    assert list(site.hits) == ["/robots.txt", "/gr%C3%B6%C3%9Fe%20%C3%BC.jpg"]


@pytest.mark.parametrize("host", ["exämple.invalid", "nowhere.invalid", "x" * 64 + ".invalid"])
def test_a_name_that_leads_nowhere_is_a_dns_failure(host: str) -> None:
    assert reason(fetch(f"http://{host}/x.jpg")) in ("dns", "invalid url")


def test_a_closed_port_is_a_refused_connection() -> None:
    assert reason(fetch("http://127.0.0.1:9/x.jpg")) == "connection refused"


def test_the_user_agent_says_who_asks_and_how_to_reach_them(site: "Site") -> None:
    answer = fetch(f"{site.url}/agent", contact="mailto:me@example.org")
    assert answer == Fetched(b"carrara (image-text dataset builder; +mailto:me@example.org)")


def test_a_picture_marked_noai_is_left_alone(site: "Site") -> None:
    site.headers["/picture/1.jpg"] = {"X-Robots-Tag": "noai"}
    assert reason(fetch(site.picture(1))) == "disallowed by X-Robots-Tag"
    assert isinstance(fetch(site.picture(1), disallowed_header_directives=[]), Fetched)


def test_https_works_where_the_certificate_is_trusted(
    tls_site: tuple["Site", Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, certificate = tls_site
    assert reason(fetch(site.picture(1))) == "tls"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(site.picture(1)) == Fetched(site.jpeg(1))
    assert reason(fetch(f"{site.url}/drip", timeout=0.6)) == "timeout"
