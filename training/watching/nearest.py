"""The picture of the corpus that is nearest to a drawn one, and whether that is a copy of it.

Reads   ROOT/index by an encoder, where there is one: then the answer is calibrated, see
        retrieval.copies; else ROOT/embeddings, all of them at every look, where only the picture
        hash can say "copy"; else nothing
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from infra.errors import CarraraError
from pipeline.corpus import read_manifest
from pipeline.picture_hash import MATCH, MIN_QUALITY, NUM_BITS, dihedral_hashes, distance
from pipeline.picture_hash import picture_hash as hash_of
from retrieval.copies import CopyDetector
from retrieval.embedding.embeddings import (
    choose_encoder,
    embeddings_url,
    list_encoders,
    read_array,
    read_embeddings_manifest,
    read_metadata,
)
from retrieval.encoding.encoder import Encoder, load_encoder
from retrieval.encoding.pictures import decode_picture
from retrieval.live.images import Wanted, read_images
from retrieval.search import Retriever


@dataclass(frozen=True)
class Nearest:
    uid: str
    similarity: float
    """Cosine of the encoder's embeddings."""
    is_copy: bool
    evidence: str
    """One line for people."""
    image: bytes
    """Its file."""


class Finder(Protocol):
    def nearest(self, pictures: Sequence[Image.Image]) -> list[Nearest]: ...


def open_finder(root: str, device: torch.device) -> "Finder | str":
    """Or in one line why there is none: a training goes on without."""
    try:
        if encoders := list_encoders(root, "index"):
            return IndexFinder(root, encoders[0], device)
        return EmbeddingsFinder(root, choose_encoder(root, "embeddings", None), device)
    except CarraraError as error:
        return f"nearest pictures are not shown: {error}"


class IndexFinder:
    def __init__(self, root: str, encoder: str, device: torch.device) -> None:
        self._retriever = Retriever.open(root, encoder)
        self._detector = CopyDetector(self._retriever)
        self._encoder = load_encoder(encoder, str(device))

    def nearest(self, pictures: Sequence[Image.Image]) -> list[Nearest]:
        vectors = self._encoder.encode_images(pictures)
        found = []
        for picture, vector in zip(pictures, vectors, strict=True):
            verdict = self._detector.verdict(picture, vector)
            assert verdict is not None  # a corpus that is trained on has pictures
            row = self._retriever.row_of(verdict.uid)
            assert row is not None
            hits = self._retriever.hits(np.array([row]), np.array([verdict.similarity]))
            image = self._retriever.read_images(hits)[verdict.uid]
            found.append(
                Nearest(verdict.uid, verdict.similarity, verdict.is_copy, verdict.evidence, image)
            )
        return found


class EmbeddingsFinder:
    def __init__(self, root: str, encoder: str, device: torch.device) -> None:
        self._root, self._folder = root, embeddings_url(root, encoder)
        self._parts = read_embeddings_manifest(root, encoder, read_manifest(root)).parts
        self._encoder: Encoder = load_encoder(encoder, str(device))

    def nearest(self, pictures: Sequence[Image.Image]) -> list[Nearest]:
        vectors = self._encoder.encode_images(pictures)
        best = [(-np.inf, "", "")] * len(pictures)  # similarity, uid, shard
        for part in (part for part in self._parts if part.num_rows):
            rows = read_array(self._folder, part, "image").astype(np.float32)
            similarities = vectors @ rows.T
            nearest = similarities.argmax(1)
            uids = read_metadata(self._folder, part, ["uid"])["uid"]
            for i, row in enumerate(nearest):
                here = (float(similarities[i, row]), uids[int(row)].as_py(), part.shard)
                best[i] = max(best[i], here)
        wanted: Wanted = {}
        for _, uid, shard in best:
            wanted.setdefault(shard, []).append((uid, None))
        images = read_images(self._root, wanted)
        return [
            _by_hash(picture, uid, float(similarity), images[uid])
            for picture, (similarity, uid, _) in zip(pictures, best, strict=True)
        ]


def _by_hash(picture: Image.Image, uid: str, similarity: float, image: bytes) -> Nearest:
    """The verdict that the picture hash gives (PDQ), in any of eight positions."""
    other = hash_of(np.asarray(decode_picture(image)))
    drawn = dihedral_hashes(np.asarray(picture))
    is_told = min(other.quality, *(one.quality for one in drawn.values())) >= MIN_QUALITY
    bits = min(distance(one.bits, other.bits) for one in drawn.values())
    is_copy = is_told and bits <= MATCH
    evidence = (
        f"{'a copy of' if is_copy else 'nearest is'} {uid} (cosine {similarity:.3f}; picture hash: "
        + (f"{bits} of {NUM_BITS} bits differ)" if is_told else "too flat to tell)")
    )
    return Nearest(uid, similarity, is_copy, evidence, image)
