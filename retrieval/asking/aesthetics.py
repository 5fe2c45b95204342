"""The direction of pictures that are rated alike, to move a query towards.

clip-retrieval adds `aesthetic_weight` times the embedding of a rating, downloaded for its two
encoders, to the query and makes the sum a unit vector again. Here the rating's embedding is the
mean of the corpus's own pictures that the signal `aesthetic` gave this rating.

Reads   ROOT/columns/aesthetic/
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from retrieval.live.snapshot import Snapshot

RATINGS = range(11)
"""The scale of the predictor: 0 to 10."""
MAX_PICTURES = 1000
"""That a rating's embedding is the mean of."""


def rating_vector(state: "Snapshot", rating: int) -> tuple[np.ndarray | None, str]:
    """A unit vector [d], or None where there is nothing to go by; and a line that says which."""
    if "aesthetic" not in state.columns.complete:
        return None, (
            "aesthetic_score: passed over, the corpus has no such column; `carrara score "
            f"{state.root} --signals aesthetic` makes it"
        )
    for nearest in sorted(RATINGS, key=lambda other: abs(other - rating)):
        rows = np.flatnonzero(state.select(f"round(aesthetic_score) = {nearest}") & ~state.removed)
        if len(rows):
            some = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_PICTURES)).astype(int)]
            mean = state.vectors(some, "image").mean(axis=0)
            length = float(np.linalg.norm(mean))
            return mean / max(length, 1e-6), (
                f"aesthetic_score: towards the {len(rows):,} pictures rated {nearest}"
                + ("" if nearest == rating else f", the rating nearest to {rating} that there is")
            )
    return None, "aesthetic_score: passed over, no picture is rated"
