"""From the nearest rows to those that are shown: which to hide, which to fold, and how many.

Candidates come nearest first and are named by their places. One of the same URL as another is
passed over; a near copy of one that is shown already is folded under it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SAME_URL = "same URL as another"
"""Why a candidate is hidden."""


@dataclass
class Ranking:
    """Of candidates, by their places."""

    shown: list[int] = field(default_factory=list)
    folded: dict[int, list[int]] = field(default_factory=dict)
    """Copies, by the place of the one that is shown."""
    hidden: list[tuple[int, str]] = field(default_factory=list)
    """What was passed over, and why."""

    def num_hidden(self, after: int, before: float) -> dict[str, int]:
        """By reason, of the places between these two."""
        return dict(Counter(reason for place, reason in self.hidden if after < place < before))


def rank(
    num_candidates: int,
    *,
    urls: Sequence[str] | None = None,
    groups: np.ndarray | None = None,
) -> Ranking:
    """What each candidate has of these, if it matters: all [num_candidates].

    `groups` has the same number for near copies.
    """
    ranking = Ranking()
    shown_urls: set[str] = set()
    shown_groups: dict[int, int] = {}
    for place in range(num_candidates):
        if urls is not None and urls[place] in shown_urls:
            ranking.hidden.append((place, SAME_URL))
        elif groups is not None and int(groups[place]) in shown_groups:
            first = shown_groups[int(groups[place])]
            ranking.folded.setdefault(first, []).append(place)
        else:
            ranking.shown.append(place)
            if urls is not None:
                shown_urls.add(urls[place])
            if groups is not None:
                shown_groups[int(groups[place])] = place
    return ranking
