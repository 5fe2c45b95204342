"""Which kept sample goes where: its split, its shard there and its place in that.

The order within a split is a seeded permutation of the kept uids, cut into even shards: it follows
from the uids and the seed, not from how the corpus was sharded. 40 bytes a kept sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from pipeline.selecting.kept import Kept
from pipeline.selecting.splits import Split, Uids

MIN_KEY_DIGITS = 4
"""Of a sample's number within its shard, as in img2dataset's keys."""


@dataclass(frozen=True)
class Target:
    """A shard to be written."""

    split: str
    name: str
    num_samples: int
    key_digits: int

    def key(self, place: int) -> str:
        return f"{self.name}{place:0{self.key_digits}d}"


class Plan:
    """`targets` are numbered; each kept sample has the number of one and a place in it."""

    def __init__(
        self, kept: Kept, splits: Sequence[Split], samples_per_shard: int, seed: int
    ) -> None:
        self.uids, self.weights = kept.uids, kept.weights
        self.targets: list[Target] = []
        self._numbers = np.empty(len(self.uids), np.int32)
        self._places = np.empty(len(self.uids), np.int64)
        # A stream of raw bits stays the same over NumPy's versions; its permutations may not.
        ranks = np.random.PCG64(seed).random_raw(len(self.uids))
        for number, split in enumerate(splits):
            members = np.flatnonzero(kept.split_numbers == number)
            if not members.size:
                raise InputError(
                    f"splits: {split.name} gets none of {len(self.uids)} kept samples; give it a "
                    "larger share, or leave it out"
                )
            ordered = members[np.argsort(ranks[members], kind="stable")]
            self._cut(split, ordered, samples_per_shard)

    def _cut(self, split: Split, ordered: NDArray[np.int64], samples_per_shard: int) -> None:
        num_shards = -(-len(ordered) // samples_per_shard)
        starts = np.arange(num_shards + 1) * len(ordered) // num_shards
        sizes = np.diff(starts)
        digits = max(MIN_KEY_DIGITS, len(str(int(sizes.max()) - 1)))
        first = len(self.targets)
        self._numbers[ordered] = np.repeat(np.arange(first, first + num_shards), sizes)
        self._places[ordered] = np.arange(len(ordered)) - np.repeat(starts[:-1], sizes)
        self.targets += [
            Target(split.name, f"{i:05d}", int(size), digits) for i, size in enumerate(sizes)
        ]

    def numbers_of(self, split: str) -> list[int]:
        """The split's targets."""
        return [i for i, target in enumerate(self.targets) if target.split == split]

    def find(self, uids: Uids) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of `uids` are kept, and for each its rank among the kept ones."""
        ranks = np.minimum(np.searchsorted(self.uids, uids), len(self.uids) - 1)
        return self.uids[ranks] == uids, ranks

    def place(
        self, ranks: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
        """Of kept samples by rank: number of the target, place in it, weight."""
        return self._numbers[ranks], self._places[ranks], self.weights[ranks]
