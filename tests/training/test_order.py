import numpy as np

from training.order import SampleOrder


def test_where_an_epoch_meets_a_sample_is_what_place_undoes() -> None:
    counts = np.array([3, 0, 5, 1, 4])
    order = SampleOrder(counts, seed=7, shuffle_shards=2)
    for epoch in (0, 1, 5):
        for index in range(order.num_samples):
            shard, row = order.place(epoch * order.num_samples + index)
            assert order.index_in(epoch, shard, row) == index


def test_every_epoch_has_every_sample_once_in_another_order() -> None:
    order = SampleOrder(np.array([30, 20]), seed=0, shuffle_shards=1)
    epochs = [[order.place(50 * epoch + i) for i in range(50)] for epoch in range(2)]
    assert sorted(epochs[0]) == [(0, i) for i in range(30)] + [(1, i) for i in range(20)]
    assert sorted(epochs[1]) == sorted(epochs[0])
    assert epochs[1] != epochs[0]
