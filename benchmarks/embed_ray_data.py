"""The same work by Ray Data: shards read and decoded in tasks, an actor pool that encodes.

    python -m benchmarks.embed_ray_data ROOT ENCODER OUTPUT --num-actors 2

Writes  OUTPUT/img_emb/ text_emb/ metadata/, as `carrara embed` does, each file published whole and
        digested. Prints JSON: images and seconds from the first picture that a loaded encoder is
        given to the last file.

What comes out are the same rows, but of batches, not of shards: a file's name is its first key's,
which rows it has depends on how blocks met, and a killed run begins anew. `benchmarks.embed` runs
this beside `carrara embed`.
"""

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from infra import storage
from pipeline.corpus import Shard, iter_samples, read_manifest
from retrieval.embedding.embeddings import array_bytes, array_name, metadata_bytes, metadata_name

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
            fn_constructor_args=(*settings, max(1, int(cores)), arguments.output),
            batch_size=BATCH,
            num_cpus=cores / 2,
            num_gpus=arguments.gpus_per_actor,
            compute=pool,
        )
    )
    num, first = 0, math.inf
    for batch in dataset.iter_batches(batch_size=None):
        num += int(batch["num_rows"].sum())
        first = min(first, float(batch["start"].min()))
    print(json.dumps({"num_images": num, "seconds": time.time() - first}))


def read(root: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for sample in iter_samples(root, Shard(**row["shard"])):
        yield {
            "key": sample.key,
            "caption": sample.caption,
            "picture": sample.image,
            # As text: what a field of none but nulls is depends on the block.
            "metadata": json.dumps(sample.metadata),
        }


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
    """It writes, too, as a worker of `carrara embed` does: rows stay where they were made."""

    def __init__(
        self, encoder: str, precision: Any, device: str, num_threads: int, output: str
    ) -> None:
        from retrieval.embedding.shard_embedding import limit_threads
        from retrieval.encoding.encoder import load_encoder

        limit_threads(num_threads)
        self._encoder = load_encoder(encoder, device, precision)
        self._output = output
        self._start: float | None = None

    def __call__(self, batch: Batch) -> Batch:
        self._start = self._start or time.time()
        image = self._encoder.encode_pixels(batch["pixels"])
        text = self._encoder.encode_texts(list(batch["caption"]))
        self._publish(batch, image, text)
        return {"num_rows": np.array([len(image)]), "start": np.array([self._start])}

    def _publish(self, batch: Batch, image: np.ndarray, text: np.ndarray) -> None:
        number = str(batch["key"][0])
        contents = {
            array_name("image", number): array_bytes(image),
            array_name("text", number): array_bytes(text),
            metadata_name(number): metadata_bytes(_metadata(batch)),
        }
        for name, data in contents.items():
            storage.publish_bytes(storage.join(self._output, name), data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        record = storage.join(self._output, "parts", f"part_{number}.json")
        storage.publish_text(record, json.dumps({"num_rows": len(image), "files": digests}))


def _metadata(batch: Batch) -> pa.Table:
    """img2dataset's fields, the key under clip-retrieval's name."""
    rows = pa.Table.from_pylist([json.loads(text) for text in batch["metadata"]])
    unwanted = {"key", "status", "error_message"} & set(rows.column_names)
    keys = pa.array(list(map(str, batch["key"])))
    return rows.drop_columns(sorted(unwanted)).add_column(0, "image_path", keys)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("encoder")
    parser.add_argument("output")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-actors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus-per-actor", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
