"""Which samples are held out: by their uids alone."""

from pipeline.sample import sample_uid
from training.held_out import is_held_out

UIDS = [sample_uid(f"https://example.org/{i}.png", "a cat") for i in range(5000)]


def test_share_is_held_out_and_a_smaller_one_lies_within_it() -> None:
    small, large = ({uid for uid in UIDS if is_held_out(uid, share)} for share in (0.05, 0.2))
    assert 0.04 < len(small) / len(UIDS) < 0.06
    assert 0.18 < len(large) / len(UIDS) < 0.22
    assert small < large


def test_nothing_is_held_out_of_a_share_of_zero() -> None:
    assert not any(is_held_out(uid, 0.0) for uid in [*UIDS, "0" * 32])
