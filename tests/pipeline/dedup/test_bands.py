import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dedup.bands import Bands, distances, near_pairs
from pipeline.dedup.grouping import Groups
from pipeline.picture_hash import MATCH

Hashes = NDArray[np.uint8]


def flipped(hashes: Hashes, num_bits: NDArray[np.int64], seed: int = 1) -> Hashes:
    """Copies that differ from their originals in so many bits."""
    order = np.argsort(np.random.default_rng(seed).random((len(hashes), 256)), axis=1)
    return hashes ^ np.packbits(order < num_bits[:, None], axis=1)


def planted(num: int, num_bits: NDArray[np.int64]) -> Hashes:
    hashes = np.random.default_rng(0).integers(0, 256, (num, 32), np.uint8)
    return np.unique(np.concatenate([hashes, flipped(hashes[: len(num_bits)], num_bits)]), axis=0)


def found(hashes: Hashes, bands: Bands) -> set[tuple[int, int]]:
    return {
        (min(pair), max(pair))
        for i, j in near_pairs(hashes, bands)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
    }


def by_brute_force(hashes: Hashes, max_distance: int) -> set[tuple[int, int]]:
    return {
        (i, i + 1 + int(j))
        for i in range(len(hashes))
        for j in np.flatnonzero(distances(hashes[i + 1 :], hashes[i]) <= max_distance)
    }


@pytest.mark.parametrize("max_distance", [0, 5, MATCH])
def test_every_pair_up_to_the_certain_distance_is_found(max_distance: int) -> None:
    hashes = planted(600, np.arange(300) % 40)
    bands = Bands.of(len(hashes), max_distance)
    assert bands.certain_distance >= max_distance
    pairs = found(hashes, bands)
    assert pairs == by_brute_force(hashes, max_distance)
    assert pairs or max_distance == 0


def test_wide_bands_find_what_they_promise() -> None:
    num_bits = np.full(3000, MATCH)
    hashes = planted(3000, num_bits)
    bands = Bands.of(1 << 21, MATCH)
    assert bands.width > 20
    share = len(found(hashes, bands)) / len(num_bits)
    assert bands.certain_distance < MATCH
    assert share >= bands.expected_recall - 0.005
    assert bands.expected_recall >= 0.99


def test_a_hash_meets_as_many_strangers_in_a_large_corpus_as_in_a_small_one() -> None:
    sizes = [10**power for power in (5, 6, 7, 8)]
    plans = [Bands.of(num, 10) for num in sizes]
    met = [
        num * bands.num * (1 + bands.width) / 2**bands.width
        for num, bands in zip(sizes, plans, strict=True)
    ]
    assert max(met) < 2.5 * min(met)


def test_thousands_that_look_alike_are_joined_without_comparing_all_with_all() -> None:
    one = np.random.default_rng(0).integers(0, 256, (1, 32), np.uint8)
    family = np.unique(flipped(np.repeat(one, 4000, axis=0), np.full(4000, 3)), axis=0)
    bands = Bands.of(len(family), MATCH)
    groups, num_pairs = Groups(len(family)), 0
    for i, j in near_pairs(family, bands):
        groups.link(i, j)
        num_pairs += len(i)
    assert not groups.roots().any()
    # Nearly all share nearly every band.
    num_if_all = bands.num * len(family) * (len(family) - 1) // 2
    assert num_pairs < num_if_all / 4


@pytest.mark.parametrize("num", [0, 1, 2])
def test_there_may_be_next_to_nothing(num: int) -> None:
    hashes = np.zeros((num, 32), np.uint8)
    hashes[1:] = 255
    assert not found(hashes, Bands.of(num, MATCH))
