"""Nearest neighbours in memory, where a benchmark or a test has vectors and no corpus on disk."""

import numpy as np

from retrieval.embedding.embeddings import Modality


class ExactIndex:
    """What `retrieval.search.Retriever` answers over a Flat index, from memory."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self._arrays = {"image": images, "text": texts}

    def neighbours(
        self, vectors: np.ndarray, k: int, modality: Modality
    ) -> tuple[np.ndarray, np.ndarray]:
        similarities = vectors @ self._arrays[modality].T
        k = min(k, similarities.shape[1])
        # Quicker than faiss's heap where k is in the hundreds.
        rows = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(similarities, rows, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def vectors(self, rows: np.ndarray, modality: Modality) -> np.ndarray:
        found: np.ndarray = self._arrays[modality][rows]
        return found
