"""The order in which a run meets its samples: a pure function of their counts and a seed.

Imports no torch, so that `carrara why` can tell at once how often a run has met a sample.

Each epoch visits every sample once: shards in a random order, samples shuffled among
`shuffle_shards` of them at a time (a window), so that a reader holds one window and not the corpus.
A sample is named by the place of its shard in the manifest and its row among the shard's kept ones.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a random draw is for, so that no two kinds of draw share their numbers."""

    SHARDS = 0
    SAMPLES = 1
    FLIPS = 2
    NOISE = 3
    DROPOUT = 4
    SAMPLING = 10
    CONDITION = 11
    HELD_OUT = 12


def random(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments."""
    sequence = np.random.SeedSequence([seed, int(purpose), *counters])
    return np.random.Generator(np.random.Philox(sequence))


class SampleOrder:
    """The endless stream of samples, epoch after epoch."""

    def __init__(self, counts: np.ndarray, seed: int, shuffle_shards: int) -> None:
        """`counts` [num_shards]: how many samples of each shard are kept."""
        self._counts, self._seed, self._shuffle_shards = counts, seed, shuffle_shards
        self.num_samples = int(counts.sum())
        self._latest_epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    @property
    def shards_at_hand(self) -> set[int]:
        """Those of the windows that were looked at last."""
        return {int(shard) for order in self._windows.values() for shard in np.unique(order[:, 0])}

    def place(self, index: int) -> tuple[int, int]:
        """Where the `index`-th sample of the stream is: (shard, row among the kept)."""
        epoch, index = divmod(index, self.num_samples)
        shards, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends, index, side="right")) // self._shuffle_shards
        order, start = self._window(epoch, window, shards, ends)
        shard, row = order[index - start]
        return int(shard), int(row)

    def index_in(self, epoch: int, shard: int, row: int) -> int:
        """Where an epoch meets a sample, from 0 to num_samples - 1: what `place` undoes."""
        shards, ends = self._epoch(epoch)
        window = int(np.flatnonzero(shards == shard)[0]) // self._shuffle_shards
        order, start = self._window(epoch, window, shards, ends)
        (place,) = np.flatnonzero((order[:, 0] == shard) & (order[:, 1] == row))
        return start + int(place)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards in an epoch, and where in the epoch each one's samples end."""
        if self._latest_epoch is None or self._latest_epoch[0] != epoch:
            shards = random(self._seed, Purpose.SHARDS, epoch).permutation(len(self._counts))
            self._latest_epoch = (epoch, shards, self._counts[shards].cumsum())
        return self._latest_epoch[1:]

    def _window(
        self, epoch: int, window: int, shards: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """The shuffled (shard, row) pairs of a window, `[n, 2]`, and where in the epoch it begins;
        the last two are remembered."""
        first = window * self._shuffle_shards
        key = (epoch, window)
        if key not in self._windows:
            inside = shards[first : first + self._shuffle_shards]
            pairs = [
                np.stack([np.full(n, shard), np.arange(n)], 1)
                for shard, n in zip(inside, self._counts[inside], strict=True)
            ]
            order = np.concatenate(pairs)
            random(self._seed, Purpose.SAMPLES, epoch, window).shuffle(order)
            self._windows[key] = order
            while len(self._windows) > 2:
                del self._windows[next(iter(self._windows))]
        return self._windows[key], int(ends[first - 1]) if first else 0
