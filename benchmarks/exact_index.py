"""Nearest neighbours in memory, where a benchmark or a test has vectors and no corpus on disk."""

import faiss
import numpy as np

from retrieval.embeddings import Modality


class ExactIndex:
    """What `retrieval.search.Retriever` answers over a Flat index, from memory."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self._arrays = {"image": images, "text": texts}

    def neighbours(
        self, vectors: np.ndarray, k: int, modality: Modality
    ) -> tuple[np.ndarray, np.ndarray]:
        base = self._arrays[modality]
        similarities, rows = faiss.knn(vectors, base, min(k, len(base)), faiss.METRIC_INNER_PRODUCT)
        return similarities, rows

    def vectors(self, rows: np.ndarray, modality: Modality) -> np.ndarray:
        found: np.ndarray = self._arrays[modality][rows]
        return found
