"""Perceptual hashes to compare a picture with, all at once."""

from collections.abc import Sequence

import numpy as np

from pipeline.picture_hash import NUM_BITS


class NearHashes:
    """n hashes of 256 bits, each with the distance that it reaches."""

    def __init__(self, hashes: Sequence[bytes], max_distances: Sequence[int]) -> None:
        self._hashes = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, NUM_BITS // 8)
        self._max_distances = np.array(max_distances, np.int64)

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, bits: bytes) -> int | None:
        """The place of the first one that these 32 bytes are near to."""
        differing = np.bitwise_count(self._hashes ^ np.frombuffer(bits, np.uint8))
        near = np.flatnonzero(differing.sum(axis=1) <= self._max_distances)
        return int(near[0]) if len(near) else None
