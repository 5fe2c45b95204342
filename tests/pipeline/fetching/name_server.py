"""What a Fetcher makes of names, told as JSON, in a network of its own with a name server of ours.

    unshare --map-root-user --net --mount sh -c 'mount --bind FILE /etc/resolv.conf && python THIS'

FILE says `nameserver 127.0.0.53`. See test_names.py.
"""

import fcntl
import json
import socket
import struct
import threading
from collections import Counter
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.fetching import curl_handle
from pipeline.fetching.fetch import Failure, Fetcher, FetchSettings

PUBLIC = "93.184.216.34"
ADDRESSES = {
    "plain": ["127.0.0.1"],
    "inside": ["10.0.0.1"],
    "metadata": ["169.254.169.254"],
    "both": [PUBLIC, "127.0.0.1"],
    "shaky": ["127.0.0.1"],
}
A = 1
NO_ERROR, SERVER_FAILURE, NO_NAME = 0, 2, 3

asked: Counter[str] = Counter()
"""Questions for IPv4 addresses, by the name's first label."""


def answer(question: bytes) -> bytes | None:
    labels, place = [], 12
    while size := question[place]:
        labels.append(question[place + 1 : place + 1 + size].decode())
        place += size + 1
    (kind,) = struct.unpack(">H", question[place + 1 : place + 3])
    name = labels[0].rstrip("0123456789")
    asked[name] += kind == A
    if name == "silent":
        return None
    code, addresses = NO_ERROR, ADDRESSES.get(name, [])
    if name == "rebound":
        addresses = [PUBLIC] if asked[name] <= 1 else ["127.0.0.1"]
    elif name == "shaky" and asked[name] <= 2:
        code = SERVER_FAILURE
    elif name not in ADDRESSES:
        code = NO_NAME
    if kind != A or code:
        addresses = []
    records = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", A, 1, 60, 4) + socket.inet_aton(address)
        for address in addresses
    )
    head = question[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
    return head + question[12 : place + 5] + records


class Pictures(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/picture") else 404)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


def main() -> None:
    _raise_loopback()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.53", 53))
    threading.Thread(target=_answer_all, args=(names,), daemon=True).start()
    server = Server(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def tried(*names: str, **settings: Any) -> dict[str, Any]:
        asked.clear()
        defaults: dict[str, Any] = {"retries": 0, "timeout": 5.0}
        with closing(Fetcher(FetchSettings(**defaults | settings), num_connections=16)) as fetcher:
            urls = (
                (row, f"http://{name}.example.org:{server.server_port}/picture{row}")
                for row, name in enumerate(names)
            )
            told = [
                found.reason if isinstance(found, Failure) else "fetched"
                for _, found in fetcher.fetch_all(urls)
            ]
        return {"reasons": Counter(told), "asked": sum(asked.values()), "first": told[:8]}

    allowed = {"allow_hosts": ["plain.example.org", "shaky.example.org"], "retries": 2}
    told = {
        "plain": tried(*["plain"] * 60, **allowed),
        "plain, no robots.txt": tried(*["plain"] * 60, opt_outs=(), **allowed),
        "missing": tried(*["missing"] * 60, retries=1),
        "shaky": tried(*["shaky"] * 5, **allowed),
        "inside": tried("inside"),
        "metadata": tried("metadata"),
        "both": tried("both"),
        "silent": tried(
            *(f"silent{number}" for number in range(8)),
            *["plain"] * 8,
            **allowed | {"timeout": 0.5, "retries": 0, "opt_outs": ()},
        ),
    }
    curl_handle.DNS_CACHE_S = 0
    told["rebound"] = tried("rebound", retries=1, opt_outs=())
    print(json.dumps(told))


def _raise_loopback() -> None:
    """`ip link set lo up`, where there may be no `ip`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sh", b"lo", 1)
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS, IFF_UP


def _answer_all(names: socket.socket) -> None:
    while True:
        question, client = names.recvfrom(2000)
        found = answer(question)
        if found is not None:
            names.sendto(found, client)


if __name__ == "__main__":
    main()
