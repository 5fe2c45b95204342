"""Which network addresses a list of URLs may lead to: those of the open internet.

Asked of every address at the moment a socket to it is opened, whatever name led there, so a name
that resolves to something else the second time gains nothing. Reads and writes no files.
"""

import ipaddress
from functools import lru_cache

METADATA_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Azure's wire server, a metadata service at a public address. The others' are link-local
(169.254.169.254), unique local (fd00:ec2::254) or carrier-grade NAT's (100.100.100.200)."""

SPECIAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # RFC 6890: protocol assignments; 192.0.0.192 is a cloud's metadata
        "192.88.99.0/24",  # RFC 7526: 6to4 relays, deprecated
        "2001::/23",  # RFC 2928: protocol assignments, Teredo among them
        "5f00::/16",  # RFC 9602: segment identifiers
        "fec0::/10",  # RFC 3879: site-local, deprecated
    )
)
"""What not every Python's `is_global` knows for special."""

METADATA_HOSTS = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)
"""Names under which clouds answer for them, refused whatever they resolve to."""

NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""RFC 6052 and RFC 8215: IPv6 addresses that carry an IPv4 address in their last 32 bits."""

IPV4_COMPATIBLE = ipaddress.ip_network("::/96")
"""RFC 4291, deprecated: the same without a prefix."""


@lru_cache(maxsize=1 << 14)
def is_public_address(address: str) -> bool:
    """`is_public` of an address as text; what is no IP address (a Unix socket) is not public."""
    try:
        return is_public(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the open internet, looking through IPv4 carried in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        carried = _carried_address(address)
        if carried is not None:
            return is_public(carried)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and address not in METADATA_ADDRESSES
        and not any(address in network for network in SPECIAL_NETWORKS)
    )


def _carried_address(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in IPV4_COMPATIBLE or any(address in network for network in NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
