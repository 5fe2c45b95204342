from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.order import ONE, Draws, SampleOrder, Shares, num_lanes_for

weights_of_shards = st.lists(st.lists(st.integers(0, 3 * ONE), max_size=6), min_size=1, max_size=5)


def order_of(weights: list[list[int]], num_lanes: int = 4, **settings: int) -> SampleOrder:
    """`weights`: of every row of every shard, in parts of ONE."""
    sums = np.array([sum(rows) for rows in weights])
    shape = {"shuffle_shards": 2, "shuffle_samples": 16} | settings
    return SampleOrder(sums, 7, num_lanes=num_lanes, stream=(), **shape)


def epoch_of(order: SampleOrder, epoch: int) -> Iterator[tuple[int, int, int, int]]:
    """Lane, item, shard and ordinal of all its draws."""
    for lane in range(order.num_lanes):
        for item in range(order.lane_start(lane, epoch), order.lane_start(lane, epoch + 1)):
            block, place = order.block_of(lane, item)
            assert block.epoch == epoch
            assert order.items_of(block)[place] == item
            draws = order.draws(block)
            yield lane, item, int(draws.shards[place]), int(draws.ordinals[place])


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_sample_once_on_one_lane(
    counts: list[int], num_lanes: int, shuffle_shards: int, epoch: int
) -> None:
    order = order_of([[ONE] * n for n in counts], num_lanes, shuffle_shards=shuffle_shards)
    met = list(epoch_of(order, epoch))
    every = [(shard, row) for shard, n in enumerate(counts) for row in range(n)]
    assert sorted((shard, row) for _, _, shard, row in met) == every
    sizes = Counter(lane for lane, *_ in met)
    assert max(sizes.values()) - min(sizes[lane] for lane in range(num_lanes)) <= 1
    for lane, item, shard, row in met:  # and where it is, its place tells
        assert order.find(epoch, shard, row) == (lane, item)


@given(weights_of_shards.filter(lambda weights: sum(map(sum, weights)) >= 6 * ONE))
@settings(max_examples=25, deadline=None)
def test_a_sample_is_drawn_as_often_as_its_weight_says(weights: list[list[int]]) -> None:
    order = order_of(weights)
    times = Counter[tuple[int, int]]()
    num_epochs = 30
    for epoch in range(num_epochs):
        now = Counter[tuple[int, int]]()
        for _, _, shard, ordinal in epoch_of(order, epoch):
            (position,) = order.positions(epoch, Draws(np.array([shard]), np.array([ordinal])))
            row = int(np.searchsorted(np.cumsum(weights[shard]), position, side="right"))
            now[shard, row] += 1
        assert now.total() == order.num_samples == sum(map(sum, weights)) // ONE
        for (shard, row), num in now.items():
            whole = weights[shard][row] // ONE
            assert whole - 1 <= num <= whole + 1
        times += now
    for shard, rows in enumerate(weights):
        for row, weight in enumerate(rows):
            # An epoch has whole draws: what exceeds them in the sum of all weights is lost to all.
            expected = weight * order.num_samples / sum(map(sum, weights))
            assert abs(times[shard, row] / num_epochs - expected) < 0.3


def test_epochs_and_seeds_differ() -> None:
    order = order_of([[ONE] * 20] * 2)
    first, second = ([met[2:] for met in epoch_of(order, epoch)] for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_small_corpus_is_shuffled_as_a_whole() -> None:
    order = order_of([[ONE] * 500], 1, shuffle_samples=100)
    rows = np.array([row for *_, row in epoch_of(order, 0)])
    assert np.abs(np.diff(rows)).mean() > 120  # a third of 500, for rows drawn by chance
    first = np.sort(rows[:100])  # a block
    assert np.diff(first).max() < 60


def test_of_a_large_corpus_neighbours_are_read_together() -> None:
    order = order_of([[ONE] * 4096] * 8, 4, shuffle_shards=2, shuffle_samples=1024)
    block, _ = order.block_of(2, 0)
    draws = order.draws(block)
    slabs = {(shard, row // 64) for shard, row in zip(draws.shards, draws.ordinals, strict=True)}
    assert len(draws.shards) == len(order.items_of(block)) == 256
    assert len(slabs) <= 9  # of 32
    assert order.next_block(block).number == 1


def test_lanes_divide_the_batch() -> None:
    assert [num_lanes_for(size) for size in (1, 7, 128, 1000, 4096)] == [1, 7, 64, 50, 256]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 3000),
)
def test_streams_take_turns_by_their_shares(rates: list[int], phase: float, n: int) -> None:
    shares = Shares(tuple(rates))
    stream, index = shares.stream_of(n, phase)
    assert rates[stream] > 0
    assert index == shares.num_of(stream, n, phase)
    assert shares.place_of(stream, index, phase) == n
    assert sum(shares.num_of(stream, n, phase) for stream in range(len(rates))) == n
    for stream, rate in enumerate(rates):
        assert abs(shares.num_of(stream, n, phase) - n * rate / sum(rates)) <= len(rates)


@pytest.mark.parametrize("batch_size", [1, 12])
def test_blocks_of_a_lane_follow_each_other(batch_size: int) -> None:
    order = order_of([[ONE] * 37], num_lanes_for(batch_size))
    for lane in range(order.num_lanes):
        blocks = [order.block_of(lane, item)[0] for item in range(60)]
        for before, after in pairwise(blocks):
            assert after in (before, order.next_block(before))
            assert before <= after
