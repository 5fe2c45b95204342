import ipaddress

import pytest

from pipeline.fetching.addresses import is_public, is_public_address


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("192.168.1.1", False),
        ("172.16.0.1", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
        ("2002:5db8:d822::", True),
        ("64:ff9b:1::a00:1", False),
        ("::127.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("192.0.0.192", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("198.51.100.1", False),
        ("240.0.0.1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("100::1", False),
        ("4000::1", False),
    ],
)
def test_only_addresses_of_the_open_internet_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize("text", ["/run/socket", "", "example.org", "fe80::1%eth0"])
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert not is_public_address(text)
