import pytest

from infra.planning.shown import (
    bytes_in_words,
    count_in_words,
    dollars_in_words,
    hours_in_words,
    seconds_in_words,
)


@pytest.mark.parametrize(
    ("num", "words"),
    [(0, "0 B"), (999, "999 B"), (41_000, "41 kB"), (2.4e14, "240 TB"), (9.996e14, "1,000 TB")],
)
def test_bytes(num: float, words: str) -> None:
    assert bytes_in_words(num) == words


def test_others() -> None:
    assert count_in_words(5.85e9) == "5.85 G"
    assert dollars_in_words(47_700) == "$47,700"
    assert dollars_in_words(1.5) == "$1.50"
    assert [hours_in_words(h) for h in (0.0123, 12.34, 1234)] == ["0.0123", "12.3", "1,234"]
    assert [seconds_in_words(s) for s in (1.5, 600, 9000)] == ["1.5 s", "10 min", "2.5 h"]
