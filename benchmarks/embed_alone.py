"""How fast an encoder is by itself: pixels and captions in memory, nothing read or written.

    python -m benchmarks.embed_alone ROOT ENCODER --precision bf16 --device cpu --num-processes 2

Prints JSON: images, seconds, precision. With every picture goes its caption, as `carrara embed`
encodes them. Processes share the cores evenly and start together.
"""

import argparse
import json
import multiprocessing
import os
import time
from itertools import chain, islice
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import numpy as np

from pipeline.corpus import iter_samples, read_manifest

BATCH = 128
"""As `carrara embed` has it."""


def main() -> None:
    arguments = _arguments()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(arguments.num_processes + 1)
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=encode, args=(arguments, barrier, answers))
        for _ in range(arguments.num_processes)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    results = [answers.get() for _ in processes]
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    num = sum(num for num, _ in results)
    print(json.dumps({"num_images": num, "seconds": seconds, "precision": results[0][1]}))


def encode(
    arguments: argparse.Namespace, barrier: Barrier, answers: "SimpleQueue[tuple[int, str]]"
) -> None:
    from retrieval.embedding.shard_embedding import limit_threads
    from retrieval.encoding.encoder import load_encoder

    limit_threads(max(1, (os.cpu_count() or 1) // arguments.num_processes))
    encoder = load_encoder(arguments.encoder, arguments.device, arguments.precision)
    shards = read_manifest(arguments.root).shards
    samples = list(
        islice(chain.from_iterable(iter_samples(arguments.root, s) for s in shards), BATCH)
    )
    pixels = np.stack([encoder.preprocess(sample.image) for sample in samples])
    captions = [sample.caption for sample in samples]
    encoder.encode_pixels(pixels)  # what only the first time takes is not the encoder's rate
    num_batches = max(1, arguments.num_images // arguments.num_processes // len(samples))
    barrier.wait()
    for _ in range(num_batches):
        encoder.encode_pixels(pixels)
        encoder.encode_texts(captions)
    answers.put((num_batches * len(samples), encoder.precision))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("encoder")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--num-images", type=int, default=512)
    return parser.parse_args()


if __name__ == "__main__":
    main()
