"""Pictures into the training process: ours against webdataset's loader and Ray Data, and decoding
alone.

    python -m benchmarks.stream WORK [--num-photos 4000] [--rounds 3] [--image-size 64]

Makes a corpus of photo-like JPEGs (benchmarks/photos.py) in WORK. Then one epoch by each of these,
each in processes of its own, round after round in turn, so that a slow minute hits all; the clock
runs from the first batch that the training process holds to the last, and everybody shuffles among
a thousand samples, so that nobody has read much of the corpus by then; for Ray Data, which decodes
much before it hands out anything, from the asking, with its processes running.

    decoding       our decoder in a process a core, bytes and pixels in memory: the ceiling
    threads        training.data, decoding in threads of the training process
    processes      training.data, decoding in a process a core beside it
    ray            training.data, decoding in a Ray actor a core, on this machine too
    webdataset     WebLoader with a worker a core: decode("pil"), torchvision's Resize, CenterCrop
    ray data       ray.data.read_webdataset, the same decoding in map_batches, iter_batches
    ... fast       the two with our decoder in place of theirs, which they do not bring: what the
                   loader alone makes of the difference

Prints images/s a core, the ratios of the medians, and how much each worker of 1, 2 and 8 reads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.embed_corpus import write_corpus
from benchmarks.machine import processor
from pipeline.corpus import Manifest, read_manifest

SIDES = (
    "decoding",
    "threads",
    "processes",
    "ray",
    "webdataset",
    "webdataset fast",
    "ray data",
    "ray data fast",
)
OURS = ("threads", "processes", "ray")
THEIRS = ("webdataset", "ray data")


def main() -> None:
    arguments = _arguments()
    root = write_corpus(Path(arguments.work).absolute(), arguments.num_photos)
    manifest = read_manifest(root)
    cores = len(os.sched_getaffinity(0))
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    print(
        f"{manifest.num_samples:,} pictures in {len(manifest.shards)} shards of "
        f"{megabytes / len(manifest.shards):.0f} MB, to {arguments.image_size} pixels; "
        f"{cores} cores of {processor()}"
    )
    rates: dict[str, list[float]] = {side: [] for side in arguments.sides}
    peaks: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for side in arguments.sides:
            found = _run(side, root, arguments.image_size, cores)
            rates[side].append(found["num_images"] / found["seconds"] / cores)
            peaks[side] = max(peaks.get(side, 0), found["peak_mb"])
    for side, theirs in rates.items():
        print(
            f"  {side:16} {statistics.median(theirs):7.0f} images/s a core, from "
            f"{min(theirs):.0f} to {max(theirs):.0f}; {peaks[side]:,.0f} MB in the process"
        )
    _print_ratios(rates)
    if arguments.bytes:
        _print_bytes(root, manifest)


def _run(side: str, root: str, image_size: int, cores: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream_sides", side, root, str(image_size)]
    # Everybody's processes have a core each.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(cores)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _print_ratios(rates: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(found) for side, found in rates.items()}
    ours = [side for side in OURS if side in medians]
    theirs = [side for side in THEIRS if side in medians]
    if not ours:
        return
    best = max(ours, key=medians.__getitem__)
    if theirs:
        fastest = max(theirs, key=medians.__getitem__)
        print(f"  {best} is {medians[best] / medians[fastest]:.2f} times as fast as {fastest}")
    for side in ours:
        if "decoding" in medians:
            print(f"  {side}: {medians[side] / medians['decoding']:.0%} of decoding alone")
    for side in [side for side in medians if side.endswith("fast")]:
        print(f"  {best} is {medians[best] / medians[side]:.2f} times as fast as {side}")


def _print_bytes(root: str, manifest: Manifest) -> None:
    """What the workers of one epoch read, in parts of the corpus."""
    from training.data import SampleStream
    from training.streaming.batch import StreamSettings
    from training.streaming.feeding import parts_of

    size, batch_size = sum(shard.num_bytes for shard in manifest.shards), 128
    for num_workers in (1, 2, 8):
        read = []
        for positions in parts_of(range(batch_size), num_workers):
            stream = SampleStream(StreamSettings(root, image_size=16, cache_size_mb=64))
            for step in range(manifest.num_samples // batch_size):
                stream.batch(step, positions)
            stream.close()
            read.append(stream.reader.num_bytes_read / size)
        print(
            f"  of {num_workers} workers each reads {min(read):.3f} to {max(read):.3f} of the "
            f"corpus's bytes, all together {sum(read):.2f}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--num-photos", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--bytes", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
