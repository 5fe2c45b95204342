import socket
from typing import TYPE_CHECKING, Any

import pytest

from infra.errors import ShortfallError
from pipeline.fetching.fetch import FetchSettings
from pipeline.fetching.preflight import preflight

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def check(*urls: str, **settings: Any) -> None:
    preflight(urls, FetchSettings(**{"allow_hosts": ["127.0.0.1"]} | settings))


def test_a_list_of_names_that_lead_nowhere_is_told_before_its_rows_are_tried() -> None:
    urls = [f"http://nowhere-{number}.invalid/x.jpg" for number in range(40)]
    with pytest.raises(ShortfallError, match="DNS fails: asked for 16 of the list's 40 hosts"):
        check(*urls)


def test_one_host_that_answers_is_network_enough(site: "Site") -> None:
    check("http://nowhere.invalid/x.jpg", site.picture(1))
    assert not any(path.startswith("/picture") for path in site.hits)


def test_a_host_that_refuses_proves_a_network() -> None:
    check("http://127.0.0.1:9/x.jpg")


def test_hosts_that_never_answer_are_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.jpg"
        with pytest.raises(ShortfallError, match=r"no network: .* not one answered: timeout \(1\)"):
            check(url, timeout=0.3)


def test_private_hosts_that_are_not_allowed_are_not_asked(site: "Site") -> None:
    check(site.picture(1), allow_hosts=[])
    assert not site.hits


def test_a_list_without_a_url_is_left_to_its_rows() -> None:
    check("no url", "ftp://example.org/x.jpg", "")
