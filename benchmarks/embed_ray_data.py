"""The same work by Ray Data: shards read and decoded in tasks, an actor pool that encodes.

    python -m benchmarks.embed_ray_data ROOT ENCODER --num-actors 2

Prints JSON: images and seconds from the first picture that a loaded encoder is given to the end.
What comes out are the same rows, but of blocks, not of shards: they have no order, nothing is
written, and a killed run begins anew. `benchmarks.embed` runs this beside `carrara embed`.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pipeline.corpus import Shard, iter_samples, read_manifest

BATCH = 128
"""As `carrara embed` has it."""

Batch = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    import ray

    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    shards = read_manifest(arguments.root).shards
    settings = (arguments.encoder, arguments.precision, arguments.device)
    cores = (os.cpu_count() or 1) / arguments.num_actors
    pool = ray.data.ActorPoolStrategy(size=arguments.num_actors)
    # An actor asks for half of its cores, so that tasks that decode find room beside it.
    dataset = (
        # A block a shard from the start: to cut them anew takes whole cores, which actors hold.
        ray.data.from_items(
            [{"shard": s.model_dump()} for s in shards], override_num_blocks=len(shards)
        )
        .flat_map(partial(read, arguments.root), num_cpus=cores / 4)
        .map_batches(
            Decoder,
            fn_constructor_args=settings,
            batch_size=BATCH,
            num_cpus=cores / 4,
            compute=pool,
        )
        .map_batches(
            EncoderActor,
            fn_constructor_args=(*settings, max(1, int(cores))),
            batch_size=BATCH,
            num_cpus=cores / 2,
            num_gpus=arguments.gpus_per_actor,
            compute=pool,
        )
    )
    num, first = 0, math.inf
    for batch in dataset.iter_batches(batch_size=None):
        num += len(batch["image"])
        first = min(first, float(batch["start"].min()))
    print(json.dumps({"num_images": num, "seconds": time.time() - first}))


def read(root: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for sample in iter_samples(root, Shard(**row["shard"])):
        yield {"key": sample.key, "caption": sample.caption, "picture": sample.image}


class Decoder:
    """Bytes to pixels. It is an actor only so that a model's configuration is read once."""

    def __init__(self, encoder: str, precision: Any, device: str) -> None:
        from retrieval.embedding.shard_embedding import limit_threads
        from retrieval.encoding.encoder import load_encoder

        del precision, device
        limit_threads(1)
        self._preprocess = load_encoder(encoder).preprocess

    def __call__(self, batch: Batch) -> Batch:
        pixels = np.stack([self._preprocess(picture) for picture in batch.pop("picture")])
        return batch | {"pixels": pixels}


class EncoderActor:
    def __init__(self, encoder: str, precision: Any, device: str, num_threads: int) -> None:
        from retrieval.embedding.shard_embedding import limit_threads
        from retrieval.encoding.encoder import load_encoder

        limit_threads(num_threads)
        self._encoder = load_encoder(encoder, device, precision)
        self._start: float | None = None

    def __call__(self, batch: Batch) -> Batch:
        self._start = self._start or time.time()
        image = self._encoder.encode_pixels(batch["pixels"]).astype(np.float16)
        text = self._encoder.encode_texts(list(batch["caption"])).astype(np.float16)
        start = np.full(len(image), self._start)
        return {"key": batch["key"], "image": image, "text": text, "start": start}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("encoder")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-actors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus-per-actor", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
