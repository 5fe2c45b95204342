"""Many clients that ask one server at the same time, each its next question after its last answer.

Plain HTTP/1.1 on asyncio streams: 200 clients of a full HTTP library would take the cores that the
server is measured on. A server that closes its connection gets a new one, as browsers do.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

TIMEOUT_S = 120.0


@dataclass
class Load:
    """What the clients met."""

    seconds: float
    statuses: Counter[str] = field(default_factory=Counter)
    """Answers by HTTP status, or by the error instead of one."""
    latencies_s: list[float] = field(default_factory=list)
    """Of the answers with status 200."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds

    @property
    def num_errors(self) -> int:
        return sum(self.statuses.values()) - self.statuses["200"]

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run_load(
    port: int, path: str, body: Callable[[int], bytes], *, num_clients: int, seconds: float
) -> Load:
    """`body(n)` is the n-th request's, whoever sends it."""
    return asyncio.run(_run(port, path, body, num_clients, seconds))


async def _run(
    port: int, path: str, body: Callable[[int], bytes], num_clients: int, seconds: float
) -> Load:
    load, start = Load(seconds), time.monotonic()
    numbers = iter(range(1 << 62))

    async def client() -> None:
        connection = _Connection(port)
        while time.monotonic() - start < seconds:
            request = _request(path, body(next(numbers)))
            since = time.monotonic()
            try:
                status = await asyncio.wait_for(connection.ask(request), TIMEOUT_S)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                load.statuses[type(error).__name__] += 1
                connection.close()
                await asyncio.sleep(0.1)
                continue
            load.statuses[status] += 1
            if status == "200":
                load.latencies_s.append(time.monotonic() - since)
            elif status in ("429", "503"):
                await asyncio.sleep(1)  # as Retry-After asks
        connection.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    load.seconds = time.monotonic() - start
    return load


class _Connection:
    """Opened when it is needed, kept while the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> str:
        """The status of the answer, once it is whole."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        version, status = head.split(" ", 2)[:2]
        length = head.partition("\r\ncontent-length:")[2].partition("\r\n")[0]
        await reader.readexactly(int(length))
        if "\r\nconnection: close" in head or version == "http/1.0":
            self.close()
        return status

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _request(path: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
