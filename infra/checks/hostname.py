"""On a cluster: does this machine's name lead to an address that the others can reach?

torch.distributed's gloo asks for its own address by name. Where that is 127.0.0.1, as /etc/hosts
often says, or nothing, workers on two machines wait for each other in vain.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator

from infra.checks.finding import Finding, Subject, ok, warning

INTERFACE = "GLOO_SOCKET_IFNAME"


def check(_subject: Subject) -> Iterator[Finding]:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = ""
    found = f"{name} is {address or 'not resolved'}"
    if interface := os.environ.get(INTERFACE):
        yield ok("host name", f"{found}; gloo uses {INTERFACE} = {interface}")
    elif not address or ipaddress.ip_address(address).is_loopback:
        advice = f"training on CPUs of several nodes needs {INTERFACE}=eth0 (or as the interface"
        yield warning("host name", found, f"{advice} is called) in every node's environment")
    else:
        yield ok("host name", found)
