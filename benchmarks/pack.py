"""How near `carrara pack` comes to a plain copy of the same bytes, and whether its memory grows.

    python benchmarks/pack.py --num-samples 40_000

Writes a corpus of random pictures of realistic size into a temporary folder, selects all of it and
packs it, in turn with a plain copy of its tars (read, write, fsync) on the same disk; then the same
with a corpus four times as large. Prints MB/s of tars for both, their ratio, and the peak memory of
`pack`, which runs in a process of its own. Forty thousand samples take 1.3 GB, four times that and
as much again for the copies; --spool says where pack's own temporary files go.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.made_corpus import made_sample, write_made_manifest
from benchmarks.weighed import Weighed, run_weighed
from pipeline.corpus import ROW_SCHEMA, Shard, read_manifest, write_shard
from pipeline.sample import Sample
from pipeline.select import Config as SelectConfig
from pipeline.select import run as select

COPY_BYTES = 1 << 20


def main() -> None:
    arguments = _arguments()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.picture_kb} KB a picture")
    for factor in (1, 4):
        with tempfile.TemporaryDirectory(prefix="carrara-pack-", dir=arguments.folder) as folder:
            root = Path(folder) / "corpus"
            num_samples = factor * arguments.num_samples
            write_corpus(root, num_samples, arguments.samples_per_shard, arguments.picture_kb)
            select(SelectConfig(root=str(root), name="all", where="true"))
            compare(root, num_samples, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-samples", type=int, default=40_000, help="of the smaller corpus")
    parser.add_argument("--samples-per-shard", type=int, default=10_000)
    parser.add_argument("--picture-kb", type=int, default=30, help="mean size of a picture")
    parser.add_argument("--num-rounds", type=int, default=3, help="of copy and pack in turn")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--folder", help="where the temporary corpora go")
    parser.add_argument("--sequential", action="store_true", help="as for an object store")
    parser.add_argument("--spool", help="where pack's temporary files go; none: beside the corpus")
    return parser.parse_args()


def compare(root: Path, num_samples: int, arguments: argparse.Namespace) -> None:
    num_bytes = sum(shard.num_bytes for shard in read_manifest(str(root)).shards)
    copies, packs, peaks = [], [], []
    for _ in range(arguments.num_rounds):
        copies.append(num_bytes / time_copy(root, root.parent / "copy") / 1e6)
        done = pack(root, root.parent / "packed", arguments)
        packs.append(num_bytes / done.seconds / 1e6)
        peaks.append(done.peak_bytes)
    copied, packed = statistics.median(copies), statistics.median(packs)
    print(
        f"{num_samples:>9,} samples, {num_bytes / 1e9:.2f} GB: copy {copied:4.0f} MB/s, pack "
        f"{packed:4.0f} MB/s ({num_samples * packed * 1e6 / num_bytes:,.0f} samples/s), ratio "
        f"{packed / copied:.2f}; peak {max(peaks) / 1e6:.0f} MB"
    )


def time_copy(root: Path, copy: Path) -> float:
    """Seconds for reading every tar and writing it elsewhere, down to the disk."""
    copy.mkdir()
    os.sync()
    start = time.perf_counter()
    for tar in sorted((root / "shards").glob("*.tar")):
        with tar.open("rb") as source, (copy / tar.name).open("wb") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)
            target.flush()
            os.fsync(target.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def pack(root: Path, output: Path, arguments: argparse.Namespace) -> Weighed:
    options = ["--selection", "all", "--num-threads", str(arguments.num_threads)]
    options += ["--samples-per-shard", str(arguments.samples_per_shard)]
    options += ["--spool", arguments.spool or str(root.parent)]
    if arguments.sequential:
        options.append("--sequential")
    os.sync()
    done = run_weighed("pack", str(root), str(output), *options)
    shutil.rmtree(output)
    return done


def write_corpus(root: Path, num_samples: int, samples_per_shard: int, picture_kb: int) -> None:
    sizes = [
        min(samples_per_shard, num_samples - start)
        for start in range(0, num_samples, samples_per_shard)
    ]
    with ProcessPoolExecutor() as pool:
        write = partial(_write_shard, str(root), picture_kb)
        shards = list(pool.map(write, range(len(sizes)), sizes))
    write_made_manifest(str(root), shards)


def _write_shard(root: str, picture_kb: int, number: int, num_samples: int) -> Shard:
    random = np.random.default_rng(number)
    name = f"{number:05d}"
    sizes = random.integers(picture_kb * 500, picture_kb * 1500, num_samples)
    samples = [_sample(f"{name}{i:04d}", random.bytes(size)) for i, size in enumerate(sizes)]
    rows = pa.Table.from_pylist([sample.metadata for sample in samples], ROW_SCHEMA)
    return write_shard(root, name, samples, rows, {"count": num_samples, "successes": num_samples})


def _sample(key: str, image: bytes) -> Sample:
    return made_sample(
        key,
        f"https://cdn{int(key) % 977}.example.org/images/{key}.jpg",
        f"a photograph of the thing that bears the number {key}",
        image,
        width=256,
        height=192,
        original_width=1024,
        original_height=768,
        exif="{}",
    )


if __name__ == "__main__":
    main()
