"""Vectors as CLIP gives them for pictures and their captions, as many as wanted, from a seed.

What real ones have and plain Gaussian ones lack, each with its part in the recipe:

- A modality gap: all pictures lie in one cone, all captions in another (Liang et al., "Mind the
  Gap", NeurIPS 2022). Each modality has a mean direction, and these are orthogonal: a caption's
  cosine with its own picture is 0.24 in the mean, with others 0.01, of two pictures 0.35.
- Clusters within clusters, a few large and many small: topics, their kinds, their scenes, each
  chosen with a power law's probabilities.
- A spectrum that falls off as a power law: an effective dimension of 69 of 512.
- Captions that say only a part: a caption keeps a share of what its picture's vector says and
  adds much of its own. So for an index of pictures queries by words are out of distribution: their
  nearest pictures are scattered over its lists.

The strengths are set so that faiss indices of 60,000 x 512 have nearly the recalls that were
measured with another set of such vectors (recall@10 at 64 lists, picture / caption queries):

                        here         there
    RaBitQ, 1 bit       .76 / .33    .80 / .46
    IVF1024,RaBitQ4     .96 / .83    .96 / .84
    IVF1024, exact      .99 / .91    .99 / .90
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.config import digest_of
from pipeline.corpus import Manifest, Shard, write_manifest
from retrieval.embedding.embeddings import (
    EmbeddingsManifest,
    Part,
    array_name,
    embeddings_url,
    metadata_name,
)

ENCODER = "clip-like/synthetic"
NUM_TOPICS, NUM_KINDS, SCENES_A_ROW = 64, 2048, 0.05
STRENGTHS = (0.5, 0.4, 0.5, 0.8)
"""Of topic, kind, scene and the picture itself."""
SPECTRUM = 0.4
"""The i-th direction's standard deviation falls as i to the minus this."""
GAP = 0.8
"""The length of the mean directions, beside about 1 for all else."""
KEPT, KEPT_OF_ITSELF = 0.4, 0.28
"""What a caption keeps of the scene and of what is the picture's alone."""
CAPTION_NOISE, PICTURE_NOISE = 1.0, 0.1


@dataclass(frozen=True)
class ClipLike:
    """A corpus of that many pictures and captions, a part at a time."""

    num_rows: int
    rows_a_part: int = 10_000
    dim: int = 512
    seed: int = 0

    @property
    def num_parts(self) -> int:
        return -(-self.num_rows // self.rows_a_part)

    def part(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures and captions [rows of the part, d] float16, unit rows."""
        num = min(self.rows_a_part, self.num_rows - number * self.rows_a_part)
        return self._rows(np.random.default_rng([self.seed, number]), num)

    def unseen(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """As many pictures and captions of the same world that no part has."""
        return self._rows(np.random.default_rng([self.seed, 1 << 34]), num)

    def _rows(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        scenes, picture_mean, caption_mean = self._world
        shown = scenes[_power_law(rng, len(scenes), 0.5, num)]
        itself = STRENGTHS[3] * self._directions(rng, num)
        grain = rng.standard_normal((num, self.dim), np.float32) * PICTURE_NOISE / self.dim**0.5
        pictures = GAP * picture_mean + shown + itself + grain
        said = KEPT * shown + KEPT_OF_ITSELF * itself
        captions = GAP * caption_mean + said + CAPTION_NOISE * self._directions(rng, num)
        return _unit(pictures @ self._rotation), _unit(captions @ self._rotation)

    @cached_property
    def _rotation(self) -> np.ndarray:
        """So that no direction is an axis."""
        rng = np.random.default_rng([self.seed, 1 << 32])
        rotation: np.ndarray = np.linalg.qr(rng.normal(size=(self.dim, self.dim)))[0]
        return rotation.astype(np.float32)

    @cached_property
    def _world(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scenes, and where pictures and captions lie in the mean."""
        rng = np.random.default_rng([self.seed, 1 << 33])
        topics = STRENGTHS[0] * self._directions(rng, NUM_TOPICS)
        of_kind = _power_law(rng, NUM_TOPICS, 1, NUM_KINDS)
        kinds = topics[of_kind] + STRENGTHS[1] * self._directions(rng, NUM_KINDS)
        num_scenes = max(1, round(self.num_rows * SCENES_A_ROW))
        of_scene = _power_law(rng, NUM_KINDS, 0.7, num_scenes)
        scenes = kinds[of_scene] + STRENGTHS[2] * self._directions(rng, num_scenes)
        picture, caption = np.linalg.qr(rng.normal(size=(self.dim, 2)))[0].T.astype(np.float32)
        return scenes, picture, caption

    def _directions(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """[num, d] of length 1 in the mean square."""
        spectrum = np.arange(1, self.dim + 1, dtype=np.float32) ** -SPECTRUM
        spectrum /= np.linalg.norm(spectrum)
        return rng.standard_normal((num, self.dim), np.float32) * spectrum


def _power_law(rng: np.random.Generator, num_choices: int, power: float, num: int) -> np.ndarray:
    chances = np.arange(1, num_choices + 1, dtype=np.float64) ** -power
    return rng.choice(num_choices, num, p=chances / chances.sum())


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return unit


def write_corpus(
    root: Path,
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    encoder: str = ENCODER,
    weights_digest: str = "synthetic",
    names: Iterable[str] | None = None,
) -> str:
    """A corpus of nothing but embeddings, pictures' and captions', a shard a part.

    Returns the encoder's name: of one that could have made them, where queries are to be encoded.
    """
    folder = Path(embeddings_url(str(root), encoder))
    shards, written = [], []
    for name, (pictures, captions) in zip(names or _numbers(), parts, strict=False):
        part = _write_part(folder, name, pictures, captions)
        written.append(part)
        shards.append(
            Shard(
                name=name,
                num_samples=part.num_rows,
                num_bytes=0,
                sha256=digest_of(part.files),
                rows_sha256="",
            )
        )
    corpus = Manifest(
        stage="synthetic", config={}, config_digest="", input_digest="", shards=shards, counts={}
    )
    write_manifest(str(root), corpus)
    manifest = EmbeddingsManifest(
        encoder=encoder,
        weights_digest=weights_digest,
        precision="fp32",
        dim=written[0].dim,
        corpus_digest=corpus.digest,
        counts={},
        parts=written,
        files={name: digest for part in written for name, digest in part.files.items()},
    )
    storage.publish_text(str(folder / "manifest.json"), manifest.model_dump_json())
    return encoder


def _numbers() -> Iterator[str]:
    return (f"{number:05d}" for number in count())


def _write_part(folder: Path, shard: str, pictures: np.ndarray, captions: np.ndarray) -> Part:
    names = [array_name("image", shard), array_name("text", shard), metadata_name(shard)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / names[0], pictures)
    np.save(folder / names[1], captions)
    uids = [f"{int(shard):016x}{row:016x}" for row in range(len(pictures))]
    texts = [f"caption {row} of shard {shard}" for row in range(len(pictures))]
    table = {"image_path": uids, "uid": uids, "caption": texts, "url": uids}
    pq.write_table(pa.table(table), folder / names[2])
    return Part(
        shard=shard,
        file_number=shard,
        num_rows=len(pictures),
        num_undecodable=0,
        dim=pictures.shape[1],
        files={name: storage.sha256(str(folder / name)) for name in names},
    )
