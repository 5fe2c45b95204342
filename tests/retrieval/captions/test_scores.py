"""The formulas against their closed forms, over all pairs at once."""

import numpy as np
import pytest

from benchmarks.exact_index import ExactIndex
from retrieval.captions import scores
from retrieval.captions.neighbourhood import BLOCK, NOBODY, NUM_NEAR, blocks, is_among, look_around
from retrieval.captions.scores import TEMPERATURE, PairScores, score_pairs
from retrieval.embedding.embeddings import Modality

NUM, DIM = 80, 24


class CountingIndex(ExactIndex):
    num_asked = 0

    def neighbours(
        self, vectors: np.ndarray, k: int, modality: Modality
    ) -> tuple[np.ndarray, np.ndarray]:
        self.num_asked += len(vectors)
        return super().neighbours(vectors, k, modality)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def pairs(num: int = NUM, noise: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images = unit(random.normal(size=(num, DIM)))
    return images, unit(images + noise * unit(random.normal(size=(num, DIM))))


def score(
    images: np.ndarray,
    texts: np.ndarray,
    k_max: int = NUM,
    captions: np.ndarray | None = None,
    temperature: float = TEMPERATURE,
) -> PairScores:
    """Of every picture with its caption, or with that of another row."""
    index, rows = ExactIndex(images, texts), np.arange(len(images))
    theirs = rows if captions is None else captions
    return score_pairs(
        look_around(index, images, rows, "image", k_max),
        look_around(index, texts[theirs], theirs, "text", k_max),
        k_max,
        temperature,
    )


@pytest.mark.parametrize("temperature", [TEMPERATURE, 0.2])
def test_clip_loss_is_the_formula_over_the_whole_corpus(temperature: float) -> None:
    images, texts = pairs()
    similarities = images.astype(float) @ texts.T
    logits = similarities / temperature
    crowd = np.logaddexp.reduce(logits, axis=1) + np.logaddexp.reduce(logits, axis=0)
    expected = np.diag(similarities) - temperature / 2 * crowd
    found = score(images, texts, temperature=temperature)
    assert found.clip_loss == pytest.approx(expected, abs=1e-5)
    assert (found.clip_loss <= 0).all()


def test_the_nearest_few_carry_the_sum() -> None:
    images, texts = pairs(num=600, noise=3.0)
    few, all_of_them = score(images, texts, 20), score(images, texts, 600)
    assert few.clip_loss == pytest.approx(all_of_them.clip_loss, abs=2e-3)
    assert np.std(all_of_them.clip_loss) > 0.05


def test_copies_of_a_picture_do_not_speak_against_its_caption() -> None:
    images, texts = pairs(noise=0.8)
    before = score(images, texts)
    random = np.random.default_rng(1)
    copies = unit(images[[0] * 30] + 0.03 * unit(random.normal(size=(30, DIM))))
    assert (copies @ images[0] > 0.99).all()
    # Captions of theirs that are like nothing here.
    strangers = unit(random.normal(size=(30, DIM)) - 5 * texts.mean(axis=0))
    after = score(np.concatenate([images, copies]), np.concatenate([texts, strangers]))
    assert after.rank_image[0] == before.rank_image[0]
    assert after.rivals_image[0] == pytest.approx(before.rivals_image[0], abs=1e-6)


def test_lemon_is_the_formula() -> None:
    images, texts = (rows.astype(float) for rows in pairs())
    found = score(images.astype(np.float32), texts.astype(np.float32))
    own = 1 - np.einsum("nd,nd->n", images, texts)

    def distance(these: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Of the others' neighbours among `these`."""
        apart = 1 - these @ these.T
        np.fill_diagonal(apart, np.inf)
        near = np.argsort(apart, axis=1)[:, :NUM_NEAR]
        terms = (
            (1 - np.einsum("nd,nkd->nk", others, others[near]))
            * np.exp(-scores.TAU_1 * np.take_along_axis(apart, near, axis=1))
            * np.exp(-scores.TAU_2 * own[near])
        )
        return np.asarray(terms.mean(axis=1))

    assert found.distance_image == pytest.approx(distance(images, texts), abs=1e-5)
    assert found.distance_text == pytest.approx(distance(texts, images), abs=1e-5)
    expected = own + scores.BETA * distance(images, texts) + scores.GAMMA * distance(texts, images)
    assert found.lemon == pytest.approx(expected, abs=1e-4)


def test_ranks_count_both_ways_up_to_the_limit() -> None:
    images, texts = pairs(noise=4.0)
    similarities = images @ texts.T
    own = np.diag(similarities)
    nearer_images = (similarities > own[None] + 1e-6).sum(axis=0)
    nearer_texts = (similarities > own[:, None] + 1e-6).sum(axis=1)
    found = score(images, texts, k_max=7)
    assert nearer_images.max() > 7 < nearer_texts.max()
    assert found.rank_image.tolist() == nearer_images.clip(max=7).tolist()
    assert found.rank_text.tolist() == nearer_texts.clip(max=7).tolist()


def test_of_a_swapped_pair_neither_row_counts() -> None:
    """Its picture's own caption and its caption's own picture fit perfectly, and are not asked."""
    images, _ = pairs()
    swapped = np.roll(np.arange(NUM), 1)
    found = score(images, images, captions=swapped)
    similarities = np.where(np.eye(NUM, dtype=bool), -np.inf, images @ images.T)
    similarities[np.arange(NUM), swapped] = -np.inf
    own = (images * images[swapped]).sum(axis=1)
    assert found.rank_text.tolist() == (similarities > own[:, None] + 1e-6).sum(axis=1).tolist()


def test_a_lone_pair_has_no_rivals_and_no_neighbours() -> None:
    images, texts = pairs(num=1)
    found = score(images, texts)
    assert found.rank_image.tolist() == found.rank_text.tolist() == [0]
    assert found.clip_loss == pytest.approx([0], abs=1e-6)
    assert found.lemon == pytest.approx(1 - found.similarity)


def test_no_pairs_have_no_scores() -> None:
    assert PairScores.joined([]).clip_loss.tolist() == []


def test_membership_is_asked_line_by_line() -> None:
    rows = np.array([[1, 2, NOBODY], [1, 2, 3]])
    others = np.array([[2, NOBODY], [3, 1]])
    assert is_among(rows, others).tolist() == [[False, True, False], [True, False, True]]


def test_blocks_cover_everything_once() -> None:
    num = 2 * BLOCK + 3
    assert np.concatenate([np.arange(num)[one] for one in blocks(num)]).tolist() == list(range(num))


def test_twice_the_pairs_ask_for_twice_as_much() -> None:
    def num_asked(num: int) -> int:
        index = CountingIndex(*pairs(num))
        for block in blocks(num):
            rows = np.arange(num)[block]
            look_around(index, index.vectors(rows, "image"), rows, "image", 20)
        return index.num_asked

    assert num_asked(600) == 2 * num_asked(300)
