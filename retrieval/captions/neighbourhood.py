"""What lies around pictures and captions: their nearest neighbours in both indices, asked once.

Every score of `scores.py` follows from this one pass: a picture asks for the pictures and for the
captions that are nearest to it, a caption likewise. Which caption belongs to which picture is not
looked at here, so that pairs can be swapped without another search.

Shapes: n samples, k rivals, c copies, m neighbours, d dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retrieval.embedding.embeddings import Modality

NEAR_DUPLICATE = 0.99
"""Cosine from which two pictures, or two captions, count as one, so that a popular picture's many
copies don't speak against its captions. Float16 copies of one picture reach 0.999."""
MAX_NEAR_DUPLICATES = 50
"""Copies looked for; in a corpus with more of one picture, deduplicate first."""
NUM_NEAR = 5
"""LEMoN's k (facts of the paper's own program: `knn_k`)."""
BLOCK = 512
"""Samples at once: 0.1 GB at 512 dimensions."""

NOBODY = -1
"""Stands for a row where there is none."""


class Index(Protocol):
    """What is asked of `retrieval.search.Retriever`."""

    def neighbours(
        self, vectors: np.ndarray, k: int, modality: Modality
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and rows [n, k], best first, NOBODY where there are no more."""

    def vectors(self, rows: np.ndarray, modality: Modality) -> np.ndarray:
        """[len(rows), d] float32."""


@dataclass(frozen=True)
class Side:
    """n pictures, or n captions, and what lies around them."""

    vectors: np.ndarray
    """[n, d]"""
    rows: np.ndarray
    """[n]: which rows of the index they are."""
    copies: np.ndarray
    """[n, c] rows of their own kind that are nearly the same, NOBODY elsewhere."""
    rival_similarities: np.ndarray
    rivals: np.ndarray
    """[n, k] rows of the other kind, nearest first."""
    near: np.ndarray
    """[n, m] rows of their own kind, nearest first, their own left out."""
    near_images: np.ndarray
    near_texts: np.ndarray
    """[n, m, d]: the pairs in these rows."""

    def take(self, places: np.ndarray) -> "Side":
        """The same of these samples, in this order."""
        return Side(**{name: array[places] for name, array in vars(self).items()})


def look_around(
    index: Index, vectors: np.ndarray, rows: np.ndarray, modality: Modality, num_rivals: int
) -> Side:
    """`num_rivals`: how many remain at least when all copies among them are left out."""
    other: Modality = "text" if modality == "image" else "image"
    similarities, found = index.neighbours(vectors, MAX_NEAR_DUPLICATES + 1, modality)
    is_copy = (similarities > NEAR_DUPLICATE) & (found != rows[:, None])
    near = _first(found, found != rows[:, None], NUM_NEAR)
    rival_similarities, rivals = index.neighbours(
        vectors, num_rivals + MAX_NEAR_DUPLICATES + 1, other
    )
    return Side(
        vectors=vectors,
        rows=rows,
        copies=np.where(is_copy, found, NOBODY),
        rival_similarities=rival_similarities,
        rivals=rivals,
        near=near,
        near_images=_vectors(index, near, "image"),
        near_texts=_vectors(index, near, "text"),
    )


def blocks(num: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, num)) for start in range(0, num, BLOCK))


def is_among(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n, k] bool: which of each line's rows [n, k] are in the same line of others [n, c]."""
    # One number for a line and a row: then one sorted look-up serves all lines.
    stride = max(rows.max(initial=0), others.max(initial=0)) + 2
    lines = np.arange(len(rows))[:, None] * stride
    found: np.ndarray = np.isin(rows + lines, (others + lines)[others != NOBODY])
    found &= rows != NOBODY
    return found


def _first(rows: np.ndarray, is_wanted: np.ndarray, num: int) -> np.ndarray:
    """The first `num` wanted rows of each line, NOBODY where there are fewer."""
    order = np.argsort(~is_wanted, axis=1, kind="stable")[:, :num]
    kept = np.take_along_axis(np.where(is_wanted, rows, NOBODY), order, axis=1)
    missing = ((0, 0), (0, num - kept.shape[1]))
    return np.pad(kept, missing, constant_values=NOBODY)


def _vectors(index: Index, rows: np.ndarray, modality: Modality) -> np.ndarray:
    """[n, m, d]; what stands for NOBODY is never used."""
    unique, places = np.unique(rows.clip(min=0), return_inverse=True)
    found: np.ndarray = index.vectors(unique, modality)[places.reshape(rows.shape)]
    return found
