"""Scores that follow from embeddings: does a caption fit its picture, and better than others would?

Reads   ROOT/embeddings/<encoder>/, and for `neighbours` ROOT/index/<encoder>/ too

`clip` is the cosine of picture and caption. It says little by itself: captions of some kinds lie
farther from all pictures than captions of others. `neighbours` asks instead how many pictures of
the corpus lie nearer to the caption than its own picture does: few, if the caption is its
picture's; any number, if captions were swapped. It costs a few index searches a sample, so a
corpus twice as large takes twice as long.
"""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import ConflictError
from pipeline.corpus import Shard
from pipeline.score import Options
from retrieval.captions.corpus import EmbeddedCorpus, whole_number
from retrieval.embeddings import Modality

K_MAX = 200
"""Ranks are counted up to here; beyond, a caption fits any other picture as well."""
NEAR_DUPLICATE = 0.99
"""Cosine from which two pictures, or two captions, count as one, so that a popular picture's many
copies don't speak against its captions. Float16 copies of one picture reach 0.999."""
MAX_NEAR_DUPLICATES = 50
"""Copies looked for; in a corpus with more of one picture, deduplicate first."""


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
    schema = pa.schema([("knn_rank_image", pa.int32()), ("knn_rank_text", pa.int32())])

    def __init__(self, root: str, options: Options) -> None:
        from retrieval.search import Retriever

        self._corpus = EmbeddedCorpus(root, options)
        self._k_max = whole_number(options, "k_max", K_MAX)
        self._retriever = Retriever.open(root, self._corpus.encoder)
        indexed = self._retriever.manifest.embeddings_digest
        if indexed != self._corpus.manifest.digest:
            raise ConflictError(
                f"{root}: the index by {self._corpus.encoder!r} is of other embeddings (digest "
                f"{indexed}, now {self._corpus.manifest.digest}); run `carrara index {root} "
                f"--encoder {self._corpus.encoder} --overwrite`"
            )

    def identity(self) -> dict[str, Any]:
        return {
            "version": 1,
            "models": dict.fromkeys(self.schema.names, self._corpus.models),
            "k_max": self._k_max,
            "near_duplicate": NEAR_DUPLICATE,
            "kind": self._retriever.manifest.kind,
            **self._corpus.identity(),
        }

    def __call__(self, shard: Shard) -> pa.Table:
        images, texts = self._corpus.rows(shard, "image"), self._corpus.rows(shard, "text")
        own_rows = self._starts[shard.name] + np.arange(len(images))
        ranks = {
            "knn_rank_image": self._ranks(texts, images, own_rows, "image"),
            "knn_rank_text": self._ranks(images, texts, own_rows, "text"),
        }
        return self._corpus.columns(
            shard, {name: pa.array(values, pa.int32()) for name, values in ranks.items()}
        )

    def _ranks(
        self, queries: np.ndarray, own: np.ndarray, own_rows: np.ndarray, modality: Modality
    ) -> np.ndarray:
        """How many rows of the index are nearer to each query than its own is, up to k_max.

        The own row and what is nearly the same as it are not counted.
        """
        from retrieval.knn import TIE

        if not len(queries):
            return np.zeros(0, np.int64)
        copy_similarities, copies = self._retriever.neighbours(own, MAX_NEAR_DUPLICATES, modality)
        copies = np.where(copy_similarities > NEAR_DUPLICATE, copies, -1)
        # As many more as may have to be left out.
        depth = self._k_max + MAX_NEAR_DUPLICATES + 1
        similarities, rows = self._retriever.neighbours(queries, depth, modality)
        own_similarities = np.einsum("nd,nd->n", queries, own)
        is_nearer = (similarities > own_similarities[:, None] + TIE) & (rows >= 0)
        is_own = rows == own_rows[:, None]
        is_copy = (rows[:, :, None] == copies[:, None, :]).any(axis=2)
        num_nearer: np.ndarray = (is_nearer & ~is_own & ~is_copy).sum(axis=1)
        return num_nearer.clip(max=self._k_max)

    @cached_property
    def _starts(self) -> dict[str, int]:
        from retrieval.search import row_starts

        return row_starts(self._retriever.manifest.parts)
