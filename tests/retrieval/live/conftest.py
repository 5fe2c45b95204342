"""Corpora with embeddings that need no encoder: vectors of one's own, and bytes for pictures."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from infra import storage
from infra.stamp import Stamp
from pipeline.corpus import Shard, manifest_url, read_manifest, read_rows
from retrieval.embedding.embeddings import (
    EmbeddingsManifest,
    Part,
    array_bytes,
    array_name,
    embeddings_url,
    metadata_bytes,
    metadata_name,
    read_parts,
)

ENCODER = "Test/none"


def unit_rows(num_rows: int, dim: int, seed: int) -> np.ndarray:
    """[n, d] float16, as embeddings are stored."""
    rows = np.random.default_rng(seed).standard_normal((num_rows, dim), np.float32)
    units: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units.astype(np.float16)


class EmbeddedCorpus:
    """A corpus that grows by shards, and its embeddings."""

    def __init__(self, root: str, dim: int = 16) -> None:
        self.root, self.dim = root, dim
        self.image = np.zeros((0, dim), np.float16)
        self.text = np.zeros((0, dim), np.float16)
        self.uids: list[str] = []
        self._shards: list[Shard] = []
        self._parts: list[Part] = []
        if storage.exists(manifest_url(root)):  # as others left it
            self._shards = list(read_manifest(root).shards)
            parts = read_parts(self.folder)
            self._parts = [parts[shard.name] for shard in self._shards]

    def grow(self, num_samples: int) -> None:
        """By one shard, written with the manifests of corpus and embeddings."""
        number = len(self._shards)
        image = unit_rows(num_samples, self.dim, 2 * number)
        text = unit_rows(num_samples, self.dim, 2 * number + 1)
        shard = self._write_shard(f"{number:05d}", num_samples)
        self._shards.append(shard)
        self._write_part(shard, image, text)
        self.image = np.concatenate([self.image, image])
        self.text = np.concatenate([self.text, text])
        self._write_manifests()

    def _write_shard(self, name: str, num_samples: int) -> Shard:
        samples = []
        for i in range(num_samples):
            key = f"{name}{i:04d}"
            url, image = f"https://{i % 3}.example.org/{key}.jpg", f"the picture {key}".encode()
            samples.append(made_sample(key, url, f"sample {key}", image, width=i))
        self.uids += [sample.uid for sample in samples]
        return write_made_shard(self.root, name, samples)

    def _write_part(self, shard: Shard, image: np.ndarray, text: np.ndarray) -> None:
        number = f"{int(shard.name):02d}"
        rows = read_rows(self.root, shard).drop_columns(["status", "error_message"])
        metadata = rows.rename_columns(["image_path", *rows.column_names[1:]])
        contents = {
            array_name("image", number): array_bytes(image),
            array_name("text", number): array_bytes(text),
            metadata_name(number): metadata_bytes(metadata),
        }
        for name, data in contents.items():
            storage.publish_bytes(storage.join(self.folder, name), data)
        part = Part(
            shard=shard.name,
            file_number=number,
            num_rows=len(image),
            num_undecodable=0,
            dim=self.dim,
            shard_digest=shard.sha256,
            rows_digest=shard.rows_sha256,
            precision="fp32",
            files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        )
        self._parts.append(part)
        storage.publish_text(storage.join(self.folder, part.record_name), part.model_dump_json())

    def _write_manifests(self) -> None:
        corpus = write_made_manifest(self.root, self._shards)
        embeddings = EmbeddingsManifest(
            encoder=ENCODER,
            weights_digest="0" * 64,
            precision="fp32",
            dim=self.dim,
            corpus_digest=corpus.digest,
            counts={"embedded": sum(part.num_rows for part in self._parts)},
            parts=list(self._parts),
            files={name: digest for part in self._parts for name, digest in part.files.items()},
        )
        stamp = Stamp(stage="embed", input_digest=corpus.digest, config_digest="0" * 16, config={})
        for name, record in (("manifest.json", embeddings), ("stamp.json", stamp)):
            storage.publish_text(storage.join(self.folder, name), record.model_dump_json())

    @property
    def folder(self) -> str:
        return embeddings_url(self.root, ENCODER)


@pytest.fixture(scope="session")
def make_embedded() -> Callable[..., EmbeddedCorpus]:
    """make_embedded(folder, 60, 40): a corpus of two shards of so many samples each."""

    def make(folder: Path, *num_samples: int, dim: int = 16) -> EmbeddedCorpus:
        corpus = EmbeddedCorpus(str(folder), dim)
        for num in num_samples:
            corpus.grow(num)
        return corpus

    return make
