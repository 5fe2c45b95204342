"""Pairs of hashes that differ in few bits, without comparing all with all.

Multi-index hashing (Norouzi, Punjani & Fleet 2014, "Fast Exact Search in Hamming Space with
Multi-Index Hashing"): bits are dealt out into bands, and two hashes are compared only where a band
of theirs differs in one bit at most. With 16 bands of 16 bits that finds every pair up to distance
31, for of 31 differing bits some band has no more than one.

The width of a band grows with the logarithm of the number of hashes, so a band brings a hash
together with as many strangers in a large corpus as in a small one, and time grows as the number
does. Wider bands are fewer; they are dealt out anew until the expected recall at the largest
distance is RECALL. `Bands` tells both what is certain and what is expected.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from infra.progress import track
from pipeline.dedup.pictures import Hashes
from pipeline.picture_hash import NUM_BITS

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows i and j of each pair."""

MIN_WIDTH, MAX_WIDTH = 16, 32
RECALL = 0.99
"""Of pairs at the largest distance whose differing bits lie anywhere; nearer pairs fare better."""
MAX_NEIGHBOURS = 64
"""Of one hash in one bucket. More share a bucket where thousands of pictures look alike: each is
then compared with the next in order, and what they have in common brings the group together."""
PAIRS_AT_ONCE = 1 << 20
"""Compared together: 64 MB of hashes."""
SEED = 0


@dataclass(frozen=True)
class Bands:
    """How bits are dealt out for so many hashes and so large a distance."""

    width: int
    """Bits a band."""
    num: int
    max_distance: int

    @classmethod
    def of(cls, num_hashes: int, max_distance: int) -> "Bands":
        width = min(max(MIN_WIDTH, num_hashes.bit_length() - 1), MAX_WIDTH)
        one_deal = cls(width, NUM_BITS // width, max_distance)
        if one_deal.certain_distance >= max_distance:
            return one_deal
        num = math.log(1 - RECALL) / math.log(1 - one_deal._recall_of_a_band)
        return cls(width, max(one_deal.num, math.ceil(num)), max_distance)

    @property
    def certain_distance(self) -> int:
        """Pairs up to here are all found: two bits a band of a deal, less one, can't hide them."""
        return 2 * (NUM_BITS // self.width) - 1

    @property
    def expected_recall(self) -> float:
        """At the largest distance, for differing bits that lie anywhere."""
        if self.certain_distance >= self.max_distance:
            return 1.0
        return 1 - (1 - self._recall_of_a_band) ** self.num

    @property
    def _recall_of_a_band(self) -> float:
        """The chance that at most one of the differing bits falls into a band."""
        ways = sum(
            math.comb(self.width, inside)
            * math.comb(NUM_BITS - self.width, self.max_distance - inside)
            for inside in range(min(1, self.max_distance) + 1)
        )
        return ways / math.comb(NUM_BITS, self.max_distance)

    @cached_property
    def places(self) -> list[NDArray[np.int64]]:
        """The bits of each band."""
        bands_a_deal = NUM_BITS // self.width
        num_deals = -(-self.num // bands_a_deal)
        ranks = np.random.PCG64(SEED).random_raw(num_deals * NUM_BITS)
        deals = np.argsort(ranks.reshape(num_deals, NUM_BITS), axis=1, kind="stable")
        cut = deals[:, : bands_a_deal * self.width].reshape(-1, self.width)
        return list(cut[: self.num])


def near_pairs(hashes: Hashes, bands: Bands) -> Iterator[Pairs]:
    """Pairs i, j of rows within the bands' largest distance, in chunks; a pair may come again.

    The rows are distinct and in order (`np.unique`). Memory beside them: 24 bytes a row and what
    PAIRS_AT_ONCE asks for.
    """
    with track("dedup: look-alikes", bands.num, "bands") as bar:
        for places in bands.places:
            keys = _keys(hashes, places)
            order = np.argsort(keys, kind="stable")
            # In the buckets' order what is compared lies together, as processors like it.
            halves = np.ascontiguousarray(hashes[order]).view(np.uint64).reshape(-1, 2, 2)
            first, second = (np.ascontiguousarray(halves[:, half]) for half in (0, 1))
            for left, right in _in_buckets(keys[order], len(places)):
                near = _differing(first, left, right) <= bands.max_distance
                left, right = left[near], right[near]
                differing = _differing(first, left, right) + _differing(second, left, right)
                near = differing <= bands.max_distance
                yield order[left[near]], order[right[near]]
            bar.advance(1)


def distances(a: Hashes, b: Hashes) -> NDArray[np.int64]:
    """Row by row."""
    counts: NDArray[np.int64] = np.bitwise_count(a ^ b).sum(axis=1, dtype=np.int64)
    return counts


def _differing(
    words: NDArray[np.uint64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.uint8]:
    counts = np.bitwise_count(words[left] ^ words[right])
    differing: NDArray[np.uint8] = counts[:, 0] + counts[:, 1]
    return differing


def _keys(hashes: Hashes, places: NDArray[np.int64]) -> NDArray[np.uint32]:
    """[n]: these bits of each hash as a number."""
    keys = np.zeros(len(hashes), np.uint32)
    for place in places.tolist():
        keys <<= np.uint32(1)
        keys |= (hashes[:, place // 8] >> np.uint8(place % 8)) & np.uint8(1)
    return keys


def _in_buckets(keys: NDArray[np.uint32], width: int) -> Iterator[Pairs]:
    """Pairs of places in the sorted keys whose keys are equal or differ in one bit."""
    distinct, starts = np.unique(keys, return_index=True)
    ends = np.append(starts[1:], len(keys))
    bucket = np.repeat(np.arange(len(distinct)), ends - starts)
    places = np.arange(len(keys))
    yield from _spread(places, places + 1, ends[bucket])
    for bit in range(width):
        flag = np.uint32(1 << bit)
        lower = np.flatnonzero(distinct & flag == 0)
        partners = np.searchsorted(distinct, distinct[lower] | flag)
        there = partners < len(distinct)
        lower, partners = lower[there], partners[there]
        there = distinct[partners] == distinct[lower] | flag
        lower, partners = lower[there], partners[there]
        left = _spread_all(starts[lower], ends[lower])
        sizes = ends[lower] - starts[lower]
        yield from _spread(
            left, np.repeat(starts[partners], sizes), np.repeat(ends[partners], sizes)
        )


def _spread(
    left: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[Pairs]:
    """Each of `left` with all from its start to its end, MAX_NEIGHBOURS at most."""
    ends = np.minimum(ends, starts + MAX_NEIGHBOURS)
    some = ends > starts
    left, starts, ends = left[some], starts[some], ends[some]
    if not len(left):
        return
    cuts = np.searchsorted(
        np.cumsum(ends - starts), np.arange(0, (ends - starts).sum(), PAIRS_AT_ONCE)
    )
    for begin, end in zip(cuts, [*cuts[1:], len(left)], strict=True):
        chunk = slice(begin, end)
        right = _spread_all(starts[chunk], ends[chunk])
        yield np.repeat(left[chunk], ends[chunk] - starts[chunk]), right


def _spread_all(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers from each start to its end, one range after the other."""
    sizes = ends - starts
    offsets = np.cumsum(sizes) - sizes
    numbers: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(offsets - starts, sizes)
    return numbers
