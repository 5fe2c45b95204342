import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.asking.diversity import diversified


def unit_rows(num: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num, 6))
    units: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units.astype(np.float32)


def by_the_formula(similarities: np.ndarray, vectors: np.ndarray, diversity: float) -> list[int]:
    """Literally: one candidate after the other, each against each that is shown."""
    between = vectors @ vectors.T
    pairs = [between[i, j] for i in range(len(vectors)) for j in range(len(vectors)) if i != j]
    low, high = min(similarities), max(similarities)

    def gain(candidate: int, shown: list[int]) -> float:
        relevance = (similarities[candidate] - low) / (high - low)
        likeness = max((between[candidate, one] - min(pairs)) for one in shown)
        return float((1 - diversity) * relevance - diversity * likeness / (max(pairs) - min(pairs)))

    shown = [int(np.argmax(similarities))]
    left = set(range(len(vectors))) - set(shown)
    while left:
        best = max(sorted(left), key=lambda candidate: gain(candidate, shown))
        shown.append(best)
        left.remove(best)
    return shown


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 9), st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_order_is_the_formulas(num: int, seed: int, diversity: float) -> None:
    vectors = unit_rows(num, seed)
    similarities = vectors @ unit_rows(1, seed + 1)[0]
    assert diversified(similarities, vectors, diversity) == by_the_formula(
        similarities, vectors, diversity
    )


def test_none_is_the_order_of_nearness() -> None:
    similarities = np.array([0.9, 0.5, 0.7, 0.6], np.float32)
    assert diversified(similarities, unit_rows(4, 0), 0.0) == [0, 2, 3, 1]


def test_copies_come_last() -> None:
    one, other = unit_rows(2, 3)
    vectors = np.stack([one, one, one, other])
    similarities = np.array([0.9, 0.89, 0.88, 0.5], np.float32)
    assert diversified(similarities, vectors, 0.6)[:2] == [0, 3]


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_and_one_have_an_order(num: int) -> None:
    assert diversified(np.ones(num, np.float32), unit_rows(num, 0), 0.5) == list(range(num))


def test_all_alike_keep_their_order() -> None:
    vectors = np.repeat(unit_rows(1, 0), 4, axis=0)
    assert diversified(np.ones(4, np.float32), vectors, 0.5) == [0, 1, 2, 3]
