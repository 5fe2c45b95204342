"""A name that leads back to the machine itself is told of where there are several machines."""

import socket

import pytest

from infra.checks import hostname
from infra.checks.finding import Subject


@pytest.mark.parametrize(
    ("address", "interface", "state"),
    [("127.0.1.1", "", "warning"), ("127.0.1.1", "eth0", "ok"), ("10.0.0.7", "", "ok")],
)
def test_a_loopback_address_is_a_warning_unless_gloo_is_told_its_interface(
    address: str, interface: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _name: address)
    monkeypatch.setenv(hostname.INTERFACE, interface)
    (finding,) = hostname.check(Subject(None, "", ""))
    assert finding.state == state
