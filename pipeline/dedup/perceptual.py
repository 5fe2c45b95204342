"""Pictures that look alike: their PDQ hashes, or one's and the other's mirror image's, are near.

Hashes that many pictures share are compared once. Pictures with too little to see (of a quality
under the hash's least) are left out: one flat picture is near all others.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup.bands import Bands, near_pairs
from pipeline.dedup.grouping import Groups, Rows
from pipeline.dedup.pictures import Hashes, Pictures


def link_look_alikes(
    groups: Groups,
    pictures: Pictures,
    heldout: Pictures,
    max_distance: int,
    *,
    mirrored: bool,
) -> tuple[Bands, NDArray[np.bool_]]:
    """Link pictures whose hashes differ in `max_distance` bits at most.

    Also tells how hashes were dealt out, and which pictures are that near to a held-out one.
    """
    num = len(pictures)
    (here,) = np.nonzero(pictures.is_hashed)
    turned = here if mirrored else here[:0]
    owners = np.concatenate([here, turned])
    hashes = np.concatenate(
        [pictures.upright[here], pictures.mirrored[turned], heldout.upright[heldout.is_hashed]]
    )
    distinct, which = _distinct(hashes)
    of_pictures, of_heldout = which[: len(owners)], which[len(owners) :]
    bands = Bands.of(len(distinct), max_distance)

    first = np.full(len(distinct), num)
    np.minimum.at(first, of_pictures, owners)
    is_upright, is_heldout = np.zeros((2, len(distinct)), bool)
    is_upright[of_pictures[: len(here)]] = True
    is_heldout[of_heldout] = True
    near_heldout = is_heldout.copy()
    groups.link(here, first[of_pictures[: len(here)]])
    for i, j in near_pairs(distinct, bands):
        near_heldout[i[is_heldout[j]]] = True
        near_heldout[j[is_heldout[i]]] = True
        # Two mirror images are as near as their pictures are, which are there as well.
        both = (first[i] < num) & (first[j] < num) & (is_upright[i] | is_upright[j])
        groups.link(first[i[both]], first[j[both]])
    in_heldout = np.zeros(num, bool)
    np.logical_or.at(in_heldout, owners, near_heldout[of_pictures])
    return bands, in_heldout


def _distinct(hashes: Hashes) -> tuple[Hashes, Rows]:
    """The different rows in order, and for each row which of them it is."""
    order = np.lexsort(np.ascontiguousarray(hashes).view(np.uint64).T)
    is_new = np.append(True, (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1))[: len(order)]
    which = np.empty(len(hashes), np.int64)
    which[order] = np.cumsum(is_new) - 1
    return hashes[order[is_new]], which
