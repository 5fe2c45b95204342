"""Is a picture a copy of one in the corpus? Training-set attribution for generated pictures.

Reads   through a Retriever: the index of the pictures, and the nearest pictures themselves

Two kinds of evidence. The picture hash (PDQ) says so outright: within 31 of 256 bits, in any of
eight positions, ThreatExchange's programs call two pictures the same. It holds through resizing
and recompression; for a crop, crops of the nearest pictures are hashed too. The embedding bends
less, but what similarity means is another with every encoder and corpus: so it is held against how
near the corpus's own pictures are to each other. A false positive rate of 0.01 says that one in a
hundred of them has a picture as near to it that is no copy of it (a conformal p-value: Vovk,
Gammerman & Shafer 2005).
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import InputError
from pipeline.picture_hash import (
    MATCH,
    MIN_QUALITY,
    NUM_BITS,
    PictureHash,
    Position,
    dihedral_hashes,
    distance,
    picture_hash,
)
from retrieval.encoding.pictures import decode_picture
from retrieval.knn import evenly_spaced

if TYPE_CHECKING:
    from PIL import Image

    from retrieval.search import Hit, Retriever

NUM_CANDIDATES = 8
"""Nearest pictures whose hashes are compared."""
NUM_CROPPED = 3
"""Nearest pictures of which crops are hashed, where no whole one matches."""
CROPS = tuple(
    (kept, x, y)
    for kept in (0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72)
    for x, y in ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
)
"""The share of either side that is kept, and where: in the middle or in a corner. A crop beside
these is found if it is within a few percent of one."""
MAX_FALSE_POSITIVES = 0.01
"""Up to this rate a similarity alone counts as a copy."""
NUM_SAMPLED = 1000
"""Pictures of the corpus that similarity is calibrated by: ten of them reach that rate."""
NUM_TAIL = 4 * int(MAX_FALSE_POSITIVES * NUM_SAMPLED)
"""Of those that are nearest to another, how many are made sure to be no copy of it."""


@dataclass(frozen=True)
class CopyVerdict:
    is_copy: bool
    uid: str
    """The picture of the corpus that it copies, or else is nearest to."""
    similarity: float
    """Cosine of the two, as the index keeps them."""
    false_positive_rate: float
    """(0, 1]: share of the corpus's own pictures that are as near to another that is no copy."""
    hash_distance: int | None
    """Bits of 256 that differ in the best position; None where one is too flat to tell."""
    position: str
    """How it was moved, where the hash knows: "upright", "mirrored", "rotated 180", ..."""
    evidence: str
    """One line for people."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Likeness:
    """Of a query to one candidate, by their hashes."""

    hit: "Hit"
    distance: int
    position: str
    is_crop: bool


class CopyDetector:
    """Calibrated at its first verdict for the state that the index has then; safe in threads."""

    def __init__(self, retriever: "Retriever") -> None:
        self._index = retriever.state
        self._hash = lru_cache(maxsize=4 * NUM_SAMPLED)(self._hash_of_row)
        self._crops = lru_cache(maxsize=NUM_SAMPLED)(self._crops_of_row)
        self._lock = Lock()
        self._nearest: np.ndarray | None = None

    def verdict(self, picture: "Image.Image", vector: np.ndarray) -> CopyVerdict | None:
        """Of a picture and its embedding [d]; None where the corpus has no picture."""
        similarities, rows = self._index.neighbours(
            np.reshape(vector, (1, -1)), NUM_CANDIDATES, "image"
        )
        hits = self._index.hits(rows[0], similarities[0])
        if not hits:
            return None
        rate = self._false_positive_rate(hits[0].similarity)
        best = self._most_alike(picture, hits)
        by_hash = best is not None and best.distance <= MATCH
        is_copy = by_hash or rate <= MAX_FALSE_POSITIVES
        hit = best.hit if best is not None and by_hash else hits[0]
        return CopyVerdict(
            is_copy=is_copy,
            uid=hit.uid,
            similarity=hit.similarity,
            false_positive_rate=rate,
            hash_distance=best.distance if best else None,
            position=best.position if best and by_hash else "upright",
            evidence=_evidence(hit, best if by_hash else None, rate, is_copy),
        )

    def _most_alike(self, picture: "Image.Image", hits: list["Hit"]) -> _Likeness | None:
        hashes = dihedral_hashes(np.asarray(picture))
        whole = [_compare(hashes, [self._hash(hit.row)], hit, is_crop=False) for hit in hits]
        best = _nearest(whole)
        if best is not None and best.distance <= MATCH:
            return best
        cropped = [
            _compare(hashes, self._crops(hit.row), hit, is_crop=True) for hit in hits[:NUM_CROPPED]
        ]
        return _nearest([best, *cropped])

    # Calibration

    def _false_positive_rate(self, similarity: float) -> float:
        with self._lock:
            if self._nearest is None:
                self._nearest = self._calibrate()
        num_as_near = int((self._nearest >= similarity).sum())
        return (num_as_near + 1) / (len(self._nearest) + 1)

    def _calibrate(self) -> np.ndarray:
        """How near a sample of the corpus's pictures are to their nearest that is no copy."""
        rows = np.flatnonzero(~self._index.removed)
        rows = rows[evenly_spaced(len(rows), NUM_SAMPLED)]
        vectors = self._index.vectors(rows, "image")
        similarities, found = self._index.neighbours(vectors, NUM_CANDIDATES + 1, "image")
        is_other = (found != rows[:, None]) & (found >= 0)
        others = [
            list(zip(similarities[i][is_other[i]], found[i][is_other[i]], strict=True))
            for i in range(len(rows))
        ]
        # Nearest of all first. Only these can be copies that matter: farther down nobody looks.
        heap = [(-float(one[0][0]), i, 0) for i, one in enumerate(others) if one]
        heapq.heapify(heap)
        tail: list[float] = []
        while heap and len(tail) < NUM_TAIL:
            negative, i, place = heapq.heappop(heap)
            if not self._are_copies(int(rows[i]), int(others[i][place][1])):
                tail.append(-negative)
            elif place + 1 < len(others[i]):
                heapq.heappush(heap, (-float(others[i][place + 1][0]), i, place + 1))
        return np.array(tail + [-negative for negative, _, _ in heap])

    def _are_copies(self, row: int, other: int) -> bool:
        one, two = self._hash(row), self._hash(other)
        between = _distance(one, two)
        return between is not None and between <= MATCH

    def _hash_of_row(self, row: int) -> PictureHash | None:
        """None where the picture can't be read."""
        pixels = self._read(row)
        return picture_hash(pixels) if pixels is not None else None

    def _crops_of_row(self, row: int) -> list[PictureHash]:
        pixels = self._read(row)
        return [] if pixels is None else [picture_hash(_crop(pixels, *crop)) for crop in CROPS]

    def _read(self, row: int) -> np.ndarray | None:
        hits = self._index.hits(np.array([row]), np.array([0.0]))
        images = self._index.read_images(hits)
        try:
            return np.asarray(decode_picture(images[hits[0].uid])) if images else None
        except InputError:
            return None


def copy_verdict(
    retriever: "Retriever", picture: "Image.Image", vector: np.ndarray
) -> CopyVerdict | None:
    """As CopyDetector.verdict, for one picture alone."""
    return CopyDetector(retriever).verdict(picture, vector)


def _compare(
    hashes: Mapping[Position, PictureHash],
    others: Sequence[PictureHash | None],
    hit: "Hit",
    is_crop: bool,
) -> _Likeness | None:
    return _nearest(
        [
            _Likeness(hit, between, position, is_crop)
            for position, one in hashes.items()
            for other in others
            if (between := _distance(one, other)) is not None
        ]
    )


def _nearest(found: Sequence[_Likeness | None]) -> _Likeness | None:
    """Of equals the first: upright, where a symmetric picture can be."""
    there = (one for one in found if one is not None)
    return min(there, key=lambda likeness: likeness.distance, default=None)


def _distance(one: PictureHash | None, other: PictureHash | None) -> int | None:
    """None where either is too flat to tell."""
    if one is None or other is None or min(one.quality, other.quality) < MIN_QUALITY:
        return None
    return distance(one.bits, other.bits)


def _crop(pixels: np.ndarray, kept: float, x: float, y: float) -> np.ndarray:
    height, width = (round(side * kept) for side in pixels.shape[:2])
    top, left = round((pixels.shape[0] - height) * y), round((pixels.shape[1] - width) * x)
    return pixels[top : top + height, left : left + width]


def _evidence(hit: "Hit", by_hash: _Likeness | None, rate: float, is_copy: bool) -> str:
    if by_hash is not None:
        moved = "" if by_hash.position == "upright" else f", {by_hash.position}"
        what = "a crop" if by_hash.is_crop else "a copy"
        return (
            f"{what} of {hit.uid}{moved} (picture hash: {by_hash.distance} of {NUM_BITS} bits "
            "differ)"
        )
    what = "a copy of" if is_copy else "no copy; nearest is"
    return (
        f"{what} {hit.uid} (cosine {hit.similarity:.3f}: {rate:.1%} of the corpus's own pictures "
        "are as near to another that is no copy)"
    )
