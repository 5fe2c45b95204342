"""How near the drawn pictures are to pictures of the corpus, and whether that is suspicious.

Nearness means something only beside how near the corpus's own pictures are to each other: a set of
flags has pictures that almost agree. So each real picture's nearest other one is found too, and a
drawn picture counts as near where 95 of 100 real ones have no neighbour that near.

Shapes: n pictures, d features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS_AT_ONCE = 2048
NEAR_SHARE = 0.05
"""Of the corpus's own pictures that have another as near: what counts as near beside it."""


def nearest(points: Tensor, corpus: Tensor) -> tuple[Tensor, Tensor]:
    """The distance from each point `[n, d]` to the corpus `[m, d]`, `[n]`, and to which row."""
    found = [
        torch.cdist(rows, corpus, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        for rows in torch.split(points, ROWS_AT_ONCE)
    ]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def nearest_other(corpus: Tensor, advance: Callable[[int], object] = lambda _num: None) -> Tensor:
    """The distance from each picture of the corpus to the nearest other one, `[m]`; `advance` is
    told of how many more it was found."""
    found = []
    for start in range(0, len(corpus), ROWS_AT_ONCE):
        rows = corpus[start : start + ROWS_AT_ONCE]
        distances = torch.cdist(rows, corpus, compute_mode="donot_use_mm_for_euclid_dist")
        distances[:, start : start + len(rows)].fill_diagonal_(float("inf"))
        found.append(distances.min(1).values)
        advance(len(rows))
    return torch.cat(found)


def near_distance(own: Tensor) -> float:
    """What only NEAR_SHARE of the corpus's own pictures are nearer to another than; `own` [m] is
    what `nearest_other` found."""
    return torch.quantile(own.double(), NEAR_SHARE).item()
