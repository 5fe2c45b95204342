"""One judgement from all scores: how likely a caption is not its picture's. Learned without labels.

What a wrong caption looks like is shown by swapping captions on purpose: with any other sample's
(random swaps), and with that of the picture's nearest neighbour (hard swaps). A logistic regression
tells the corpus's own pairs from the swapped ones; that some of the corpus's pairs are wrong
themselves changes its level, not its order. It starts from s-CLIPLoss, and swaps move it away from
there only as far as they insist (PULL): left free it learns what gives swaps away, and judges
truncated captions and those in other languages worse than s-CLIPLoss alone (docs/neighbours.md).

From scores to probabilities by Efron's two-group model ("Large-Scale Inference", 2010, chapter 5):
of the corpus's pairs with score s, the share that is wrong is pi_0 f_0(s) / f(s), where f_0 is the
swaps' density, f the corpus's, and pi_0 the share of wrong ones over all. It needs no share of the
corpus as its threshold, and means the same at any size.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

from infra.config import digest_of
from retrieval.captions.neighbourhood import (
    NOBODY,
    Index,
    Side,
    blocks,
    is_among,
    look_around,
)
from retrieval.captions.scores import PairScores, score_pairs

NUM_PAIRS = 4096
"""Of the corpus, evenly spaced; each is swapped twice."""
SEED = 0
SHARE_OF_HARD = 0.2
"""Weight of the hard swaps among all: many of them are captions that do fit."""
PULL = 0.3
"""Ridge on the weights beside that of s-CLIPLoss (features of unit variance, mean loss)."""
LOWEST = (0.2, 0.4, 0.6, 0.8)
"""pi_0 is at most the share of the corpus that scores as low as a fifth of the swaps do, times
five, and so on (Storey 2002): the least of these is taken. Where the encoder is weak that is the
first, for sound pairs hardly score so low; where swaps in the corpus itself score lower than those
made here, whose other halves don't count, it is one of the others."""
NUM_ITERATIONS = 1000
NUM_STEPS = 100
"""The probabilities are kept as a table of so many scores."""


class Mix(BaseModel):
    """What `fit` learned."""

    model_config = ConfigDict(frozen=True)

    num_pairs: int
    means: dict[str, float]
    """By feature, of what it was learned from; so are the scales."""
    scales: dict[str, float]
    weights: dict[str, float]
    """None is negative: every feature is turned so that more fits better."""
    bias: float
    share_of_mismatches: float
    """pi_0, an upper estimate: what the encoder can't tell from a swap is counted, too."""
    steps: list[float]
    """Scores, ascending."""
    mismatches: list[float]
    """The probability at each of them; between them by straight lines."""

    @property
    def digest(self) -> str:
        return digest_of(self.model_dump())

    def score(self, scores: PairScores) -> np.ndarray:
        """[n] log-odds of a pair of the corpus against a swapped one: higher fits better."""
        found = features(scores)
        terms = [
            self.weights[name] * (found[name] - self.means[name]) / self.scales[name]
            for name in self.weights
        ]
        total: np.ndarray = self.bias + np.sum(terms, axis=0)
        return total

    def mismatch(self, scores: PairScores) -> np.ndarray:
        """[n] in [0, 1]: how likely the caption is not its picture's."""
        found: np.ndarray = np.interp(self.score(scores), self.steps, self.mismatches)
        return found


ANCHOR = "clip_loss"


def features(scores: PairScores) -> dict[str, np.ndarray]:
    """Each higher where a caption fits better."""
    return {
        ANCHOR: scores.clip_loss,
        "similarity": scores.similarity,
        "rivals_image": -scores.rivals_image,
        "rivals_text": -scores.rivals_text,
        "rank_image": -np.log1p(scores.rank_image),
        "rank_text": -np.log1p(scores.rank_text),
        "distance_image": -scores.distance_image,
        "distance_text": -scores.distance_text,
    }


def fit(index: Index, rows: np.ndarray, k_max: int, temperature: float) -> Mix:
    """Learn from NUM_PAIRS of these rows of the index; the same rows, the same mix."""
    own, random, hard = _examples(index, rows, k_max, temperature)
    values = {name: np.concatenate([one[name] for one in (own, random, hard)]) for name in own}
    num = len(own[ANCHOR])
    is_own = np.repeat([1.0, 0.0, 0.0], num)
    weight = np.repeat([1.0, 1 - SHARE_OF_HARD, SHARE_OF_HARD], num) / (2 * num)
    means = {name: float(array.mean()) for name, array in values.items()}
    scales = {name: float(array.std()) or 1.0 for name, array in values.items()}
    standard = [(values[name] - means[name]) / scales[name] for name in values]
    pull = np.array([0.0 if name == ANCHOR else PULL for name in values])
    *weights, bias = _regress(np.stack(standard, axis=1), is_own, weight, pull)
    logits = bias + np.stack(standard, axis=1) @ weights
    share, steps, mismatches = _calibrate(logits[:num], logits[num : 2 * num])
    return Mix(
        num_pairs=num,
        means=means,
        scales=scales,
        weights=dict(zip(values, map(float, weights), strict=True)),
        bias=float(bias),
        share_of_mismatches=share,
        steps=steps,
        mismatches=mismatches,
    )


def _examples(
    index: Index, rows: np.ndarray, k_max: int, temperature: float
) -> list[dict[str, np.ndarray]]:
    """Features of pairs as they are, of random swaps and of hard ones."""
    from retrieval.knn import evenly_spaced

    chosen = rows[evenly_spaced(len(rows), NUM_PAIRS)]
    # Any row but its own: a step of 1 to n - 1 around the circle.
    steps = np.random.default_rng(SEED).integers(1, max(2, len(rows)), len(chosen))
    strangers = rows[(np.searchsorted(rows, chosen) + steps) % len(rows)]

    def captions_of(theirs: np.ndarray) -> Side:
        return look_around(index, index.vectors(theirs, "text"), theirs, "text", k_max)

    found: list[list[dict[str, np.ndarray]]] = [[], [], []]
    for block in blocks(len(chosen)):
        here = chosen[block]
        pictures = look_around(index, index.vectors(here, "image"), here, "image", k_max)
        nearest = _nearest_other(pictures, strangers[block])
        for examples, theirs in zip(found, (here, strangers[block], nearest), strict=True):
            scores = score_pairs(pictures, captions_of(theirs), k_max, temperature)
            examples.append(features(scores))
    return [
        {name: np.concatenate([one[name] for one in examples]) for name in examples[0]}
        for examples in found
    ]


def _nearest_other(pictures: Side, otherwise: np.ndarray) -> np.ndarray:
    """[n] the row of the picture nearest to each that is no copy of it."""
    is_other = (pictures.near != NOBODY) & ~is_among(pictures.near, pictures.copies)
    first = is_other.argmax(axis=1)
    nearest = np.take_along_axis(pictures.near, first[:, None], axis=1)[:, 0]
    return np.where(is_other.any(axis=1), nearest, otherwise)


def _regress(
    features: np.ndarray, labels: np.ndarray, weight: np.ndarray, pull: np.ndarray
) -> np.ndarray:
    """Weights [f], none negative, and the bias: weighted logistic regression with a ridge.

    By accelerated projected gradients (Beck & Teboulle 2009): convex, so the start is no matter.
    """
    design = np.column_stack([features, np.ones(len(features))])
    ridge = np.append(pull, 0.0)
    lowest = np.append(np.zeros(len(pull)), -np.inf)
    curvature = (design.T * weight) @ design / 4 + np.diag(ridge)  # at most: p (1 - p) <= 1/4
    step = 1 / np.linalg.norm(curvature, 2)
    found = ahead = np.zeros(len(ridge))
    for i in range(NUM_ITERATIONS):
        slope = weight * (1 / (1 + np.exp(-design @ ahead)) - labels)
        moved = np.maximum(ahead - step * (design.T @ slope + ridge * ahead), lowest)
        ahead = moved + i / (i + 3) * (moved - found)
        found = moved
    return found


def _calibrate(own: np.ndarray, swapped: np.ndarray) -> tuple[float, list[float], list[float]]:
    """pi_0, and pi_0 f_0 / f at steps of the score: never rising with it."""
    # One is added, so that a corpus without a wrong pair among those looked at is not said to
    # have none.
    bounds = [((own <= np.quantile(swapped, low)).sum() + 1) / (low * len(own)) for low in LOWEST]
    share = min(1.0, *bounds)
    both = np.concatenate([own, swapped])
    order = np.argsort(both, kind="stable")
    is_own = np.repeat([1.0, 0.0], [len(own), len(swapped)])[order]
    probability = _rising(is_own).clip(1e-6, 1 - 1e-6)
    ratio = probability / (1 - probability)  # f / f_0: as many of the one as of the other
    mismatch = np.minimum(1.0, share / ratio)
    places = np.unique(np.linspace(0, len(both) - 1, NUM_STEPS).round().astype(int))
    return float(share), both[order][places].tolist(), mismatch[places].tolist()


def _rising(values: np.ndarray) -> np.ndarray:
    """The nearest sequence that never falls (isotonic regression, by pooling what does)."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            mean, size = means.pop(), sizes.pop()
            means[-1] = (means[-1] * sizes[-1] + mean * size) / (sizes[-1] + size)
            sizes[-1] += size
    return np.repeat(means, sizes)
