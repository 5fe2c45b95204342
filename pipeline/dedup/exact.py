"""Pictures of the same bytes, or of the same pixels in other bytes."""

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup.grouping import Groups
from pipeline.dedup.pictures import Digests


def link_equal(groups: Groups, digests: Digests) -> None:
    """Link rows whose digests are the same; zero is no digest."""
    (there,) = np.nonzero(digests.any(axis=1))
    order = there[np.lexsort(digests[there].T)]
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    groups.link(order[:-1][same], order[1:][same])


def is_among(digests: Digests, others: Digests) -> NDArray[np.bool_]:
    """[n]: whether the digest is one of the others, too."""
    is_known = np.isin(_as_one(digests), _as_one(others))
    return is_known & digests.any(axis=1)


def _as_one(digests: Digests) -> NDArray[np.void]:
    return np.ascontiguousarray(digests).view("V16").ravel()
