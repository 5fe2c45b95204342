from benchmarks.fuzz_answers import MAX_GROWTH_BYTES, fetch_malformed
from benchmarks.malformed_answers import malformed_answer


def test_malformed_answers_are_each_counted_once_and_leave_nothing_behind() -> None:
    """A few of what `python -m benchmarks.fuzz_answers` has 20,000 of."""
    outcomes, growth = fetch_malformed(2000, seed=1)
    assert sum(outcomes.values()) == 2000
    assert outcomes.keys() >= {"fetched", "connection broken", "too large", "timeout", "http 429"}
    assert growth < MAX_GROWTH_BYTES


def test_a_malformed_answer_is_made_again_from_its_number() -> None:
    assert [malformed_answer(number) for number in range(99)] == [
        malformed_answer(number) for number in range(99)
    ]
    assert malformed_answer(5, seed=1) != malformed_answer(5, seed=2)
