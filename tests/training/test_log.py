"""The digest of what was trained on."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sample import sample_uid
from training.log import samples_digest

UIDS = [sample_uid(str(i), "a cat") for i in range(24)]


@given(st.sets(st.integers(1, 23)), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_digest_is_the_same_however_workers_share_the_batch(cuts: set[int], step: int) -> None:
    edges = [0, *sorted(cuts), len(UIDS)]
    parts = [
        samples_digest(UIDS[start:end], step, start) for start, end in itertools.pairwise(edges)
    ]
    assert sum(parts) % 2**64 == samples_digest(UIDS, step, 0)


@pytest.mark.parametrize(
    ("uids", "step"),
    [
        (UIDS[::-1], 3),
        ([UIDS[1], UIDS[0], *UIDS[2:]], 3),
        ([UIDS[1], *UIDS[1:]], 3),
        (UIDS, 4),
    ],
    ids=["reversed", "two exchanged", "one for another", "another step"],
)
def test_digest_tells_order_samples_and_steps_apart(uids: list[str], step: int) -> None:
    assert samples_digest(uids, step, 0) != samples_digest(UIDS, 3, 0)
