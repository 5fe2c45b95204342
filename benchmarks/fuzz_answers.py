"""Malformed HTTP answers, and what a Fetcher makes of them.

    python -m benchmarks.fuzz_answers [--num 20000] [--seed 0]

A child process serves what malformed_answers.py makes, a Fetcher asks for each once. A crash, a
hang, a row without an answer or with two, a reason that isn't one, or memory that grows ends it
with exit code 1.
"""

import asyncio
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection

from benchmarks.fuzzing import num_and_seed
from benchmarks.machine import resident_bytes
from benchmarks.malformed_answers import http_answer, length_line, malformed_answer, stalls
from pipeline.fetching.fetch import Failure, Fetcher, FetchSettings

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
                writer.write(http_answer(b"404 Not Found", b"Connection: close", length_line(b"")))
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
                at_quarter = resident_bytes()
        assert all(seen), f"rows without an answer: {[n for n in range(num) if not seen[n]][:5]}"
        assert fetcher.traffic.num_bytes_in_flight == 0
    return outcomes, resident_bytes() - at_quarter


def main() -> None:
    arguments = num_and_seed(__doc__)
    start = time.monotonic()
    outcomes, growth = fetch_malformed(arguments.num, arguments.seed)
    seconds = time.monotonic() - start
    for outcome, count in outcomes.most_common():
        print(f"{count:8}  {outcome}")
    print(f"{arguments.num} answers of seed {arguments.seed} in {seconds:.0f} s", end="; ")
    print(f"memory grew by {growth / 1e6:.1f} MB over the last three quarters")
    if growth > MAX_GROWTH_BYTES:
        sys.exit(f"memory grew by more than {MAX_GROWTH_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
