"""How well captions fit their pictures, by what lies around both: the formulas.

v, t: unit vectors of a picture and a caption; v_j, t_j those of the corpus's other pairs.

Shapes: n pairs, k rivals, m neighbours, d dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from retrieval.captions.neighbourhood import NOBODY, Side, is_among

TEMPERATURE = 0.01
"""tau of s-CLIPLoss: CLIP's own, as trained (Wang et al. 2024, section 3)."""
BETA = GAMMA = 5.0
TAU_1, TAU_2 = 0.1, 5.0
"""LEMoN's weights. The paper tunes them on labelled pairs, which a crawl has none of; these are
ours, within the ranges that its program searches."""
TIE = 1e-6
"""Similarities nearer than this are equal: float16 copies of one picture differ by less."""


@dataclass(frozen=True)
class PairScores:
    """Of n pairs; every array is [n]."""

    similarity: np.ndarray
    """v.t"""
    rank_image: np.ndarray
    """How many pictures are nearer to the caption than its own, counted up to k_max."""
    rank_text: np.ndarray
    """How many captions are nearer to the picture than its own."""
    rivals_image: np.ndarray
    """tau log sum_j exp(v_j.t / tau): how near pictures come to the caption, its own counted."""
    rivals_text: np.ndarray
    """tau log sum_j exp(v.t_j / tau): how near captions come to the picture."""
    distance_image: np.ndarray
    """LEMoN's d_n: how far the caption is from those of the pictures nearest to its own."""
    distance_text: np.ndarray
    """LEMoN's d_m: how far the picture is from those of the captions nearest to its own."""

    @classmethod
    def joined(cls, blocks: Sequence["PairScores"]) -> "PairScores":
        """One after the other; none make one of no pairs."""
        empty = [np.zeros(0)] if not blocks else []
        return cls(
            **{
                field.name: np.concatenate([getattr(one, field.name) for one in blocks] + empty)
                for field in fields(cls)
            }
        )

    @property
    def clip_loss(self) -> np.ndarray:
        """s-CLIPLoss, also called negCLIPLoss: higher fits better, 0 at best.

        v.t - (tau/2) [log sum_j exp(v.t_j/tau) + log sum_j exp(v_j.t/tau)] of Wang et al.,
        "CLIPLoss and Norm-Based Data Selection" (NeurIPS 2024), over the rivals in the whole corpus
        in place of a random batch of 32,768. At tau 0.01 a rival 0.05 farther off than the nearest
        weighs e^-5, so the nearest few carry the sum.
        """
        score: np.ndarray = self.similarity - (self.rivals_image + self.rivals_text) / 2
        return score

    @property
    def lemon(self) -> np.ndarray:
        """Zhang et al., "LEMoN: Label Error Detection using Multimodal Neighbors" (ICML 2025):
        d(v,t) + beta d_n + gamma d_m, a distance: lower fits better."""
        distance: np.ndarray = (
            1 - self.similarity + BETA * self.distance_image + GAMMA * self.distance_text
        )
        return distance


def score_pairs(pictures: Side, captions: Side, k_max: int, temperature: float) -> PairScores:
    """The i-th picture with the i-th caption, whether they belong together or not.

    Of a swapped pair both rows are left out: as if neither the picture's own caption nor the
    caption's own picture were in the corpus, as is mostly so of a crawl's wrong captions.
    """
    similarity = np.einsum("nd,nd->n", pictures.vectors, captions.vectors)
    images = _rivals(captions, pictures)
    texts = _rivals(pictures, captions)
    return PairScores(
        similarity=similarity,
        rank_image=_rank(images, similarity, k_max),
        rank_text=_rank(texts, similarity, k_max),
        rivals_image=_soft_maximum(images, similarity, temperature),
        rivals_text=_soft_maximum(texts, similarity, temperature),
        distance_image=_distance(captions, pictures, pictures.near_images, pictures.near_texts),
        distance_text=_distance(pictures, captions, captions.near_texts, captions.near_images),
    )


def _rivals(asking: Side, own: Side) -> np.ndarray:
    """[n, k] similarities; -inf for the pair's own rows and what is nearly the same as `own`."""
    left_out = _is_own(asking.rivals, asking, own) | (asking.rivals == NOBODY)
    left_out |= is_among(asking.rivals, own.copies)
    return np.where(left_out, -np.inf, asking.rival_similarities)


def _rank(rivals: np.ndarray, similarity: np.ndarray, k_max: int) -> np.ndarray:
    num_nearer: np.ndarray = (rivals > similarity[:, None] + TIE).sum(axis=1)
    return num_nearer.clip(max=k_max)


def _soft_maximum(rivals: np.ndarray, similarity: np.ndarray, temperature: float) -> np.ndarray:
    exponents = np.column_stack([similarity, rivals]) / temperature
    soft: np.ndarray = temperature * np.logaddexp.reduce(exponents, axis=1)
    return soft


def _distance(asking: Side, own: Side, near_own: np.ndarray, near_other: np.ndarray) -> np.ndarray:
    """Mean over the neighbours j of d(t, t_j) exp(-tau1 d(v, v_j)) exp(-tau2 d(v_j, t_j)), where
    v is `own` and t is `asking`; 0 without any neighbour."""
    to_other = 1 - np.einsum("nd,nmd->nm", asking.vectors, near_other)
    to_own = 1 - np.einsum("nd,nmd->nm", own.vectors, near_own)
    of_pair = 1 - np.einsum("nmd,nmd->nm", near_own, near_other)
    terms = to_other * np.exp(-TAU_1 * to_own) * np.exp(-TAU_2 * of_pair)
    is_there = (own.near != NOBODY) & ~_is_own(own.near, asking, own)
    mean: np.ndarray = np.where(is_there, terms, 0).sum(axis=1) / is_there.sum(axis=1).clip(min=1)
    return mean


def _is_own(rows: np.ndarray, one: Side, other: Side) -> np.ndarray:
    is_own: np.ndarray = (rows == one.rows[:, None]) | (rows == other.rows[:, None])
    return is_own
