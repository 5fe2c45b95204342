"""The order in which a run meets its samples: a pure function of their weights and a seed.

Imports no torch, so that `carrara why` can tell at once how often a run has met a sample.

    epoch    every sample once, or as often as its weight says
    group    `shuffle_shards` shards, in a random order of all shards
    slab     up to 64 neighbours of a shard, whose bytes lie together; shuffled within the group
    lane     an equal part of the epoch. The samples of a batch come from all lanes alike, and a
             lane's always at the same positions of the batch: workers, who have positions of their
             own, thereby read shards of their own
    block    part of a lane, within which samples are shuffled: what a reader holds of it at a time

How many workers there are is no part of it. A small corpus has slabs of one sample and a single
group, and so is shuffled as a whole.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ONE = 1 << 16
"""Weights are counted in parts of this, so that their sums are exact."""

MIN_MAX_LANES = 64
"""The most workers that are sure to read shards of their own, where batches are small."""

SLAB = 64
"""Samples: a few megabytes, for which an object store's first byte is not waited long."""

MIN_SLABS = 1024
"""Of a corpus, and 16 for every lane; smaller corpora get smaller slabs."""

PLASTIC = 1.324717957244746
"""The root of x^3 = x + 1. Steps of 1/x and 1/x^2 spread evenly in the plane, however many they
are, as those of the golden ratio do on a line (Roberts 2018, the sequence R2)."""


class Purpose(IntEnum):
    """What a random draw is for, so that no two kinds of draw share their numbers."""

    SHARDS = 0
    SAMPLES = 1
    FLIPS = 2
    NOISE = 3
    DROPOUT = 4
    SLABS = 5
    PHASE = 6
    CROPS = 7
    SAMPLING = 10
    CONDITION = 11
    HELD_OUT = 12


def random(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments."""
    sequence = np.random.SeedSequence([seed, int(purpose), *counters])
    return np.random.Generator(np.random.Philox(sequence))


def num_lanes_for(batch_size: int) -> int:
    """As many as divide the batch, up to 64, or one for every 16 samples of it."""
    most = max(MIN_MAX_LANES, batch_size // 16)
    return max(n for n in range(1, min(most, batch_size) + 1) if batch_size % n == 0)


@dataclass(frozen=True, order=True)
class Block:
    """Samples of one lane that are shuffled among each other; those of a lane are in order."""

    epoch: int
    number: int
    lane: int


@dataclass(frozen=True)
class Draws:
    """Samples as an epoch draws them: the `ordinals`-th draw of each shard. Where all weights are
    one, that is its row."""

    shards: Ints
    ordinals: Ints


class SampleOrder:
    """The endless stream of one corpus's samples, epoch after epoch, on every lane."""

    def __init__(
        self,
        weights: Ints,
        seed: int,
        *,
        num_lanes: int,
        shuffle_shards: int,
        shuffle_samples: int,
        stream: tuple[int, ...] = (),
    ) -> None:
        """`weights` [num_shards]: of the samples of each shard together, in parts of ONE.
        `stream` tells apart orders of the same seed."""
        self._ends = weights.cumsum()
        total = int(self._ends[-1]) if len(weights) else 0
        self.num_samples = max(1, total // ONE) if total else 0
        """Draws an epoch."""
        self._starts = self._ends - weights
        self._total = total
        self._seed, self._stream = seed, stream
        self.num_lanes = num_lanes
        self._shuffle_shards = shuffle_shards
        self._block_size = max(1, shuffle_samples // num_lanes)
        self._slab = min(SLAB, max(1, self.num_samples // max(MIN_SLABS, 16 * num_lanes)))
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._blocks: OrderedDict[Block, Draws] = OrderedDict()

    # From the stream to the samples

    def block_of(self, lane: int, item: int) -> tuple[Block, int]:
        """The block of a lane's `item`-th sample, and its place in it."""
        epoch = ((item + 1) * self.num_lanes - lane - 1) // self.num_samples
        number, place = divmod(item - self.lane_start(lane, epoch), self._block_size)
        return Block(epoch, number, lane), place

    def items_of(self, block: Block) -> range:
        """Of the lane, what the block holds."""
        start = self.lane_start(block.lane, block.epoch) + block.number * self._block_size
        end = self.lane_start(block.lane, block.epoch + 1)
        return range(start, min(start + self._block_size, end))

    def next_block(self, block: Block) -> Block:
        start, end = self._segment(block.lane, block.epoch)
        if (block.number + 1) * self._block_size < end - start:
            return Block(block.epoch, block.number + 1, block.lane)
        return Block(block.epoch + 1, 0, block.lane)

    def draws(self, block: Block) -> Draws:
        """What the block holds, in the order in which it is met."""
        if block not in self._blocks:
            first, shuffled = self._shuffled(block)
            self._blocks[block] = self._at(block.epoch, first, shuffled)
            _forget_oldest(self._blocks, 4 * self.num_lanes + 4)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def lane_start(self, lane: int, epoch: int) -> int:
        """Samples that a lane has had before an epoch. Over all lanes they sum to whole epochs
        (Hermite's identity), and no lane is ever ahead of another by more than one."""
        return (epoch * self.num_samples + lane) // self.num_lanes

    # From a sample to the stream

    def draws_between(self, epoch: int, start: int, end: int) -> range:
        """Draws of an epoch that fall to what lies between these sums of weights."""
        points = self._points(epoch)
        return range(*(int(points.num_below(np.array(x))) for x in (start, end)))

    def first_draw(self, epoch: int, shard: int) -> int:
        """Of an epoch's draws, in the order of shards and rows, the first one of a shard."""
        return int(self._points(epoch).num_below(self._starts[shard]))

    def positions(self, epoch: int, draws: Draws) -> Ints:
        """The sums of weights, each within its shard, at which an epoch's draws lie."""
        table = self._epoch(epoch)
        numbers = table.firsts[draws.shards] + draws.ordinals
        return table.points.positions(numbers) - self._starts[draws.shards]

    def shard_start(self, shard: int) -> int:
        return int(self._starts[shard])

    def find(self, epoch: int, shard: int, ordinal: int) -> tuple[int, int]:
        """The lane and the item of it that an epoch's draw of a shard is."""
        table = self._epoch(epoch)
        place = int(table.places[shard])
        group = place // self._shuffle_shards
        index = table.group_start(group, self._shuffle_shards) + self._group(epoch, group).index(
            shard, ordinal
        )
        lanes = [self._segment(lane, epoch) for lane in range(self.num_lanes)]
        lane = next(n for n, (start, end) in enumerate(lanes) if start <= index < end)
        number, offset = divmod(index - lanes[lane][0], self._block_size)
        _, shuffled = self._shuffled(Block(epoch, number, lane))
        (rank,) = np.flatnonzero(shuffled == offset)
        return lane, self.lane_start(lane, epoch) + number * self._block_size + int(rank)

    # The levels

    def _points(self, epoch: int) -> "_Points":
        first = random(self._seed, Purpose.PHASE, *self._stream).integers(ONE, size=2)
        phase, turn = (
            (int(x) + epoch * int(ONE / PLASTIC**power)) % ONE
            for power, x in enumerate(first, start=1)
        )
        start = turn * self._total // ONE // ONE * ONE + phase
        return _Points.of(start % self._total, self._total, self.num_samples)

    def _segment(self, lane: int, epoch: int) -> tuple[int, int]:
        """Which part of the epoch a lane has."""
        before, after = epoch * self.num_samples, (epoch + 1) * self.num_samples

        def start(lane: int) -> int:
            return self._sum_of_lanes(after, lane) - self._sum_of_lanes(before, lane)

        return start(lane), start(lane + 1)

    def _sum_of_lanes(self, num: int, lane: int) -> int:
        """The sum of (num + l) // num_lanes over the lanes l before this one."""
        whole, rest = divmod(num, self.num_lanes)
        return lane * whole + max(0, lane - self.num_lanes + rest)

    def _shuffled(self, block: Block) -> tuple[int, Ints]:
        """Where in the epoch a block begins, and its order from there."""
        start, end = self._segment(block.lane, block.epoch)
        first = start + block.number * self._block_size
        size = min(self._block_size, end - first)
        counters = (*self._stream, block.epoch, block.lane, block.number)
        return first, random(self._seed, Purpose.SAMPLES, *counters).permutation(size)

    def _at(self, epoch: int, first: int, offsets: Ints) -> Draws:
        """The draws at `first + offsets` of an epoch."""
        table = self._epoch(epoch)
        indices = first + offsets
        groups = np.searchsorted(table.ends, indices, side="right") // self._shuffle_shards
        shards, ordinals = np.empty_like(indices), np.empty_like(indices)
        for group in np.unique(groups):
            mine = groups == group
            inside = indices[mine] - table.group_start(int(group), self._shuffle_shards)
            shards[mine], ordinals[mine] = self._group(epoch, int(group)).at(inside)
        return Draws(shards, ordinals)

    def _epoch(self, epoch: int) -> "_Epoch":
        if epoch not in self._epochs:
            points = self._points(epoch)
            first, stop = points.num_below(self._starts), points.num_below(self._ends)
            generator = random(self._seed, Purpose.SHARDS, *self._stream, epoch)
            shards = generator.permutation(len(self._ends))
            self._epochs[epoch] = _Epoch.of(points, first, shards, (stop - first)[shards])
            _forget_oldest(self._epochs, 2)
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int) -> "_Group":
        key = (epoch, group)
        if key not in self._groups:
            table = self._epoch(epoch)
            inside = slice(group * self._shuffle_shards, (group + 1) * self._shuffle_shards)
            generator = random(self._seed, Purpose.SLABS, *self._stream, epoch, group)
            self._groups[key] = _Group.of(
                table.shards[inside], table.counts[inside], self._slab, generator
            )
            _forget_oldest(self._groups, 2 * self.num_lanes + 2)
        self._groups.move_to_end(key)
        return self._groups[key]


@dataclass(frozen=True)
class _Points:
    """Where on the line of the summed weights an epoch draws: at `start`, `start` + ONE, ..., going
    on at the line's beginning once it has come to its end. A sample of weight w, an interval of
    that length, is drawn w times or the whole number next to it, on the mean over epochs w times
    (systematic sampling; Madow 1949)."""

    start: int
    wrapped: int
    """The first one after the line's end, on its beginning."""
    num_wrapped: int
    num: int

    @classmethod
    def of(cls, start: int, total: int, num: int) -> "_Points":
        num_before = min(num, -(-(total - start) // ONE))
        return cls(start, start + num_before * ONE - total, num - num_before, num)

    def num_below(self, positions: Ints) -> Ints:
        first = np.clip(-(-(positions - self.wrapped) // ONE), 0, self.num_wrapped)
        then = np.clip(-(-(positions - self.start) // ONE), 0, self.num - self.num_wrapped)
        return first + then

    def positions(self, draws: Ints) -> Ints:
        """Of the draws in their order along the line."""
        then = self.start + (draws - self.num_wrapped) * ONE
        return np.where(draws < self.num_wrapped, self.wrapped + draws * ONE, then)


@dataclass(frozen=True)
class _Epoch:
    """The shards in the order of an epoch."""

    points: _Points
    firsts: Ints
    """Of each shard, the first of the epoch's draws that falls to it or after it."""
    shards: Ints
    counts: Ints
    ends: Ints
    places: Ints
    """Of each shard, where in `shards` it is."""

    @classmethod
    def of(cls, points: _Points, firsts: Ints, shards: Ints, counts: Ints) -> "_Epoch":
        return cls(points, firsts, shards, counts, counts.cumsum(), np.argsort(shards))

    def group_start(self, group: int, shuffle_shards: int) -> int:
        first = group * shuffle_shards
        return int(self.ends[first - 1]) if first else 0


@dataclass(frozen=True)
class _Group:
    """The slabs of some shards, shuffled."""

    shards: Ints
    firsts: Ints
    sizes: Ints
    ends: Ints

    @classmethod
    def of(cls, shards: Ints, counts: Ints, slab: int, generator: np.random.Generator) -> "_Group":
        numbers = -(-counts // slab)
        of_shard = np.repeat(np.arange(len(shards)), numbers)
        firsts = (np.arange(len(of_shard)) - np.repeat(numbers.cumsum() - numbers, numbers)) * slab
        sizes = np.minimum(slab, counts[of_shard] - firsts)
        order = generator.permutation(len(of_shard))
        return cls(shards[of_shard][order], firsts[order], sizes[order], sizes[order].cumsum())

    def at(self, indices: Ints) -> tuple[Ints, Ints]:
        slabs = np.searchsorted(self.ends, indices, side="right")
        offsets = indices - (self.ends[slabs] - self.sizes[slabs])
        return self.shards[slabs], self.firsts[slabs] + offsets

    def index(self, shard: int, ordinal: int) -> int:
        inside = (self.firsts <= ordinal) & (ordinal < self.firsts + self.sizes)
        (slab,) = np.flatnonzero((self.shards == shard) & inside)
        return int(self.ends[slab] - self.sizes[slab] + ordinal - self.firsts[slab])


def _forget_oldest(table: OrderedDict[Any, Any], most: int) -> None:
    while len(table) > most:
        table.popitem(last=False)


# Streams side by side


@dataclass(frozen=True)
class Shares:
    """An endless sequence dealt out to streams by fixed shares, each as evenly as whole numbers
    allow: of any first n, a stream has its share to within one for every stream before it."""

    rates: tuple[int, ...]

    def stream_of(self, n: int, phase: float = 0.0) -> tuple[int, int]:
        """Whose the n-th is, and the how manieth of its own. `phase` from 0 to 1 shifts it."""
        rest = sum(self.rates)
        for stream, rate in enumerate(self.rates[:-1]):
            shift = int(phase * rest)
            before = (n * rate + shift) // rest
            if ((n + 1) * rate + shift) // rest > before:
                return stream, before
            n -= before
            rest -= rate
        return len(self.rates) - 1, n

    def place_of(self, stream: int, index: int, phase: float = 0.0) -> int:
        """What `stream_of` undoes."""
        rests = [sum(self.rates[number:]) for number in range(len(self.rates))]
        n = index
        if stream < len(self.rates) - 1:
            shift = int(phase * rests[stream])
            n = -(-((index + 1) * rests[stream] - shift) // self.rates[stream]) - 1
        for number in reversed(range(stream)):
            rest, rate = rests[number], self.rates[number]
            n = (n * rest + int(phase * rest)) // (rest - rate)
        return n

    def num_of(self, stream: int, n: int, phase: float = 0.0) -> int:
        """How many of the first n are a stream's."""
        for number, rate in enumerate(self.rates[:-1]):
            rest = sum(self.rates[number:])
            if rest == 0:
                return 0
            before = (n * rate + int(phase * rest)) // rest
            if number == stream:
                return before
            n -= before
        return n
