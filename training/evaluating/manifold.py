"""Improved precision and recall (Kynkaanniemi et al. 2019): how much of what is drawn looks real,
and how much of what is real is drawn.

A set's manifold is the union of balls around its features, each reaching to that feature's k-th
nearest neighbour in the set. Precision is the share of drawn pictures in the manifold of the real
ones, recall the share of real ones in the manifold of the drawn.

Shapes: n pictures, d features.
"""

import torch
from torch import Tensor

from training.evaluating.bootstrap import Score, mean_score

NUM_NEIGHBOURS = 3
"""k; Kynkaanniemi et al. 2019, section 3."""
ROWS_AT_ONCE = 2048


def precision_score(drawn: Tensor, real: Tensor, weights: Tensor) -> Score:
    """`weights` [b, n] are resamples of the drawn pictures; the manifold stays as it is."""
    return mean_score(is_inside(drawn, real), weights)


def recall_score(drawn: Tensor, real: Tensor, weights: Tensor) -> Score:
    """`weights` [b, m] are resamples of the real pictures."""
    return mean_score(is_inside(real, drawn), weights)


def is_inside(points: Tensor, manifold: Tensor, k: int = NUM_NEIGHBOURS) -> Tensor:
    """Which points `[n, d]` lie in the manifold of features `[m, d]`: bool `[n]`; m exceeds k."""
    points, manifold = points.double(), manifold.double()
    radii = torch.cat(
        # Each feature's nearest is itself.
        [
            _distances(rows, manifold).kthvalue(k + 1).values
            for rows in torch.split(manifold, ROWS_AT_ONCE)
        ]
    )
    return torch.cat(
        [(_distances(rows, manifold) <= radii).any(1) for rows in torch.split(points, ROWS_AT_ONCE)]
    )


def _distances(one: Tensor, other: Tensor) -> Tensor:
    # By differences, not by products: a feature's distance to itself must be 0.
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
