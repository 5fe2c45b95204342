"""Memory of a download over many rows: the driver, its workers and their decoders, as time goes by.

    python -m benchmarks.download_memory WORK [--num-rows 100000]

Small pictures from nginx on this machine, every row another URL. Prints the resident memory of each
kind of process every few seconds (a kind's processes summed) and, in the end, the most of the first
fifth and of the second half of the run: flat is what is wanted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.nginx import serve
from benchmarks.photos import write_photos

EVERY_S = 5.0
KINDS = {
    "decoder": b"pipeline.downloading.decoder",
    "worker": b"ray::_Worker",
    "driver": b"carrara.py",
}
NUM_PHOTOS = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for photos and output")
    parser.add_argument("--num-rows", type=int, default=100_000)
    arguments = parser.parse_args()
    work: Path = arguments.work
    write_photos(work / "photos", NUM_PHOTOS)
    with serve(work / "photos", work / "nginx") as server:
        url_list = _write_list(work, server.base("http"), arguments.num_rows)
        measured = _measure(url_list, work / "corpus")
    _conclude(measured)


def _write_list(work: Path, base: str, num_rows: int) -> Path:
    urls = [f"{base}/{row % NUM_PHOTOS:06d}.jpg?{row}" for row in range(num_rows)]
    path = work / "memory.parquet"
    pq.write_table(pa.table({"url": urls, "caption": [f"row {n}" for n in range(num_rows)]}), path)
    return path


def _measure(url_list: Path, output: Path) -> list[tuple[int, dict[str, int]]]:
    """Finished rows and bytes by kind, again and again until the command ends."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "carrara.py", "download", str(url_list), str(output)]
    command += ["--image-size", "64", "--number-sample-per-shard", "1000"]
    command += ["--allow-hosts", "127.0.0.1", "--connections-per-host", "64"]
    measured = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while driver.poll() is None:
            time.sleep(EVERY_S)
            num_rows = 1000 * len(list((output / "shards").glob("*_stats.json")))
            measured.append((num_rows, _resident(driver.pid)))
            by_kind = ", ".join(f"{k} {v / 1e6:,.0f} MB" for k, v in measured[-1][1].items())
            print(f"{num_rows:>9,} rows: {by_kind}", flush=True)
        assert driver.returncode == 0, driver.returncode
    return measured


def _resident(driver: int) -> dict[str, int]:
    """Unlike RSS, PSS counts a page that several share once: they can be summed."""
    parents, kinds = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        parents[int(folder.name)] = int(stat[1])
        kinds[int(folder.name)] = next((k for k, part in KINDS.items() if part in name), None)
    sums = dict.fromkeys(KINDS, 0)
    for process, kind in kinds.items():
        if kind is not None and driver in _ancestors(process, parents):
            sums[kind] += _pss(process)
    return sums


def _ancestors(process: int, parents: dict[int, int]) -> set[int]:
    found = {process}
    while process in parents:
        process = parents[process]
        found.add(process)
    return found


def _pss(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


def _conclude(measured: list[tuple[int, dict[str, int]]]) -> None:
    most = max(num_rows for num_rows, _ in measured)
    first_seen = min((num_rows for num_rows, _ in measured if num_rows), default=0)
    early = [sizes for num_rows, sizes in measured if 0 < num_rows <= max(most / 5, first_seen)]
    late = [sizes for num_rows, sizes in measured if num_rows > most / 2 and sizes["worker"]]
    for kind in KINDS:
        first = max((sizes[kind] for sizes in early), default=0)
        last = max((sizes[kind] for sizes in late), default=0)
        print(
            f"{kind}: at most {first / 1e6:,.0f} MB in the first fifth of {most:,} rows, "
            f"{last / 1e6:,.0f} MB in the second half ({os.cpu_count()} cores)"
        )


if __name__ == "__main__":
    main()
