"""Samples that a worker keeps in memory from one epoch to the next."""

import threading
from dataclasses import dataclass

import numpy as np

from training.streaming.pixels import Pixels
from training.streaming.plan import Place

CHUNK_BYTES = 8 << 20
"""Of memory that is asked for at once: from 4 MB on NumPy asks for huge pages, and the system need
not be entered for every 4 KB of what is kept."""

RECORD_BYTES = 512
"""Of memory, that a sample takes beside its pixels."""


@dataclass(frozen=True)
class KeptSample:
    uid: str
    caption: str
    picture: bytes | Pixels
    """As stored, or decoded but not yet flipped."""


class KeptSamples:
    """Samples that stay in memory for later epochs: the first ones that fit, since every sample
    comes round equally often."""

    def __init__(self, max_bytes: int, whole: bool) -> None:
        """`whole`: pictures as stored, where each time another part of them is wanted."""
        self._max_bytes, self._whole = max_bytes, whole
        self._samples: dict[Place, KeptSample] = {}
        self._lock = threading.Lock()
        self._chunk = np.empty(0, np.uint8)
        self._is_full = False
        self.num_bytes = 0

    @property
    def has_room(self) -> bool:
        """Nothing had to be left out so far."""
        return not self._is_full

    def __contains__(self, place: Place) -> bool:
        return place in self._samples

    def get(self, place: Place) -> KeptSample | None:
        return self._samples.get(place)

    def offer(self, place: Place, sample: KeptSample, pixels: Pixels) -> None:
        picture = sample.picture if self._whole else pixels
        num_bytes = RECORD_BYTES + (len(picture) if isinstance(picture, bytes) else picture.nbytes)
        with self._lock:
            self._is_full |= self.num_bytes + num_bytes > self._max_bytes
            if place in self._samples or self.num_bytes + num_bytes > self._max_bytes:
                return
            self.num_bytes += num_bytes
            kept = picture if isinstance(picture, bytes) else self._copied(picture)
            self._samples[place] = KeptSample(sample.uid, sample.caption, kept)

    def _copied(self, pixels: Pixels) -> Pixels:
        if len(self._chunk) < pixels.size:
            self._chunk = np.empty(max(CHUNK_BYTES, pixels.size), np.uint8)
        copy = self._chunk[: pixels.size].reshape(pixels.shape)
        self._chunk = self._chunk[pixels.size :]
        copy[:] = pixels
        return copy
