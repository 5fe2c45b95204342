"""What a download's driver says of its workers."""

from typing import Any

import pytest

from pipeline.downloading.download_workers import tell_who_asks
from pipeline.fetching.fetch_settings import FetchSettings


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [({}, True), ({"contact": "mailto:me@example.org"}, False), ({"allow_hosts": ("a",)}, False)],
)
def test_who_asks_strangers_without_an_address_is_told_of_it(
    capsys: pytest.CaptureFixture[str], settings: dict[str, Any], is_told: bool
) -> None:
    tell_who_asks(FetchSettings(**settings))
    assert ("--contact URL or MAIL" in capsys.readouterr().err) is is_told
