"""One of the sides of benchmarks.stream, in a process of its own.

    python -m benchmarks.stream_sides SIDE ROOT IMAGE_SIZE NUM_CORES

Prints JSON: num_images and seconds of one epoch from the first batch to the last, and the peak
memory of the process that takes the batches.
"""

import io
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus import iter_samples, read_manifest, shard_url

BATCH = 128

DEPTH = 4
"""Batches that everybody may have ready."""

SHUFFLE = 1000
"""Samples among which everybody shuffles."""

Pixels = NDArray[np.uint8]


def main() -> None:
    side, root, image_size, cores = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if side == "decoding":
        num, seconds = decoding(root, image_size, cores)
    else:
        batches = {
            "threads": lambda: ours(root, image_size, cores, "threads"),
            "processes": lambda: ours(root, image_size, cores, "processes"),
            "ray": lambda: by_actors(root, image_size, cores),
            "webdataset": lambda: webdataset(root, image_size, cores, Theirs(image_size)),
            "webdataset fast": lambda: webdataset(root, image_size, cores, Fast(image_size)),
            "ray data": lambda: ray_data(root, Theirs(image_size)),
            "ray data fast": lambda: ray_data(root, Fast(image_size)),
        }[side]()
        num, seconds = measured(batches)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"num_images": num, "seconds": seconds, "peak_mb": peak_mb}))


def measured(batches: Iterator[int]) -> tuple[int, float]:
    """Images after the first batch, and the seconds that they took."""
    next(batches)
    start, num = time.perf_counter(), 0
    for size in batches:
        num += size
    return num, time.perf_counter() - start


# Decoding alone


def decoding(root: str, image_size: int, cores: int) -> tuple[int, float]:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(cores + 1), context.SimpleQueue()
    workers = [
        context.Process(target=_decode, args=(root, image_size, n, cores, barrier, answers))
        for n in range(cores)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    num = sum(answers.get() for _ in workers)
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return num, seconds


def _decode(
    root: str, image_size: int, rank: int, cores: int, barrier: Barrier, answers: "SimpleQueue[int]"
) -> None:
    from training.streaming.pixels import decode_into, set_up_decoding

    set_up_decoding()
    shards = read_manifest(root).shards[rank::cores]
    pictures = [sample.image for shard in shards for sample in iter_samples(root, shard)]
    pixels = np.empty((BATCH, image_size, image_size, 3), np.uint8)
    barrier.wait()
    for number, picture in enumerate(pictures):
        decode_into(pixels[number % BATCH], picture)
    answers.put(len(pictures))


# Ours


def ours(root: str, image_size: int, cores: int, decode_in: Any) -> Iterator[int]:
    from training.data import SampleStream
    from training.streaming.ahead import prefetched
    from training.streaming.batch import StreamSettings

    stream = SampleStream(
        StreamSettings(
            root,
            image_size=image_size,
            batch_size=BATCH,
            shuffle_samples=SHUFFLE,
            decode_in=decode_in,
            num_decoders=cores,
        )
    )
    steps = range(stream.num_samples // BATCH)  # each picture comes once, and none from memory
    with prefetched(stream, steps, range(BATCH), DEPTH) as batches:
        for batch in batches:
            yield len(batch.pixels)


def by_actors(root: str, image_size: int, cores: int) -> Iterator[int]:
    """A Ray actor a core, here all on this machine: what Ray's object store costs."""
    from infra.cluster import Workers, connect

    connect(Workers())
    yield from ours(root, image_size, cores, "ray")


# Theirs


class Theirs:
    """A JPEG -> uint8 [S, S, 3], as their users write it: Pillow, torchvision."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size

    def __call__(self, image: Any) -> Pixels:
        from PIL import Image
        from torchvision.transforms.v2 import functional as F

        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image)).convert("RGB")
        small = F.center_crop(F.resize(image, [self._image_size]), [self._image_size])
        return np.asarray(small)


class Fast(Theirs):
    """The same by our decoder."""

    def __call__(self, image: bytes) -> Pixels:
        from training.streaming.pixels import decode_into, set_up_decoding

        set_up_decoding()
        pixels = np.empty((self._image_size, self._image_size, 3), np.uint8)
        decode_into(pixels, image)
        return pixels


def webdataset(root: str, image_size: int, cores: int, decode: Theirs) -> Iterator[int]:
    import webdataset as wds

    del image_size
    urls = [shard_url(root, shard.name) for shard in read_manifest(root).shards]
    dataset = wds.WebDataset(urls, shardshuffle=100, seed=0).shuffle(SHUFFLE)
    if type(decode) is Theirs:
        dataset = dataset.decode("pil")
    dataset = dataset.to_tuple("jpg", "txt").map_tuple(decode, _text).batched(BATCH)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=cores, prefetch_factor=DEPTH)
    for pixels, captions in loader:
        assert len(pixels) == len(captions)
        yield len(pixels)


def _text(caption: str | bytes) -> str:
    return caption.decode() if isinstance(caption, bytes) else caption


def ray_data(root: str, decode: Theirs) -> Iterator[int]:
    import ray

    from infra.cluster import Workers, connect

    connect(Workers())
    ray.data.DataContext.get_current().enable_progress_bars = False
    urls = [shard_url(root, shard.name) for shard in read_manifest(root).shards]

    def to_pixels(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = np.stack([decode(image) for image in batch["jpg"]])
        return {"pixels": pixels, "txt": [_text(caption) for caption in batch["txt"]]}

    def batches(urls: list[str]) -> Iterator[int]:
        dataset = ray.data.read_webdataset(urls, decoder=None, shuffle="files").map_batches(
            to_pixels, batch_size=BATCH
        )
        for batch in dataset.iter_batches(
            batch_size=BATCH, prefetch_batches=DEPTH, local_shuffle_buffer_size=SHUFFLE
        ):
            yield len(batch["pixels"])

    list(batches(urls[:1]))  # its processes are there
    yield 0  # from here on: it may have decoded all by the time that it hands out a first batch
    yield from batches(urls)


if __name__ == "__main__":
    main()
