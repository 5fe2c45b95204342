"""Bring all evidence together: which samples are copies, and which leak from a held-out set."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from infra.config import Settings
from pipeline.dedup.bands import distances
from pipeline.dedup.embeddings import Vectors
from pipeline.dedup.exact import is_among, link_equal
from pipeline.dedup.grouping import Evidence, Grouping, Groups, Rows, choose_survivors
from pipeline.dedup.heldout import HeldOut
from pipeline.dedup.perceptual import link_look_alikes
from pipeline.dedup.pictures import Digests
from pipeline.dedup.samples import Samples
from pipeline.dedup.semantic import Cells
from pipeline.score import MANY

Method = Literal["exact", "perceptual", "semantic"]

COMPARED_AT_ONCE = 1 << 16
"""Pairs: 270 MB of embeddings of 512 numbers."""


class Limits(Settings):
    """What counts as a copy."""

    methods: Annotated[tuple[Method, ...], MANY] = Field(
        default=("exact", "perceptual"), min_length=1
    )
    """exact: same bytes as fetched, or same pixels; perceptual: near PDQ hashes; semantic: near
    embeddings (SemDeDup), which `carrara embed` must have made."""
    max_distance: int = Field(default=31, ge=0, le=64)
    """perceptual: bits of 256 in which hashes may differ. 31 is what PDQ's authors match at;
    unrelated pictures differ in 128, more or less."""
    mirrored: bool = True
    """perceptual: also compare with mirror images."""
    eps: float = Field(default=0.05, gt=0, lt=1)
    """semantic: a cosine of 1 - eps is a duplicate. What is right depends on the encoder; look at
    the groups before you drop any."""


@dataclass(frozen=True)
class Found:
    grouping: Grouping
    in_heldout: NDArray[np.bool_]
    details: dict[str, object]


def find_copies(
    samples: Samples, heldout: HeldOut, vectors: Vectors | None, limits: Limits
) -> Found:
    """`vectors` for the method `semantic`; without it they are not needed."""
    pictures = samples.pictures
    groups = Groups(len(samples))
    in_heldout = np.zeros(len(samples), bool)
    details: dict[str, object] = {}
    if "exact" in limits.methods:
        link_equal(groups, pictures.sha256)
        link_equal(groups, pictures.pixel_sha256)
        in_heldout |= is_among(pictures.sha256, heldout.pictures.sha256)
        in_heldout |= is_among(pictures.pixel_sha256, heldout.pictures.pixel_sha256)
    if "perceptual" in limits.methods:
        bands, leaks = link_look_alikes(
            groups, pictures, heldout.pictures, limits.max_distance, mirrored=limits.mirrored
        )
        in_heldout |= leaks
        details["bits a band"], details["bands"] = bands.width, bands.num
        details["distance up to which all pairs are found"] = bands.certain_distance
        details["expected recall at max_distance"] = round(bands.expected_recall, 4)
        details["too plain to compare"] = int((~pictures.is_hashed).sum())
    if vectors is not None:
        cells = Cells(vectors)
        for left, right in cells.near_pairs(limits.eps):
            groups.link(left, right)
        if len(heldout.vectors):
            in_heldout[cells.near(heldout.vectors, limits.eps)] = True
        details["cells"] = cells.num
    grouping = choose_survivors(
        groups.roots(),
        samples.ranks,
        _Comparison(samples, vectors, limits),
        ~samples.is_taken_down,
    )
    details["groups"], details["largest group"] = grouping.num_groups, grouping.largest_group
    details["largest chain"] = grouping.largest_chain
    details["held-out pictures"] = len(heldout.pictures)
    details["taken down"] = int(samples.is_taken_down.sum())
    return Found(grouping, in_heldout, details)


class _Comparison:
    """The strongest evidence that two samples are copies, for arrays of pairs."""

    def __init__(self, samples: Samples, vectors: Vectors | None, limits: Limits) -> None:
        self._pictures, self._vectors, self._limits = samples.pictures, vectors, limits

    def __call__(self, a: Rows, b: Rows) -> NDArray[np.uint8]:
        found = np.zeros(len(a), np.uint8)
        for start in range(0, len(a), COMPARED_AT_ONCE):
            chunk = slice(start, start + COMPARED_AT_ONCE)
            found[chunk] = self._compare(a[chunk], b[chunk])
        return found

    def _compare(self, a: Rows, b: Rows) -> NDArray[np.uint8]:
        found = np.zeros(len(a), np.uint8)
        pictures, limits = self._pictures, self._limits
        # From the weakest on, so that the strongest has the last word.
        if self._vectors is not None:
            found[self._vectors.cosines(a, b) >= 1 - limits.eps] = Evidence.SEMANTIC
        if "perceptual" in limits.methods:
            hashed = pictures.is_hashed[a] & pictures.is_hashed[b]
            if limits.mirrored:
                apart = np.minimum(
                    distances(pictures.upright[a], pictures.mirrored[b]),
                    distances(pictures.mirrored[a], pictures.upright[b]),
                )
                found[hashed & (apart <= limits.max_distance)] = Evidence.MIRRORED
            apart = distances(pictures.upright[a], pictures.upright[b])
            found[hashed & (apart <= limits.max_distance)] = Evidence.PERCEPTUAL
        if "exact" in limits.methods:
            found[_equal(pictures.pixel_sha256, a, b)] = Evidence.PIXELS
            found[_equal(pictures.sha256, a, b)] = Evidence.BYTES
        return found


def _equal(digests: Digests, a: Rows, b: Rows) -> NDArray[np.bool_]:
    equal: NDArray[np.bool_] = (digests[a] == digests[b]).all(axis=1) & digests[a].any(axis=1)
    return equal
