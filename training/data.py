"""The stream of samples: which pictures and captions make up the batch of a step.

Reads   ROOT/manifest.json, shards, and a selection if one is named; the same of corpora mixed in

The global batch of a step is a pure function of (corpus digest, selection, seed, step): the same
uids in the same order whatever the number of workers and after any crash, captions, flips and crops
included (training/streaming/order.py). Workers read different parts of the shards, ahead of the
step and within bounded memory (training/streaming/reading.py), and decode off the training thread.
"""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import InputError
from pipeline.corpus import Manifest
from pipeline.pixels.picture_header import UnusableError
from training.config import Config
from training.order import Purpose, random
from training.streaming.batch import Batch, StreamSettings
from training.streaming.catalogue import Catalogue
from training.streaming.feeding import Pending
from training.streaming.kept import KeptSample, KeptSamples
from training.streaming.memory import PixelMemory
from training.streaming.pixels import (
    CENTRE,
    Pixels,
    decode_into,
    decode_sample,
    set_up_decoding,
)
from training.streaming.plan import Place, Rows, SamplePlan
from training.streaming.reading import BlockReader, HeldBlock, TakenDownError
from training.streaming.resident import ResidentSamples, check_squares_alone
from training.streaming.shapes import shapes_for

READ_AT_ONCE = 8
"""Samples that a thread reads before it decodes them."""

MIN_DECODERS = 2
"""Of a worker: one reads while the other decodes."""

LOOK_EVERY_S = 1.0
"""How often a stream looks whether something was taken down."""


class SampleStream:
    """`batch(step, positions)`: the samples at these positions of the step's global batch."""

    def __init__(self, settings: StreamSettings) -> None:
        set_up_decoding()
        self.settings = settings
        cache_bytes = settings.cache_size_mb * 1_000_000
        self.catalogues = _catalogues(settings, cache_bytes // 4)
        if settings.needs_captions:
            _check_captions(self.catalogues)
        self.plan = SamplePlan(
            self.catalogues,
            settings.mix_shares,
            batch_size=settings.batch_size,
            seed=settings.seed,
            shapes=shapes_for(
                settings.image_size, settings.max_aspect_ratio, settings.side_multiple
            ),
            shuffle_shards=settings.shuffle_shards,
            shuffle_samples=settings.shuffle_samples,
        )
        if settings.on_device:
            check_squares_alone(self.plan.shapes, settings.crop)
        self.num_samples = self.plan.num_samples
        self.reader = BlockReader(
            self.catalogues, self.plan, cache_bytes * 3 // 8, settings.num_readers
        )
        self._kept = KeptSamples(cache_bytes * 3 // 8, whole=settings.crop == "random")
        self._decoders = ThreadPoolExecutor(settings.num_decoders, thread_name_prefix="decode")
        self._lock = threading.RLock()
        self._looked = time.monotonic()
        self._followed = self.digests
        self._memory = PixelMemory()
        self._pins = settings.device.startswith("cuda")

    @property
    def manifest(self) -> Manifest:
        return self.catalogues[0].manifest

    @property
    def digests(self) -> list[str]:
        """Of the corpora as they are now."""
        return [catalogue.manifest.digest for catalogue in self.catalogues]

    @property
    def gone(self) -> frozenset[str]:
        """uids of what was taken down since the run began."""
        return frozenset().union(*(catalogue.gone for catalogue in self.catalogues))

    def batch(self, step: int, positions: range) -> Batch:
        while True:
            try:
                return self.begin(step, positions).result()
            except TakenDownError:
                self.follow()

    def begin(self, step: int, positions: range) -> Pending:
        """Have a batch read and decoded by the stream's threads."""
        if self.settings.on_device:
            return Made(self._pick(step, positions))
        with self._lock:
            tasks = self._tasks(step, positions)
        height, width = self.plan.shape_of(step)
        pixels = self.new_pixels((len(positions), height, width, 3))
        num_parts = min(2 * self.settings.num_decoders, len(tasks))
        cuts = [len(tasks) * part // num_parts for part in range(num_parts + 1)]
        parts = [
            self._decoders.submit(self._decode, tasks[start:stop], pixels.numpy()[start:stop])
            for start, stop in pairwise(cuts)
        ]
        return DecodingBatch(self, pixels, parts)

    def new_pixels(self, shape: tuple[int, ...]) -> Tensor:
        if self._pins:  # torch uses such memory again by itself
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return self._memory.take(shape)

    def as_batch(self, uids: list[str], captions: list[str], pixels: Tensor) -> Batch:
        """`pixels` [b, H, W, 3]."""
        return Batch(uids, captions, pixels.permute(0, 3, 1, 2))

    def captions(self) -> list[str]:
        """Every caption of the stream once, in the corpora's order."""
        captions = (caption for catalogue in self.catalogues for caption in catalogue.captions())
        return list(dict.fromkeys(captions))

    def follow(self) -> bool:
        """Leave out from now on what was taken down; says whether there was anything new."""
        with self._lock:
            self._looked = time.monotonic()
            for catalogue in self.catalogues:
                catalogue.refresh()
            # A reader may have found it first.
            is_new = self.digests != self._followed
            if is_new:
                self._followed = self.digests
                self.plan.forget()
                self.reader.forget()
            return is_new

    def follow_now_and_then(self) -> None:
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self.follow()

    def close(self) -> None:
        self.reader.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _resident(self) -> ResidentSamples:
        settings = self.settings
        return ResidentSamples(
            self.catalogues, self.reader, self.plan.shapes, settings.device, settings.num_decoders
        )

    def _pick(self, step: int, positions: range) -> Batch:
        with self._lock:
            numbers = self._resident.numbers_of(
                [drawn.place for drawn in self.plan.draws(step, positions)]
            )
        flips = self._flips(step)[positions.start : positions.stop].tolist()
        uids, captions = self._resident.uids, self._resident.captions
        return self.as_batch(
            [uids[number] for number in numbers],
            [captions[number] for number in numbers],
            self._resident.pixels(numbers, flips),
        )

    def _tasks(self, step: int, positions: range) -> list["_Task"]:
        flips, crops = self._flips(step), self._crops(step)
        tasks: list[_Task] = []
        reached: dict[Rows, int] = {}
        for position, drawn in zip(positions, self.plan.draws(step, positions), strict=True):
            rows, number = drawn
            place = rows.places[number]
            held = None if place in self._kept else self.reader.hold(rows, self._kept)
            tasks.append(_Task(place, held, number, bool(flips[position]), crops[position]))
            reached[rows] = number
        for rows, number in reached.items():
            self.reader.look_ahead(rows, (number + 1) / len(rows.places), self._kept)
        return tasks

    def _flips(self, step: int) -> NDArray[np.bool_]:
        size, seed = self.settings.batch_size, self.settings.seed
        if not self.settings.horizontal_flip:
            return np.zeros(size, np.bool_)
        return random(seed, Purpose.FLIPS, step).random(size) < 0.5

    def _crops(self, step: int) -> list[tuple[float, float]]:
        size, seed = self.settings.batch_size, self.settings.seed
        if self.settings.crop == "centre":
            return [CENTRE] * size
        draws = random(seed, Purpose.CROPS, step).random((size, 2))
        return [(float(x), float(y)) for x, y in draws]

    def _decode(self, tasks: "list[_Task]", pixels: Pixels) -> list[tuple[str, str]]:
        """uids and captions; `pixels` [b, H, W, 3] are filled."""
        pairs: list[tuple[str, str]] = []
        for first in range(0, len(tasks), READ_AT_ONCE):
            some = tasks[first : first + READ_AT_ONCE]
            samples = [self._sample(task) for task in some]
            pairs += [(sample.uid, sample.caption) for sample in samples]
            for task, sample, out in zip(some, samples, pixels[first:], strict=False):
                self._fill(out, task, sample)
        return pairs

    def _sample(self, task: "_Task") -> KeptSample:
        kept = self._kept.get(task.place)
        if kept is not None:
            return kept
        held = task.held
        stored = held.take(task.number) if held else self.reader.read(*task.place)
        return KeptSample(stored.uid, stored.caption, stored.image)

    def _fill(self, out: Pixels, task: "_Task", sample: KeptSample) -> None:
        if isinstance(sample.picture, bytes):
            decode_sample(out, sample.uid, sample.picture, task.crop)
            self._kept.offer(task.place, sample, out)
        else:
            out[:] = sample.picture
        if task.flip:
            out[:] = out[:, ::-1].copy()


class _Task(NamedTuple):
    place: Place
    held: HeldBlock | None
    number: int
    """In the block."""
    flip: bool
    crop: tuple[float, float]


@dataclass(frozen=True)
class Made:
    """A batch that is there."""

    batch: Batch

    def result(self) -> Batch:
        return self.batch


class DecodingBatch:
    """A batch on its way."""

    def __init__(
        self, stream: SampleStream, pixels: Tensor, parts: list[Future[list[tuple[str, str]]]]
    ) -> None:
        self._stream, self._pixels, self._parts = stream, pixels, parts

    def result(self) -> Batch:
        pairs = [pair for part in self._parts for pair in part.result()]
        uids, captions = [uid for uid, _ in pairs], [caption for _, caption in pairs]
        return self._stream.as_batch(uids, captions, self._pixels)


def make_stream(config: Config, born: tuple[str, ...] = (), device: str = "cpu") -> SampleStream:
    """`born`: the digests that the corpora had when the run began; none: it begins now."""
    data, loading = config.data, config.loading
    return SampleStream(
        StreamSettings(
            root=config.root,
            selection=config.selection,
            mix=config.mix,
            mix_shares=config.mix_shares,
            mix_selections=config.mix_selections,
            born=born,
            run=config.run,
            held_out=config.held_out,
            needs_captions=config.caption_dropout < 1,
            image_size=config.image_size,
            max_aspect_ratio=data.max_aspect_ratio,
            side_multiple=data.side_multiple,
            horizontal_flip=config.horizontal_flip,
            crop=data.crop,
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle_shards=config.shuffle_shards,
            shuffle_samples=data.shuffle_samples,
            cache_size_mb=config.cache_size_mb,
            decode_in=loading.decode_in,
            num_decoders=loading.num_decoders or max(MIN_DECODERS, _num_cpus(config)),
            num_readers=loading.num_readers,
            device=device,
            on_device=loading.on_device,
        )
    )


def _num_cpus(config: Config) -> int:
    """Of a worker: what it asked Ray for, or in this process all that it may use."""
    if not config.workers.local:
        return int(config.workers.cpus_per_worker)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode(data: bytes, image_size: int) -> Pixels:
    """A picture's file -> uint8 `[S, S, 3]`: its largest centred square, resized. Raises ValueError
    for what is no whole picture."""
    pixels = np.empty((image_size, image_size, 3), np.uint8)
    try:
        decode_into(pixels, data)
    except UnusableError as error:
        raise ValueError(error.reason) from error
    return pixels


def _catalogues(settings: StreamSettings, cache_bytes: int) -> list[Catalogue]:
    roots = (settings.root, *settings.mix)
    selections: Sequence[str | None] = (settings.selection, *settings.mix_selections)
    shapes = shapes_for(settings.image_size, settings.max_aspect_ratio, settings.side_multiple)
    return [
        Catalogue(
            root,
            selection=(selections[number] or None) if number < len(selections) else None,
            held_out=settings.held_out,
            shapes=shapes,
            born=settings.born[number] if settings.born else None,
            cache_bytes=cache_bytes // len(roots),
        )
        for number, root in enumerate(roots)
    ]


def _check_captions(catalogues: Sequence[Catalogue]) -> None:
    for catalogue in catalogues:
        if not catalogue.has_captions():
            raise InputError(
                f"{catalogue.root}: none of its {catalogue.manifest.num_samples} samples has a "
                "caption; expected captions to learn from: download with --caption-column, or "
                "train without any by --caption-dropout 1"
            )
