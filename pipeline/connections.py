"""Connections that reach public addresses alone and end with the attempt they serve.

The address is looked at when the connection is made, whatever its name resolved to before. Reads
and writes no files.
"""

import ipaddress
import socket
import ssl
import threading
import time
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

METADATA_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Azure's wire server: a metadata service at a public address (the others' are link-local)."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: IPv6 addresses that carry an IPv4 address in their last 32 bits."""


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the open internet, looking through IPv4 carried in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried is not None:
            return is_public(carried)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and address not in METADATA_ADDRESSES


class RefusedAddressError(Exception):
    """Not an OSError, so that urllib3 hands it through as it is."""


class Limits(threading.local):
    """What the sockets of the attempt that this thread is making must keep to."""

    deadline: float
    allow_hosts: frozenset[str]


limits = Limits()


def seconds_left() -> float:
    seconds: float = limits.deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("deadline")
    return seconds


class _DeadlineSocket(socket.socket):
    """A socket's own timeout starts anew with every byte; this one's ends with the attempt."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(seconds_left())
        return super().recv_into(*args, **kwargs)


class DeadlineTLSSocket(ssl.SSLSocket):
    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(seconds_left())
        return super().recv_into(*args, **kwargs)


def _connect(connection: HTTPConnection) -> socket.socket:
    """Connect to the first address of the host that answers, if all of them are allowed."""
    host = connection.host.strip("[]").rstrip(".").lower()
    try:
        found = socket.getaddrinfo(host, connection.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise urllib3.exceptions.NameResolutionError(host, connection, reason) from error
    if host not in limits.allow_hosts:
        for *_, address in found:
            if not is_public(ipaddress.ip_address(str(address[0]).partition("%")[0])):
                raise RefusedAddressError(host)
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        sock = _DeadlineSocket(family, kind, protocol)
        try:
            sock.settimeout(seconds_left())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    if isinstance(failure, TimeoutError):
        raise failure
    raise urllib3.exceptions.NewConnectionError(connection, str(failure))


class _HTTPConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _HTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection
