import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dedup import grouping
from pipeline.dedup.exact import is_among, link_equal
from pipeline.dedup.grouping import Evidence, Grouping, Groups, Rows, choose_survivors

PLACES = np.array([0, 3, 6, 9, 50, 52, 100])
"""Rows on a line: those at most 4 apart are copies, and neighbours are linked."""


def near(a: Rows, b: Rows) -> NDArray[np.uint8]:
    return np.where(np.abs(PLACES[a] - PLACES[b]) <= 4, Evidence.PERCEPTUAL, 0).astype(np.uint8)


def chain() -> Rows:
    groups = Groups(len(PLACES))
    groups.link(np.array([0, 1, 2, 4]), np.array([1, 2, 3, 5]))
    return groups.roots()


def choose(ranks: list[int], may_join: list[bool] | None = None) -> Grouping:
    allowed = np.array(may_join or [True] * len(PLACES))
    return choose_survivors(chain(), np.array(ranks), near, allowed)


def test_links_join_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    links = rng.integers(0, 500, (2, 300))
    expected = np.arange(500)
    for a, b in links.T:  # one link at a time, by relabelling
        low, high = sorted((expected[a], expected[b]))
        expected[expected == high] = low
    for size in (300, 7, 1):
        shuffled = links[:, rng.permutation(300)]
        groups = Groups(500)
        for start in range(0, 300, size):
            groups.link(*shuffled[:, start : start + size])
        assert np.array_equal(groups.roots(), expected)


def test_the_best_survives() -> None:
    found = choose([6, 5, 4, 3, 2, 1, 0])
    assert found.survivor[4:].tolist() == [5, 5, -1]
    assert found.is_copy[4:].tolist() == [True, False, False]


def test_a_chain_does_not_drop_what_has_nothing_in_common_with_the_survivor() -> None:
    found = choose([0, 1, 2, 3, 4, 5, 6])
    # 0 takes 3 along; 6 and 9 are too far from it, so 6 survives, too, and takes 9.
    assert found.survivor[:4].tolist() == [0, 0, 2, 2]
    assert found.largest_chain == 4
    assert found.largest_group == 2
    assert found.num_groups == 3


def test_evidence_is_that_for_the_survivor() -> None:
    assert choose([0, 1, 2, 3, 4, 5, 6]).evidence.tolist() == [0, 3, 0, 3, 0, 3, 0]


def test_what_may_not_join_is_no_copy_and_no_survivor() -> None:
    found = choose([0, 1, 2, 3, 4, 5, 6], [False] + [True] * 6)
    assert found.survivor[:4].tolist() == [-1, 1, 1, -1]


def test_one_set_may_have_so_many_survivors_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MAX_SURVIVORS", 1)
    found = choose([0, 1, 2, 3, 4, 5, 6])
    assert found.survivor[:4].tolist() == [0, 0, -1, -1]


def test_equal_digests_are_linked_and_none_is_no_digest() -> None:
    digests = np.array([[0, 0], [7, 1], [0, 0], [7, 1], [7, 2]], np.uint64)
    groups = Groups(5)
    link_equal(groups, digests)
    assert groups.roots().tolist() == [0, 1, 2, 1, 4]
    others = np.array([[7, 2], [0, 0]], np.uint64)
    assert is_among(digests, others).tolist() == [False, False, False, False, True]
    assert not is_among(digests, others[:0]).any()
