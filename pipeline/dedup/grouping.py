"""One grouping over all evidence: which pictures are copies, and which of them stays.

Links of any kind join pictures (union-find). A chain of links may join what has nothing in common
any more: a is near b, b near c. So a link only proposes. In each joined set the best picture
survives; its copies are those that some evidence ties to it directly; the best of the rest survives
next, and so on. No picture is dropped for one that it does not itself resemble.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

MAX_SURVIVORS = 4096
"""Of one joined set. Each may have copies in it; what fits none of so many stays by itself."""


class Evidence(IntEnum):
    """Why two pictures are copies, the strongest first."""

    NONE = 0
    BYTES = 1
    PIXELS = 2
    PERCEPTUAL = 3
    MIRRORED = 4
    SEMANTIC = 5


Compare = Callable[[Rows, Rows], NDArray[np.uint8]]
"""Evidence for each pair of two arrays of rows."""


class Groups:
    """Union-find over n rows, fed with arrays of pairs; the order of feeding does not matter."""

    def __init__(self, num_rows: int) -> None:
        self._parents = np.arange(num_rows)

    def link(self, a: Rows, b: Rows) -> None:
        while len(a):
            a, b = self._roots_of(a), self._roots_of(b)
            apart = a != b
            a, b = a[apart], b[apart]
            # A root is the first of its set, so parents always come before their children.
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))

    def roots(self) -> Rows:
        """For every row the first row of its set."""
        return self._roots_of(np.arange(len(self._parents)))

    def _roots_of(self, rows: Rows) -> Rows:
        roots = self._parents[rows]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parents[rows] = roots
        return roots


@dataclass(frozen=True)
class Grouping:
    """`survivor` [n]: for a copy the row that stays in its place, for that row itself, else -1."""

    survivor: Rows
    evidence: NDArray[np.uint8]
    """[n]: what ties a copy to its survivor."""
    largest_chain: int
    """Rows in the largest joined set."""

    @property
    def is_copy(self) -> NDArray[np.bool_]:
        is_copy: NDArray[np.bool_] = self.evidence != Evidence.NONE
        return is_copy

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.survivor[self.is_copy]))

    @property
    def largest_group(self) -> int:
        """Rows in it, the survivor included; 0 where there is none."""
        sizes = np.bincount(self.survivor[self.survivor >= 0])
        return int(sizes.max(initial=0))


def choose_survivors(
    roots: Rows, ranks: Rows, compare: Compare, may_join: NDArray[np.bool_]
) -> Grouping:
    """Rows of one root are proposed as copies of each other; the lowest rank survives.

    Those that may not join are nobody's copy and nobody's survivor.
    """
    survivor = np.full(len(roots), -1)
    evidence = np.zeros(len(roots), np.uint8)
    sizes = np.bincount(roots[may_join], minlength=len(roots))
    (waiting,) = np.nonzero((sizes[roots] > 1) & may_join)
    waiting = waiting[np.lexsort((ranks[waiting], roots[waiting]))]
    for _ in range(MAX_SURVIVORS):
        if not len(waiting):
            break
        is_best = np.append(True, roots[waiting[1:]] != roots[waiting[:-1]])
        best = waiting[is_best][np.cumsum(is_best) - 1]
        found = np.where(is_best, Evidence.NONE, compare(best, waiting))
        is_copy = found != Evidence.NONE
        survivor[waiting[is_copy]] = survivor[best[is_copy]] = best[is_copy]
        evidence[waiting[is_copy]] = found[is_copy]
        waiting = waiting[~is_copy & ~is_best]
    return Grouping(survivor, evidence, int(sizes.max(initial=0)))
