"""What is learned from swaps, on pairs of which it is known which are wrong."""

import numpy as np
import pytest

from benchmarks.exact_index import ExactIndex
from retrieval.captions.mix import Mix, _regress, _rising, fit
from retrieval.captions.neighbourhood import look_around
from retrieval.captions.scores import TEMPERATURE, PairScores, score_pairs

NUM, DIM, K_MAX = 500, 32, 50


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def corpus(rate: float, noise: float = 1.2, seed: int = 0) -> tuple[ExactIndex, np.ndarray]:
    """Pairs of which a share has another's caption, and which they are."""
    random = np.random.default_rng(seed)
    images = unit(random.normal(size=(NUM, DIM)))
    texts = unit(images + noise * unit(random.normal(size=(NUM, DIM))))
    wrong = random.permutation(NUM)[: round(rate * NUM)]
    texts[wrong] = texts[np.roll(wrong, 1)]
    return ExactIndex(images, texts), np.isin(np.arange(NUM), wrong)


def learn(index: ExactIndex) -> Mix:
    return fit(index, np.arange(NUM), K_MAX, TEMPERATURE)


def score(index: ExactIndex) -> PairScores:
    rows = np.arange(NUM)
    pictures = look_around(index, index.vectors(rows, "image"), rows, "image", K_MAX)
    captions = look_around(index, index.vectors(rows, "text"), rows, "text", K_MAX)
    return score_pairs(pictures, captions, K_MAX, TEMPERATURE)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_more_likely_wrong_than_right_are_the_wrong_ones(rate: float) -> None:
    index, is_wrong = corpus(rate)
    mix = learn(index)
    mismatch = mix.mismatch(score(index))
    assert mix.share_of_mismatches == pytest.approx(rate, abs=0.1)
    assert (mismatch[is_wrong] > 0.5).mean() > 0.85
    assert (mismatch[~is_wrong] > 0.5).mean() < 0.05


def test_a_sound_corpus_loses_hardly_anything() -> None:
    index, _ = corpus(0.0)
    mix = learn(index)
    assert mix.share_of_mismatches < 0.05
    assert (mix.mismatch(score(index)) > 0.5).mean() < 0.02


def test_what_the_encoder_cannot_read_is_not_said_to_fit() -> None:
    index, _ = corpus(0.0, noise=1000)
    mix = learn(index)
    assert mix.share_of_mismatches > 0.7
    assert np.median(mix.mismatch(score(index))) > 0.7


def test_the_same_corpus_gives_the_same_mix() -> None:
    one, two = learn(corpus(0.2)[0]), learn(corpus(0.2)[0])
    assert one == two
    assert one.digest == two.digest
    assert one.digest != learn(corpus(0.2, seed=1)[0]).digest
    assert Mix.model_validate_json(one.model_dump_json()) == one


def test_more_of_what_fits_never_makes_a_mismatch_likelier() -> None:
    mix = learn(corpus(0.2)[0])
    assert min(mix.weights.values()) >= 0
    assert max(mix.weights.values()) > 0
    assert mix.steps == sorted(mix.steps)
    assert mix.mismatches == sorted(mix.mismatches, reverse=True)
    assert 0 <= mix.mismatches[-1] <= mix.mismatches[0] <= 1


def test_rows_that_were_taken_down_teach_nothing() -> None:
    index, _ = corpus(0.2)
    half = np.arange(0, NUM, 2)
    assert fit(index, half, K_MAX, TEMPERATURE).num_pairs == len(half)


def test_the_regression_finds_known_weights_and_none_that_is_negative() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(20_000, 3))
    logits = 1.5 * features[:, 0] + 0.5 * features[:, 1] - 1.0 * features[:, 2] + 0.3
    labels = (random.uniform(size=len(logits)) < 1 / (1 + np.exp(-logits))).astype(float)
    weight = np.full(len(logits), 1 / len(logits))
    free = _regress(features[:, :2], labels, weight, np.zeros(2))
    found = _regress(features, labels, weight, np.zeros(3))
    assert found[2] == 0
    assert found[:2] == pytest.approx(free[:2], abs=1e-4)
    # Without the third, the others' logits are blurred: the weights shrink alike.
    assert found[0] / found[1] == pytest.approx(3, rel=0.1)
    pulled = _regress(features, labels, weight, np.array([0.0, 10.0, 0.0]))
    assert pulled[1] < 0.05 < found[1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 1], [0, 1, 1]),
        ([1, 0, 1], [0.5, 0.5, 1]),
        ([1, 1, 0, 0, 1, 0], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ([0, 1, 0, 0, 1, 1], [0, 1 / 3, 1 / 3, 1 / 3, 1, 1]),
    ],
)
def test_isotonic_regression_pools_what_falls(values: list[int], expected: list[float]) -> None:
    assert _rising(np.array(values)).tolist() == pytest.approx(expected)
