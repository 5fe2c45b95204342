"""Malformed HTTP answers without end, and what becomes of them.

    python -m benchmarks.malformed_answers [--num 20000] [--seed 0]

Sound answers (whole, chunked, compressed, redirects, refusals, robots.txt) are damaged as broken
and hostile servers damage them: bits flipped, ends cut off, lengths and chunk sizes that lie,
header lines by the hundred, line ends of every kind, status lines of noise, one answer on another's
body, some that stop half-way and say nothing more. Made from the seed, never stored. A child
process serves them, a Fetcher asks for each once; a crash, a hang, a row without an answer, a
reason that isn't one, or memory that grows ends it with exit code 1.
"""

import argparse
import asyncio
import gzip
import multiprocessing
import os
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from pipeline.fetch import Failure, Fetcher, FetchSettings

NUM_HOSTS = 256
"""Names of this machine, so that one that is slowed down for its 429s holds up no other."""

TIMEOUT_S = 1.0
MAX_BYTES = 100_000

MAX_GROWTH_BYTES = 32 << 20
"""From a quarter of the way on, when every cache has been filled."""

REASON = re.compile(
    r"http \d{3}|too large|empty answer|connection broken|undecodable answer|timeout|"
    r"too many redirects|invalid url|refused (scheme|address)|dns|connection refused|"
    r"host unreachable|disallowed by (X-Robots-Tag|tdm-reservation)"
)

_BODY = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8
_HOSTILE_NUMBERS = (
    b"-1",
    b"0",
    b"18446744073709551616",
    b"4294967295",
    b"1e9",
    b"0x10",
    b"",
    b" 7 ",
)
_STATUS_LINES = (
    b"HTTP/9.9 200 OK",
    b"HTTP/2 200",
    b"HTTP/1.0 -20 X",
    b"HTTP/1.1",
    b"HTTP/1.1 99",
    b"HTTP/1.1 200",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 101 Switching",
    b"ICY 200 OK",
    b"SSH-2.0-x",
    bytes(40),
)
_LINE_ENDS = (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x00\r\n", b"\r\n ", b"\r\n\r\n")


def malformed_answer(number: int, seed: int = 0) -> bytes:
    random = Random(seed << 32 | number)
    data = random.choice(_SOUND)
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        data = random.choice(_DAMAGES)(data, random)
    return data[: 4 * MAX_BYTES]


def stalls(number: int, seed: int = 0) -> bool:
    """Whether the server stays silent after the answer instead of hanging up."""
    return Random(f"stall {seed} {number}").random() < 0.01


def _answer(status: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"", body))


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def _chunked(body: bytes) -> bytes:
    chunks = [body[start : start + 300] for start in range(0, len(body), 300)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


_ZIPPED = gzip.compress(_BODY)
_BOMB = gzip.compress(bytes(5_000_000))

_SOUND = (
    _answer(b"200 OK", _length(_BODY), b"Content-Type: image/jpeg", body=_BODY),
    _answer(b"200 OK", b"Connection: close", body=_BODY),
    _answer(b"200 OK", b"Transfer-Encoding: chunked", b"Trailer: X", body=_chunked(_BODY)),
    _answer(b"200 OK", b"Content-Encoding: gzip", _length(_ZIPPED), body=_ZIPPED),
    _answer(b"200 OK", b"Content-Encoding: gzip", _length(_BOMB), body=_BOMB),
    _answer(b"200 OK", b"Content-Encoding: deflate", body=zlib.compress(_BODY)),
    _answer(b"200 OK", b"Content-Encoding: br, gzip", body=_ZIPPED),
    _answer(b"200 OK", b"X-Robots-Tag: other: noai, carrara: nofollow", _length(b"x"), body=b"x"),
    _answer(b"200 OK", b"tdm-reservation: 1", _length(b"x"), body=b"x"),
    _answer(b"103 Early Hints", b"Link: </x>") + _answer(b"200 OK", _length(_BODY), body=_BODY),
    _answer(b"204 No Content"),
    _answer(b"206 Partial Content", b"Content-Range: bytes 0-9/100", _length(_BODY), body=_BODY),
    _answer(b"301 Moved", b"Location: /elsewhere", _length(b"")),
    _answer(b"302 Found", b"Location: http://[::1/", _length(b"")),
    _answer(b"302 Found", b"Location: //\xc3\xa4\xff.localhost:0/\x80?#", _length(b"")),
    _answer(b"404 Not Found", _length(b"page"), body=b"page"),
    _answer(b"429 Busy", b"Retry-After: 0", _length(b"")),
    _answer(b"503 Busy", b"Date: Mon, 01 Jan 1990 00:00:00 GMT", b"Retry-After: tomorrow"),
)


def _flipped_bits(data: bytes, random: Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(random.choice((1, 3, 30))):
        place = random.randrange(min(len(damaged), 300))
        damaged[place] ^= 1 << random.randrange(8)
    return bytes(damaged)


def _cut_off(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(1, len(data))] if len(data) > 1 else data


def _noise(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    noise = random.randbytes(random.choice((1, 10, 1000)))
    return data[:place] + noise + data[place + random.choice((0, len(noise))) :]


def _hostile_numbers(data: bytes, random: Random) -> bytes:
    head, end, body = data.partition(b"\r\n\r\n")
    return re.sub(rb"\d+", lambda _: random.choice(_HOSTILE_NUMBERS), head) + end + body


def _hostile_chunks(data: bytes, random: Random) -> bytes:
    return re.sub(rb"(?m)^[0-9a-f]+;", lambda _: random.choice(_HOSTILE_NUMBERS) + b";", data)


def _many_lines(data: bytes, random: Random) -> bytes:
    status, end, rest = data.partition(b"\r\n")
    size, num = random.choice(((1, 400), (900, 20), (900, 100), (120_000, 1)))
    return status + end + b"X-%x: %s\r\n" % (random.randrange(999), b"y" * size) * num + rest


def _doubled_lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\r\n")
    place = random.randrange(len(lines))
    lines[place:place] = [lines[place]] * random.choice((1, 8))
    return b"\r\n".join(lines)


def _other_line_ends(data: bytes, random: Random) -> bytes:
    return data.replace(b"\r\n", random.choice(_LINE_ENDS), random.choice((1, 2, -1)))


def _other_status(data: bytes, random: Random) -> bytes:
    return random.choice(_STATUS_LINES) + b"\r\n" + data.partition(b"\r\n")[2]


def _spliced(data: bytes, random: Random) -> bytes:
    other = random.choice(_SOUND)
    return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]


_DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped_bits,
    _cut_off,
    _noise,
    _hostile_numbers,
    _hostile_chunks,
    _many_lines,
    _doubled_lines,
    _other_line_ends,
    _other_status,
    _spliced,
)


@contextmanager
def malformed_server(seed: int) -> Iterator[int]:
    """Serves `malformed_answer(N)` at /N, in a process of its own; gives its port."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(seed, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(seed: int, parent: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.match(rb"GET /(\d+)", head)
            if found is None:
                writer.write(_answer(b"404 Not Found", b"Connection: close", _length(b"")))
            else:
                number = int(found[1])
                writer.write(malformed_answer(number, seed))
                await writer.drain()
                if stalls(number, seed):
                    await asyncio.sleep(3 * TIMEOUT_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has heard enough
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        parent.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def fetch_malformed(num: int, seed: int = 0) -> tuple[Counter[str], int]:
    """Outcomes, and by how many bytes memory grew; asserts that every row has just one."""
    hosts = [f"h{number}.localhost" for number in range(NUM_HOSTS)]
    settings = FetchSettings(
        allow_hosts=(*hosts, "127.0.0.1"), retries=0, timeout=TIMEOUT_S, max_bytes=MAX_BYTES
    )
    outcomes: Counter[str] = Counter()
    seen = bytearray(num)
    at_quarter = 0
    with malformed_server(seed) as port, closing(Fetcher(settings, 64)) as fetcher:
        urls = (
            (number, f"http://{hosts[number % NUM_HOSTS]}:{port}/{number}") for number in range(num)
        )
        for count, (number, answer) in enumerate(fetcher.fetch_all(urls)):
            assert not seen[number], f"answer {number} of seed {seed} came twice"
            seen[number] = True
            outcome = answer.reason if isinstance(answer, Failure) else "fetched"
            assert outcome == "fetched" or REASON.fullmatch(outcome), (number, outcome)
            assert isinstance(answer, Failure) or 0 < len(answer.data) <= MAX_BYTES
            outcomes[outcome] += 1
            if count == num // 4:
                at_quarter = _resident_bytes()
        assert all(seen), f"rows without an answer: {[n for n in range(num) if not seen[n]][:5]}"
        assert fetcher.traffic.num_bytes_in_flight == 0
    return outcomes, _resident_bytes() - at_quarter


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    arguments = _arguments()
    start = time.monotonic()
    outcomes, growth = fetch_malformed(arguments.num, arguments.seed)
    seconds = time.monotonic() - start
    for outcome, count in outcomes.most_common():
        print(f"{count:8}  {outcome}")
    print(f"{arguments.num} answers of seed {arguments.seed} in {seconds:.0f} s", end="; ")
    print(f"memory grew by {growth / 1e6:.1f} MB over the last three quarters")
    if growth > MAX_GROWTH_BYTES:
        sys.exit(f"memory grew by more than {MAX_GROWTH_BYTES / 1e6:.0f} MB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
