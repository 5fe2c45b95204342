"""Small JPEGs of the corpus's pictures, read from the shards by range and remembered for a while.

Reads   ROOT/shards/
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from pipeline.pixels.pixel_settings import PixelSettings
from pipeline.pixels.resizer import PictureResizer, Rejected
from retrieval.search import Hit, Retriever
from retrieval.serving.errors import log_damage

SIZES = (64, 128, 256, 512, 768, 1024)
"""Pixels of the longer side; others are served by the next larger of these."""

MAX_CACHED_BYTES = 64_000_000


class Thumbnails:
    """Of one index; any number of threads may call it."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._resizers = {size: _resizer(size) for size in SIZES}
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._num_bytes = 0

    def of(self, hits: Sequence[Hit], size: int) -> dict[str, bytes]:
        """JPEGs by uid; what can't be read or decoded is left out."""
        side = next((side for side in SIZES if side >= size), SIZES[-1])
        found = {}
        for hit in hits:
            with self._lock:
                if (cached := self._cache.get((hit.uid, side))) is not None:
                    self._cache.move_to_end((hit.uid, side))
                    found[hit.uid] = cached
        missing = [hit for hit in hits if hit.uid not in found]
        state = self._retriever.state
        for uid, image in (state.read_images(missing, log_damage) if missing else {}).items():
            picture = self._resizers[side](image)
            if not isinstance(picture, Rejected):
                found[uid] = picture.data
                self._keep((uid, side), picture.data)
        return found

    def _keep(self, key: tuple[str, int], data: bytes) -> None:
        with self._lock:
            self._num_bytes += len(data) - len(self._cache.pop(key, b""))
            self._cache[key] = data
            while self._num_bytes > MAX_CACHED_BYTES:
                _, oldest = self._cache.popitem(last=False)
                self._num_bytes -= len(oldest)


def _resizer(size: int) -> PictureResizer:
    return PictureResizer(
        PixelSettings(
            image_size=size,
            resize_mode="keep_ratio_largest",
            resize_only_if_bigger=True,
            encode_quality=85,
            skip_reencode=True,
        )
    )
