"""The stream of samples: which pictures and captions make up the batch of a step.

Reads   ROOT/manifest.json, shards, and a selection if one is named

The global batch of a step is a pure function of (corpus digest, selection, seed, step): the same
uids in the same order whatever the number of workers and after any crash. Each epoch visits every
kept sample once: shards in a random order, samples shuffled among `shuffle_shards` of them at a
time, so that memory holds one window and not the corpus.

Every worker reads all shards of a window and decodes only its own samples.
"""

import io
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, ImageOps
from torch import Tensor

from infra.errors import DamagedError, InputError
from pipeline.corpus import (
    SUCCESS,
    Manifest,
    Shard,
    iter_samples,
    read_manifest,
    read_rows,
    read_selection,
)
from training.order import Purpose, SampleOrder, random


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step: b pictures of S x S pixels."""

    uids: list[str]
    captions: list[str]
    pixels: Tensor  # uint8 [b, 3, S, S], in channels-last memory


class SampleStream:
    """`batch(step, positions)`: the samples at these positions of the step's global batch."""

    def __init__(
        self,
        root: str,
        *,
        selection: str | None,
        image_size: int,
        horizontal_flip: bool,
        batch_size: int,
        seed: int,
        shuffle_shards: int,
        cache_size_mb: int,
        num_decoders: int,
    ) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        self._kept = None if selection is None else _kept_uids(root, selection)
        counts = _count_samples(root, self.manifest, self._kept)
        self._order = SampleOrder(counts, seed, shuffle_shards)
        self.num_samples = self._order.num_samples
        if self.num_samples == 0:
            chosen = f" that selection {selection!r} keeps" if selection else ""
            raise InputError(f"{root}: no samples{chosen}; training needs at least one")
        self._image_size, self._horizontal_flip = image_size, horizontal_flip
        self._batch_size, self._seed = batch_size, seed
        self._cache: OrderedDict[int, _LoadedShard] = OrderedDict()
        self._cache_size_bytes = cache_size_mb * 1_000_000
        self._decoders = ThreadPoolExecutor(num_decoders, thread_name_prefix="decode")

    def batch(self, step: int, positions: range) -> Batch:
        places = [self._order.place(step * self._batch_size + p) for p in positions]
        self._load({shard for shard, _ in places})
        todo = [(self._cache[shard], row) for shard, row in places]
        images = list(self._decoders.map(lambda pair: pair[0].decode(pair[1]), todo))
        pixels = np.stack(images)
        if self._horizontal_flip:
            draws = random(self._seed, Purpose.FLIPS, step).random(self._batch_size)
            flips = draws[positions.start : positions.stop] < 0.5
            pixels[flips] = pixels[flips, :, ::-1]
        self._evict()
        return Batch(
            uids=[shard.uids[row] for shard, row in todo],
            captions=[shard.captions[row] for shard, row in todo],
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        )

    def captions(self) -> list[str]:
        """Every caption of the stream once, in the corpus's order."""
        captions: dict[str, None] = {}
        for shard in self.manifest.shards:
            rows = read_rows(self.root, shard, ["uid", "caption", "status"])
            rows = rows.filter(pc.equal(rows["status"], SUCCESS))
            for uid, caption in zip(
                rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True
            ):
                if self._kept is None or uid in self._kept:
                    captions[caption] = None
        return list(captions)

    def _load(self, wanted: set[int]) -> None:
        for index in sorted(wanted):
            if index not in self._cache:
                self._cache[index] = _LoadedShard.read(
                    self.root, self.manifest.shards[index], self._kept, self._image_size
                )
            self._cache.move_to_end(index)

    def _evict(self) -> None:
        """Drop the shards used longest ago, but never those of the windows at hand."""
        needed = self._order.shards_at_hand
        sizes = {index: shard.num_bytes for index, shard in self._cache.items()}
        excess = sum(sizes.values()) - self._cache_size_bytes
        for index in [index for index in self._cache if index not in needed]:
            if excess <= 0:
                break
            excess -= sizes[index]
            del self._cache[index]


@dataclass
class _LoadedShard:
    """A shard in memory; a picture is kept as its file until it is first asked for."""

    name: str
    uids: list[str]
    captions: list[str]
    images: list[bytes | None]
    image_size: int
    num_file_bytes: int
    pixels: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(
        cls, root: str, shard: Shard, kept: set[str] | None, image_size: int
    ) -> "_LoadedShard":
        samples = [s for s in iter_samples(root, shard) if kept is None or s.uid in kept]
        return cls(
            name=shard.name,
            uids=[sample.uid for sample in samples],
            captions=[sample.caption for sample in samples],
            images=[sample.image for sample in samples],
            image_size=image_size,
            num_file_bytes=sum(len(sample.image) for sample in samples),
        )

    @property
    def num_bytes(self) -> int:
        return self.num_file_bytes + len(self.pixels) * self.image_size**2 * 3

    def decode(self, row: int) -> np.ndarray:
        """uint8 `[S, S, 3]`. Two threads may decode the same row: both get the same pixels."""
        if row not in self.pixels:
            data = self.images[row]
            if data is None:
                return self.pixels[row]
            try:
                pixels = decode(data, self.image_size)
            except (OSError, ValueError) as error:
                raise DamagedError(
                    f"shard {self.name}, sample {self.uids[row]}: its picture can't be decoded "
                    f"({error}); `carrara verify` tells whether the shard is damaged"
                ) from error
            self.pixels[row] = pixels
            self.images[row] = None
            self.num_file_bytes -= len(data)
        return self.pixels[row]


def decode(data: bytes, image_size: int) -> np.ndarray:
    """A picture's file -> uint8 `[S, S, 3]`: its largest centred square, resized."""
    with Image.open(io.BytesIO(data)) as image:
        # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the cost; twice the target is kept
        # for the filter to work on.
        image.draft("RGB", (2 * image_size, 2 * image_size))
        square = ImageOps.fit(
            image.convert("RGB"), (image_size, image_size), Image.Resampling.BICUBIC
        )
    return np.asarray(square)


def _kept_uids(root: str, selection: str) -> set[str]:
    table = read_selection(root, selection)
    return set(table.filter(table["keep"])["uid"].to_pylist())


def _count_samples(root: str, manifest: Manifest, kept: set[str] | None) -> np.ndarray:
    """How many samples of each shard the stream has, `[num_shards]`."""
    if kept is None:
        return np.array([shard.num_samples for shard in manifest.shards], dtype=np.int64)
    counts = []
    for shard in manifest.shards:
        rows = read_rows(root, shard, ["uid", "status"])
        uids = rows.filter(pc.equal(rows["status"], SUCCESS))["uid"].to_pylist()
        counts.append(sum(uid in kept for uid in uids))
    return np.array(counts, dtype=np.int64)


_Outcome = Batch | BaseException


@contextmanager
def prefetched(
    stream: SampleStream, steps: range, positions: range, depth: int = 4
) -> Iterator[Iterator[Batch]]:
    """The batches of these steps in order, made ahead by a background thread."""
    ready: queue.Queue[_Outcome] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(outcome: _Outcome) -> bool:
        while not stop.is_set():
            try:
                ready.put(outcome, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for step in steps:
                if not put(stream.batch(step, positions)):
                    return
        except BaseException as error:  # carried to the consumer, which raises it
            put(error)

    def consume(remaining: Sequence[int]) -> Iterator[Batch]:
        for _ in remaining:
            outcome = ready.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        yield consume(steps)
    finally:
        stop.set()
        thread.join()
