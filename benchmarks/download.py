"""`carrara download` against img2dataset 1.47.0 and against what the machine can reach at all.

    python -m benchmarks.download WORK [--num-rows 6000] [--rounds 2]

Same photos, same list, same nginx on the same cores, same settings; both sides in turn, so that a
slow minute hits both. nginx closes every connection after its answer. A side's rate is its
successes over the seconds between the first shard's start and the last one's end, as both write
them into their _stats.json: what starting the programs takes is left out for both, and told apart.

The floor, measured before and after ours in each round and averaged, for the machine's speed
drifts: nothing but fetching (bare libcurl handles, bodies thrown away) reaches F photos/s; nothing
but decoding, resizing and encoding (bare libjpeg-turbo and OpenCV, photos in memory, the faster of
the two ways of benchmarks.pixels) reaches P; one core after the other that makes 1 / (1/F + 1/P).

Needs nginx, and a package registry for the first run: img2dataset gets its own environment.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import processor
from benchmarks.nginx import Server, serve
from benchmarks.peers import peer_python
from benchmarks.photos import write_photos
from benchmarks.pixels import Work, areas, same_calls
from pipeline.pixels.resizer import PixelSettings

PEER = "img2dataset==1.47.0"
IMAGE_SIZE = 256
MODES = ("keep_ratio", "border")
SCHEMES = ("http", "https")
THREADS = 64
"""img2dataset's README recommends 64 a process; so many connections a worker here."""
NUM_PROCESSES = os.cpu_count() or 1
NUM_FETCHED, NUM_RESIZED = 5000, 3000
"""Photos that the floor is measured with."""


@dataclass(frozen=True)
class Result:
    num_successes: int
    working_s: float
    command_s: float

    @property
    def rate(self) -> float:
        return self.num_successes / self.working_s


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    num_photos = min(arguments.num_rows, 3000)
    size = write_photos(work / "photos", num_photos)
    print(
        f"{num_photos} photos of {size / num_photos / 1e3:.1f} KB, {arguments.num_rows} rows, ",
        end="",
    )
    print(f"{NUM_PROCESSES} cores of {processor()}, Python {platform.python_version()}")
    python = peer_python(work / "img2dataset", PEER, "webdataset<0.3", "setuptools<81")
    with serve(work / "photos", work / "nginx") as server:
        os.environ["SSL_CERT_FILE"] = str(server.trusted.resolve())
        for scheme in arguments.schemes:
            url_list = _write_list(work, server, scheme, arguments.num_rows, num_photos)
            for mode in arguments.modes:
                compare(work, python, url_list, scheme, mode, arguments.rounds)


def compare(
    work: Path, python: Path, url_list: Path, scheme: str, mode: str, num_rounds: int
) -> None:
    ours, peers, floors = [], [], []
    for number in range(num_rounds):
        before = floor(url_list, work / "photos", mode)
        ours.append(run_ours(url_list, work / "ours", mode))
        floors.append((before + floor(url_list, work / "photos", mode)) / 2)
        peers.append(run_peer(python, url_list, work / "peer", mode))
        _print_round(scheme, mode, number, floors[-1], ours[-1], peers[-1])
    ratio = statistics.median(a.rate / b.rate for a, b in zip(ours, peers, strict=True))
    share = statistics.median(a.rate / b for a, b in zip(ours, floors, strict=True))
    commands = statistics.median(
        b.command_s / a.command_s for a, b in zip(ours, peers, strict=True)
    )
    print(
        f"{scheme} {mode}: {ratio:.2f} times img2dataset, {share:.0%} of the floor's rate, the "
        f"whole command {commands:.2f} times (medians of {num_rounds})",
        flush=True,
    )


def run_ours(url_list: Path, output: Path, mode: str) -> Result:
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "carrara.py", "download", url_list, output, "--resize-mode", mode]
    command += ["--image-size", IMAGE_SIZE, "--thread-count", THREADS, "--allow-hosts", "127.0.0.1"]
    # One host stands in for thousands here: none of them would be asked more than once at a time.
    command += ["--connections-per-host", THREADS]
    command += ["--number-sample-per-shard", _rows_a_shard(url_list)]
    seconds = _run(command)
    return _result(output / "shards", seconds)


def run_peer(python: Path, url_list: Path, output: Path, mode: str) -> Result:
    shutil.rmtree(output, ignore_errors=True)
    settings = {
        "url_list": url_list.resolve(),
        "output_folder": output.resolve(),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "processes_count": NUM_PROCESSES,
        "thread_count": THREADS,
        "image_size": IMAGE_SIZE,
        "resize_mode": mode,
        "number_sample_per_shard": _rows_a_shard(url_list),
        "enable_wandb": False,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    seconds = _run([python.parent / "img2dataset", *options])
    return _result(output, seconds)


# The floor


def floor(url_list: Path, photos: Path, mode: str) -> float:
    """Photos/s of fetching alone and resizing alone, one after the other on the same cores."""
    fetched = _rate_of(partial(fetch_alone, pq.read_table(url_list)["url"].to_pylist()))
    data = [path.read_bytes() for path in sorted(photos.iterdir())[:NUM_RESIZED]]
    resized = max(_rate_of(partial(resize_alone, data, mode, way)) for way in (same_calls, areas))
    return 1 / (1 / fetched + 1 / resized)


def fetch_alone(urls: list[str]) -> int:
    """Fetch with bare libcurl handles; returns how many answered 200."""
    import pycurl

    multi, waiting, num_done = pycurl.CurlMulti(), iter(urls[:NUM_FETCHED]), 0
    bodies: dict[pycurl.Curl, bytearray] = {}

    def start(handle: "pycurl.Curl") -> None:
        if url := next(waiting, None):
            bodies[handle] = bytearray()
            handle.setopt(pycurl.URL, url)
            handle.setopt(pycurl.WRITEFUNCTION, bodies[handle].extend)
            multi.add_handle(handle)

    for _ in range(THREADS):
        handle = pycurl.Curl()
        handle.setopt(pycurl.CAINFO, os.environ["SSL_CERT_FILE"])
        start(handle)
    while bodies:
        multi.perform()
        _, succeeded, failed = multi.info_read(THREADS)
        assert not failed, failed
        for handle in succeeded:
            num_done += handle.getinfo(pycurl.RESPONSE_CODE) == 200 and bool(bodies.pop(handle))
            multi.remove_handle(handle)
            start(handle)
        multi.select(0.01)
    return num_done


def resize_alone(photos: list[bytes], mode: str, way: Callable[[PixelSettings], Work]) -> int:
    """Decode, resize and encode by bare calls of the libraries; returns how many."""
    cv2.setNumThreads(1)
    work = way(PixelSettings(image_size=IMAGE_SIZE, resize_mode=mode))
    for photo in photos:
        work(photo)
    return len(photos)


def _rate_of(work: Callable[[], int]) -> float:
    """Items/s of NUM_PROCESSES processes that do the same work side by side."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(NUM_PROCESSES + 1)
    counts = context.SimpleQueue()
    processes = [
        context.Process(target=_timed, args=(work, barrier, counts)) for _ in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.monotonic()
    num = int(sum(counts.get() for _ in processes))
    seconds = time.monotonic() - start
    for process in processes:
        process.join()
    return num / seconds


def _timed(work: Callable[[], int], barrier: Barrier, counts: "SimpleQueue[int]") -> None:
    for name in ("cv2", "pycurl", "simplejpeg"):  # not to be timed
        importlib.import_module(name)
    barrier.wait()
    counts.put(work())


# What both sides share


def _write_list(work: Path, server: Server, scheme: str, num_rows: int, num_photos: int) -> Path:
    base = server.base(scheme)
    # Rows beyond the photos there are get a query of their own: no two rows are the same pair.
    urls = [f"{base}/{row % num_photos:06d}.jpg?{row // num_photos}" for row in range(num_rows)]
    path = work / f"{scheme}.parquet"
    pq.write_table(
        pa.table({"url": urls, "caption": [f"photo {n}" for n in range(num_rows)]}), path
    )
    return path


def _rows_a_shard(url_list: Path) -> int:
    """Two shards a process; img2dataset and this program alike idle a little at a shard's end."""
    return max(1, int(pq.ParquetFile(url_list).metadata.num_rows) // (2 * NUM_PROCESSES))


def _run(command: list[object]) -> float:
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}"
        )
    return time.monotonic() - start


def _result(shards: Path, command_s: float) -> Result:
    stats = [json.loads(text) for text in _texts(shards)]
    working_s = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    return Result(sum(s["successes"] for s in stats), working_s, command_s)


def _texts(shards: Path) -> Iterator[str]:
    for path in sorted(shards.glob("*_stats.json")):
        yield path.read_text()


def _print_round(
    scheme: str, mode: str, number: int, bound: float, ours: Result, peer: Result
) -> None:
    print(
        f"  {scheme} {mode} round {number + 1}: floor {bound:.0f}/s; carrara {ours.rate:.0f}/s "
        f"({ours.num_successes} in {ours.working_s:.1f} s, command {ours.command_s:.1f} s); "
        f"img2dataset {peer.rate:.0f}/s ({peer.num_successes} in {peer.working_s:.1f} s, command "
        f"{peer.command_s:.1f} s)",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "work", type=Path, help="folder for photos, outputs and the peer's environment"
    )
    parser.add_argument("--num-rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    return parser.parse_args()


if __name__ == "__main__":
    main()
