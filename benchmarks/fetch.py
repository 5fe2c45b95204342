"""What one request costs: our Fetcher, libcurl with nothing around it, urllib3 in threads.

    python -m benchmarks.fetch WORK [--num-rows 3000] [--rounds 3] [--memory-rows 100000]

The same photos from the same nginx, which closes every connection after its answer; all sides in
turn, each in a process of its own, whose CPU time (user and system) is what is told: the rate
depends on the network, and here on nginx, which shares the cores. Ours honours robots.txt and
checks every address; the others do neither, and urllib3 is given one TLS context for all. Then
ours goes through `--memory-rows` rows and tells what its memory did.

Needs nginx, and urllib3, which comes with requests.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from benchmarks.machine import processor, resident_bytes
from benchmarks.nginx import serve
from benchmarks.photos import write_photos

SCHEMES = ("http", "https")
NUM_CONNECTIONS = 64
NUM_PHOTOS = 3000


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    num_photos = min(arguments.num_rows, NUM_PHOTOS)
    size = write_photos(work / "photos", num_photos)
    print(f"{num_photos} photos of {size / num_photos / 1e3:.1f} KB, ", end="")
    print(f"{os.cpu_count()} cores of {processor()}, Python {platform.python_version()}")
    with serve(work / "photos", work / "nginx") as server:
        os.environ["SSL_CERT_FILE"] = str(server.trusted.resolve())
        for scheme in SCHEMES:
            urls = [
                f"{server.base(scheme)}/{number % num_photos:06d}.jpg"
                for number in range(arguments.num_rows)
            ]
            compare(scheme, urls, arguments.rounds)
        if arguments.memory_rows:
            run(tell_memory, [server.base("http"), str(arguments.memory_rows), str(num_photos)])


def compare(scheme: str, urls: list[str], num_rounds: int) -> None:
    sides: dict[str, Callable[[list[str]], None]] = {
        "ours": fetch_ours,
        "libcurl": fetch_bare,
        "urllib3": fetch_urllib3,
    }
    cpu_ms: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name, fetch in sides.items():
            cpu_s, seconds = run(fetch, urls)
            cpu_ms[name].append(1e3 * cpu_s / len(urls))
            print(f"{scheme:5} {name:8} {cpu_ms[name][-1]:6.3f} ms of CPU a request,", end=" ")
            print(f"{len(urls) / seconds:6.0f} requests/s", flush=True)
    for name in ("libcurl", "urllib3"):
        ratio = statistics.median(
            other / ours for other, ours in zip(cpu_ms[name], cpu_ms["ours"], strict=True)
        )
        print(f"{scheme}: {name} takes {ratio:.2f} times our CPU (median of {num_rounds})")


def run(function: Callable[[list[str]], None], values: list[str]) -> tuple[float, float]:
    """CPU seconds and seconds of `function(values)` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_measure, args=(function, values, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")
    cpu_s, seconds = results.get()
    return cpu_s, seconds


def _measure(
    function: Callable[[list[str]], None],
    values: list[str],
    results: "multiprocessing.SimpleQueue[tuple[float, float]]",
) -> None:
    for name in ("pycurl", "urllib3", "pipeline.fetching.fetch"):  # not to be measured
        importlib.import_module(name)
    before, start = _cpu_s(), time.monotonic()
    function(values)
    results.put((_cpu_s() - before, time.monotonic() - start))


def fetch_ours(urls: list[str]) -> None:
    from pipeline.fetching.fetch import Fetched, Fetcher, FetchSettings

    settings = FetchSettings(allow_hosts=("127.0.0.1",), connections_per_host=NUM_CONNECTIONS)
    with closing(Fetcher(settings, NUM_CONNECTIONS)) as fetcher:
        for _, answer in fetcher.fetch_all(enumerate(urls)):
            assert isinstance(answer, Fetched), answer


def fetch_bare(urls: list[str]) -> None:
    """curl_multi_perform over as many handles, bodies joined, nothing looked at."""
    import io

    import pycurl

    multi = pycurl.CurlMulti()
    free: list[pycurl.Curl] = []
    for _ in range(NUM_CONNECTIONS):
        curl = pycurl.Curl()
        curl.setopt(pycurl.CAINFO, os.environ["SSL_CERT_FILE"])
        curl.setopt(pycurl.NOSIGNAL, 1)
        free.append(curl)
    bodies: dict[object, io.BytesIO] = {}
    waiting = iter(urls)
    num_left = len(urls)
    while num_left:
        while free and (url := next(waiting, None)) is not None:
            curl = free.pop()
            bodies[curl] = io.BytesIO()
            curl.setopt(pycurl.URL, url)
            curl.setopt(pycurl.WRITEDATA, bodies[curl])
            multi.add_handle(curl)
        multi.perform()
        _, good, bad = multi.info_read(NUM_CONNECTIONS)
        assert not bad, bad
        for curl in good:
            multi.remove_handle(curl)
            assert bodies.pop(curl).getvalue()
            free.append(curl)
            num_left -= 1
        multi.select(0.1)


def fetch_urllib3(urls: list[str]) -> None:
    import ssl

    import urllib3

    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    pool = urllib3.PoolManager(maxsize=NUM_CONNECTIONS, ssl_context=context)
    with ThreadPoolExecutor(NUM_CONNECTIONS) as threads:
        for size in threads.map(lambda url: len(pool.urlopen("GET", url).data), urls):
            assert size


def tell_memory(values: list[str]) -> None:
    from pipeline.fetching.fetch import Fetched, Fetcher, FetchSettings

    base, num_rows, num_photos = values[0], int(values[1]), int(values[2])

    def urls() -> Iterator[tuple[int, str]]:
        for number in range(num_rows):
            yield number, f"{base}/{number % num_photos:06d}.jpg?{number}"

    settings = FetchSettings(allow_hosts=("127.0.0.1",), connections_per_host=NUM_CONNECTIONS)
    with closing(Fetcher(settings, NUM_CONNECTIONS)) as fetcher:
        for count, (_, answer) in enumerate(fetcher.fetch_all(urls())):
            assert isinstance(answer, Fetched), answer
            if count in (num_rows // 10, num_rows // 2, num_rows - 1):
                print(f"after {count + 1:7} rows: {resident_bytes() / 1e6:.1f} MB resident")
        print(f"at most {fetcher.traffic.peak_bytes_in_flight / 1e6:.1f} MB of answers under way")


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--num-rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, default=100_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
