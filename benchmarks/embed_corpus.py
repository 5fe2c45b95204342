"""What the embedding benchmarks embed and with what: a corpus of photos, and weights in a file."""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from benchmarks.photos import photos
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    Shard,
    manifest_url,
    write_manifest,
    write_shard,
)
from pipeline.sample import Sample, sample_uid
from retrieval.encoding.weights import EMBEDDED_FOLDERS

NUM_SHARDS = 4
"""Two for each of two workers, and one for each of the loaders that clip-retrieval starts."""

SMALL = "Carrara-S"

WORDS = (
    "a the of in on with and at red blue old new small large white black photo view house dog cat "
    "street beach mountain woman man children garden table window summer winter night morning city "
    "2019 stock vintage wedding free shipping handmade portrait landscape vector background design"
).split()


def write_corpus(root: Path, num_images: int, seed: int = 0) -> str:
    """Photos with captions of 3 to 25 words, 11 on average, as alt texts have; kept if there."""
    folder = root / f"photos-{num_images}-in-{NUM_SHARDS}"
    if Path(manifest_url(str(folder))).exists():
        return str(folder)
    rng = random.Random(seed)
    pictures = photos(num_images, seed)
    sizes = [num_images // NUM_SHARDS + (i < num_images % NUM_SHARDS) for i in range(NUM_SHARDS)]
    shards = [
        _write_shard(folder, f"{number:05d}", list(islice(pictures, size)), rng)
        for number, size in enumerate(sizes)
    ]
    manifest = Manifest(
        stage="download",
        config={},
        config_digest="0" * 16,
        input_digest="0" * 16,
        shards=shards,
        counts={SUCCESS: num_images},
    )
    write_manifest(str(folder), manifest)
    return str(folder)


def write_weights(folder: Path, model: str) -> Path:
    """A file that both sides load: of the shipped encoder its own, else a random start's."""
    if model == SMALL:
        return next(iter(EMBEDDED_FOLDERS.values())) / "open_clip_model.safetensors"
    path = folder / f"{model}.safetensors"
    if not path.exists():
        import open_clip
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        state = open_clip.create_model(model).state_dict()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path.absolute()


def _write_shard(root: Path, name: str, pictures: list[bytes], rng: random.Random) -> Shard:
    samples = list(_samples(name, pictures, rng))
    rows = [
        sample.metadata | {"status": SUCCESS, "sha256": hashlib.sha256(sample.image).hexdigest()}
        for sample in samples
    ]
    table = pa.Table.from_pylist(
        [dict.fromkeys(ROW_SCHEMA.names) | row for row in rows], ROW_SCHEMA
    )
    return write_shard(str(root), name, samples, table, {})


def _samples(name: str, pictures: list[bytes], rng: random.Random) -> Iterator[Sample]:
    for number, image in enumerate(pictures):
        key = f"{name}{number:04d}"
        length = min(25, max(3, round(rng.lognormvariate(2.3, 0.45))))
        caption = " ".join(rng.choices(WORDS, k=length))
        url = f"https://example.org/{key}.jpg"
        uid = sample_uid(url, caption)
        metadata = {"key": key, "uid": uid, "url": url, "caption": caption}
        yield Sample(key, uid, caption, image, "jpg", metadata)
