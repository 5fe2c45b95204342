"""Maximal marginal relevance: near to the query, and unlike what is shown already.

Carbonell & Goldstein, "The Use of MMR, Diversity-Based Reranking", SIGIR 1998: next comes

    argmax over what is left of  (1 - lambda) Sim1(x, query) - lambda max over shown y of Sim2(x, y)

with lambda their 1 - lambda. A picture is far less like a caption than like other pictures, so both
similarities are stretched to 0..1 over the candidates; else any lambda would mean diversity alone.
"""

import numpy as np


def diversified(similarities: np.ndarray, vectors: np.ndarray, diversity: float) -> list[int]:
    """The order in which candidates [n], by their similarity to the query and unit vectors [n, d],
    are shown; all of them. `diversity` 0: nearest first; 1: only ever unlike the others.
    """
    relevance = _stretched(similarities, similarities)
    between = vectors @ vectors.T  # [n, n]
    apart = between[~np.eye(len(vectors), dtype=bool)]
    likeness = _stretched(between, apart) if apart.size else np.zeros_like(between)
    order = [int(np.argmax(relevance))] if len(relevance) else []
    is_left = np.ones(len(relevance), bool)
    nearest_shown = np.full(len(relevance), -np.inf, np.float32)
    while len(order) < len(relevance):
        is_left[order[-1]] = False
        nearest_shown = np.maximum(nearest_shown, likeness[order[-1]])
        gain = (1 - diversity) * relevance - diversity * nearest_shown
        order.append(int(np.argmax(np.where(is_left, gain, -np.inf))))
    return order


def _stretched(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    low, high = float(scale.min(initial=np.inf)), float(scale.max(initial=-np.inf))
    spread = max(high - low, 1e-6)  # all alike: no similarity tells anything apart
    return (values - low) / spread
