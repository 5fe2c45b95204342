"""Scores that follow from embeddings: does a caption fit its picture, and better than others would?

    carrara score ROOT --signals clip neighbours
    carrara score ROOT --signals neighbours --options.examples PICTURES_FOLDER

Reads   ROOT/embeddings/<encoder>/, and for `neighbours` ROOT/index/<encoder>/ too; the examples
Writes  ROOT/columns/neighbours/mix.json       what was learned from a sample of the corpus; once
        ROOT/columns/neighbours/examples.npy   the examples' embeddings

`clip` is the cosine of picture and caption. It says little by itself: captions of some kinds lie
farther from all pictures than captions of others. `neighbours` asks both indices once for what
lies around each picture and each caption, and from that makes

    knn_rank_image, knn_rank_text   how many pictures lie nearer to the caption than its own, and
                                    how many captions nearer to the picture
    neg_clip_loss                   s-CLIPLoss over the corpus: higher fits better
    lemon_distance                  LEMoN: lower fits better
    mismatch                        how likely the caption is not its picture's, by all of these
    normsim_2, normsim_inf          how like the examples a picture is, where some are given

The formulas stand in captions/scores.py and captions/mix.py. It costs a few index searches a
sample, so a corpus twice as large takes twice as long (times what its index's searches grow by).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from infra import storage
from infra.errors import ConfigError, ConflictError
from infra.records import read_record
from pipeline.corpus import Shard
from pipeline.score import Options
from retrieval.captions.corpus import EmbeddedCorpus, whole_number
from retrieval.embedding.embeddings import array_bytes

if TYPE_CHECKING:
    from retrieval.captions.examples import Examples
    from retrieval.captions.mix import Mix
    from retrieval.captions.scores import PairScores
    from retrieval.search import Retriever

K_MAX = 200
"""Ranks are counted up to here; beyond, a caption fits any other picture as well."""

SCORES = pa.schema(
    [
        ("knn_rank_image", pa.int32()),
        ("knn_rank_text", pa.int32()),
        ("neg_clip_loss", pa.float32()),
        ("lemon_distance", pa.float32()),
        ("mismatch", pa.float32()),
    ]
)
NORMSIM = (pa.field("normsim_2", pa.float32()), pa.field("normsim_inf", pa.float32()))


class ClipSignal:
    name = "clip"
    schema = pa.schema([("clip_similarity", pa.float32())])

    def __init__(self, root: str, options: Options) -> None:
        self._corpus = EmbeddedCorpus(root, options)

    def identity(self) -> dict[str, Any]:
        return {
            "version": 1,
            "models": dict.fromkeys(self.schema.names, self._corpus.models),
            **self._corpus.identity(),
        }

    def __call__(self, shard: Shard) -> pa.Table:
        images, texts = (self._corpus.rows(shard, modality) for modality in ("image", "text"))
        cosines = np.einsum("nd,nd->n", images, texts)
        return self._corpus.columns(shard, {"clip_similarity": pa.array(cosines, pa.float32())})


class NeighboursSignal:
    name = "neighbours"

    def __init__(self, root: str, options: Options) -> None:
        from retrieval.captions.scores import TEMPERATURE

        self._corpus = EmbeddedCorpus(root, options)
        self._k_max = whole_number(options, "k_max", K_MAX)
        self._temperature = _positive(options, "temperature", TEMPERATURE)
        self._examples = self._given_examples(options.get("examples"))
        self.schema = pa.schema([*SCORES, *(NORMSIM if self._examples else ())])
        self._folder = storage.join(root, "columns", self.name)
        indexed = self._retriever.manifest.embeddings_digest
        if indexed != self._corpus.manifest.digest:
            raise ConflictError(
                f"{root}: the index by {self._corpus.encoder!r} is of other embeddings (digest "
                f"{indexed}, now {self._corpus.manifest.digest}); run `carrara index {root} "
                f"--encoder {self._corpus.encoder} --overwrite`"
            )

    def identity(self) -> dict[str, Any]:
        from retrieval.captions import mix, neighbourhood, scores

        examples = {"examples": self._examples.digest} if self._examples else {}
        return {
            "version": 2,
            "models": dict.fromkeys(self.schema.names, self._corpus.models),
            "k_max": self._k_max,
            "temperature": self._temperature,
            "near_duplicate": neighbourhood.NEAR_DUPLICATE,
            "lemon": [
                neighbourhood.NUM_NEAR,
                scores.BETA,
                scores.GAMMA,
                scores.TAU_1,
                scores.TAU_2,
            ],
            "mix": [mix.NUM_PAIRS, mix.SEED, mix.SHARE_OF_HARD, mix.PULL, mix.LOWEST],
            "kind": self._retriever.manifest.kind,
            **examples,
            **self._corpus.identity(),
        }

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Learns the mix from a sample of the corpus, once, so that all workers have the same."""
        from retrieval.captions.mix import fit

        if not storage.exists(self._mix_url):
            rows = np.flatnonzero(~self._retriever.removed)
            mix = fit(self._retriever, rows, self._k_max, self._temperature)
            storage.publish_text(self._mix_url, mix.model_dump_json(indent=2) + "\n")
        if self._examples and not storage.exists(self._examples_url):
            storage.publish_bytes(self._examples_url, array_bytes(self._examples.embed()))
        yield

    def __call__(self, shard: Shard) -> pa.Table:
        images, texts = self._corpus.rows(shard, "image"), self._corpus.rows(shard, "text")
        # A shard without an embedding that was appended has no place in the index.
        start = self._starts[shard.name] if len(images) else 0
        found = self._score(images, texts, start)
        values = {
            "knn_rank_image": pa.array(found.rank_image, pa.int32()),
            "knn_rank_text": pa.array(found.rank_text, pa.int32()),
            "neg_clip_loss": pa.array(found.clip_loss, pa.float32()),
            "lemon_distance": pa.array(found.lemon, pa.float32()),
            "mismatch": pa.array(self._mix.mismatch(found), pa.float32()),
        }
        if self._examples:
            values |= self._normsim(images)
        table = self._corpus.columns(shard, values)
        return table.replace_schema_metadata({"carrara.mix": self._mix.digest})

    def _score(self, images: np.ndarray, texts: np.ndarray, start: int) -> "PairScores":
        from retrieval.captions.neighbourhood import blocks, look_around
        from retrieval.captions.scores import PairScores, score_pairs

        found = []
        for block in blocks(len(images)):
            rows = start + np.arange(len(images))[block]
            pictures = look_around(self._retriever, images[block], rows, "image", self._k_max)
            captions = look_around(self._retriever, texts[block], rows, "text", self._k_max)
            found.append(score_pairs(pictures, captions, self._k_max, self._temperature))
        return PairScores.joined(found)

    def _normsim(self, images: np.ndarray) -> dict[str, pa.Array]:
        """Wang et al., "CLIPLoss and Norm-Based Data Selection" (NeurIPS 2024), section 4, for
        p = 2 and infinity; the former over the root of their number, so that it is in [0, 1]."""
        squares, nearest = [], []
        for start in range(0, len(images), 1024):
            similarities = images[start : start + 1024] @ self._embedded_examples.T
            squares.append(np.sqrt((similarities**2).mean(axis=1)))
            nearest.append(similarities.max(axis=1))
        columns = (np.concatenate(one or [np.zeros(0)]) for one in (squares, nearest))
        return {
            field.name: pa.array(column, field.type)
            for field, column in zip(NORMSIM, columns, strict=True)
        }

    @cached_property
    def _retriever(self) -> "Retriever":
        from retrieval.search import Retriever

        return Retriever.open(self._corpus.root, self._corpus.encoder)

    @cached_property
    def _starts(self) -> dict[str, int]:
        from retrieval.search import row_starts

        return row_starts(self._retriever.manifest.parts)

    @cached_property
    def _mix(self) -> "Mix":
        from retrieval.captions.mix import Mix

        return read_record(self._mix_url, Mix)

    @cached_property
    def _embedded_examples(self) -> np.ndarray:
        """[m, d] float32"""
        rows: np.ndarray = np.load(
            io.BytesIO(storage.read_bytes(self._examples_url)), allow_pickle=False
        )
        return rows.astype(np.float32)

    @property
    def _mix_url(self) -> str:
        return storage.join(self._folder, "mix.json")

    @property
    def _examples_url(self) -> str:
        return storage.join(self._folder, "examples.npy")

    def _given_examples(self, place: str | None) -> "Examples | None":
        from retrieval.captions.examples import Examples

        return Examples(self._corpus, "examples", place) if place is not None else None


def _positive(options: Options, name: str, default: float) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"options.{name} {text!r}: expected a number above 0")
    return value
