"""One question's way through an index: ever more of the nearest rows, until enough may be shown.

There are exactly k hits where the corpus has them: what was hidden or folded is made up for by
looking further.
"""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrieval.asking.clock import Seconds, timed
from retrieval.asking.diversity import diversified
from retrieval.asking.question import Answer, Question
from retrieval.asking.ranking import UNSAFE, rank
from retrieval.asking.safety import no_safety, safety_rule

if TYPE_CHECKING:
    from retrieval.live.snapshot import Hit, Snapshot

POOL = 5
"""So many times k candidates are put in order at once for diversity."""
LOOK_FURTHER = 4
"""By so much the candidates grow where too few of them may be shown."""
MAX_UNSAFE_LOOK = 50
"""Where 50 k candidates hold too few safe ones, only safe ones are searched."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """The rows that a question may look among, and those of them that it may show."""

    allowed: np.ndarray | None
    """bool [num_rows]; None: all that were not taken down."""
    is_safe: np.ndarray | None
    """bool [num_rows]; None: whatever they are."""

    @classmethod
    def of(cls, question: Question, state: "Snapshot") -> "Scope":
        """Raises ConfigError for SQL that can't be run, InputError for safe mode without scores."""
        allowed = None if question.where is None else state.select(question.where)
        if not question.safe:
            return cls(allowed, None)
        rule = safety_rule(state.root)
        if rule is None:
            raise no_safety(state.root)
        return cls(allowed, state.select(rule))


class Walk:
    """From a question's vector to its answer."""

    def __init__(
        self,
        question: Question,
        scope: Scope,
        vector: np.ndarray,
        state: "Snapshot",
        seconds: Seconds,
        notes: Sequence[str],
    ) -> None:
        self.question, self.allowed, self.vector = question, scope.allowed, vector
        self._is_safe = scope.is_safe
        self._state = state
        self._seconds = seconds
        self._notes = list(notes)
        self._num_unsafe_left_out = 0
        self._num_wanted = self._wanted(question.offset + question.k)
        passes_over = question.dedup or question.unique_urls or question.safe
        self.num_first = _candidates(self._num_wanted) if passes_over else self._num_wanted
        """Candidates to begin with."""

    def answer(self, similarities: np.ndarray, rows: np.ndarray) -> Answer:
        """Of the first candidates, nearest first, as the index gave them."""
        question = self.question
        self._look(similarities, rows)
        with timed(self._seconds, "fold"):
            order = self._order()
        page = order[question.offset :][: question.k]
        self._note(len(page))
        with timed(self._seconds, "metadata"):
            hits = [
                dataclasses.replace(hit, rank=question.offset + hit.rank)
                for hit in self._hits(page)
            ]
            folded = {
                hit.uid: self._hits(self._ranking.folded[place])
                for hit, place in zip(hits, page, strict=True)
                if place in self._ranking.folded
            }
        return Answer(hits, folded, self._hidden(order), self._notes, seconds=dict(self._seconds))

    def _wanted(self, reach: int) -> int:
        """How many may be shown up to a page's end: of whole pools, where it is diverse."""
        pool = POOL * self.question.k
        return math.ceil(reach / pool) * pool if self.question.diversify else reach

    def _look(self, similarities: np.ndarray, rows: np.ndarray) -> None:
        num = self.num_first
        while True:
            self._similarities, self._rows = similarities[rows >= 0], rows[rows >= 0]
            with timed(self._seconds, "fold"):
                self._rank()
            is_all = len(self._rows) < num
            if is_all or len(self._ranking.shown) >= self._num_wanted:
                return
            num *= LOOK_FURTHER
            if self._is_safe is not None and num > MAX_UNSAFE_LOOK * self._num_wanted:
                self._leave_out_unsafe()
            with timed(self._seconds, "search"):
                (similarities,), (rows,) = self._state.neighbours(
                    self.vector[None], num, self.question.modality, self.allowed
                )

    def _rank(self) -> None:
        rows = self._rows
        urls = None
        if self.question.unique_urls:
            urls = [hit.url for hit in self._state.hits(rows, self._similarities)]
        self._ranking = rank(
            len(rows),
            is_safe=None if self._is_safe is None else self._is_safe[rows],
            urls=urls,
            groups=self._state.groups[rows] if self.question.dedup else None,
        )
        if self._is_safe is not None:
            self._num_among_all, self._safe_places = len(rows), self._ranking.shown

    def _leave_out_unsafe(self) -> None:
        assert self._is_safe is not None
        among = ~self._state.removed
        if self.allowed is not None:
            among &= self.allowed
        self._num_unsafe_left_out = int((among & ~self._is_safe).sum())
        self.allowed, self._is_safe = among & self._is_safe, None

    def _order(self) -> list[int]:
        """Places of the candidates that may be shown, as they are shown."""
        shown, question = self._ranking.shown, self.question
        if not question.diversify:
            return shown
        order: list[int] = []
        # Pool after pool: a later page goes on where the one before it ended.
        for start in range(0, len(shown), POOL * question.k):
            pool = np.array(shown[start : start + POOL * question.k])
            vectors = self._state.vectors(self._rows[pool], question.modality)
            places = diversified(self._similarities[pool], vectors, question.diversify)
            order += pool[places].tolist()
        return order

    def _hits(self, places: Sequence[int]) -> "list[Hit]":
        at = np.array(places, np.int64)
        return self._state.hits(self._rows[at], self._similarities[at])

    def _hidden(self, order: Sequence[int]) -> dict[str, int]:
        """What was passed over between the end of the page before and the end of this one."""
        end = self.question.offset + self.question.k
        before = max(order[: self.question.offset], default=-1)
        last = max(order[:end]) if len(order) >= end else math.inf
        hidden = self._ranking.num_hidden(before, last)
        if self._is_unsafe_told():
            hidden.pop(UNSAFE, None)
        elif self._num_unsafe_left_out:
            hidden[UNSAFE] = self._num_unsafe_left_out
        return hidden

    def _is_unsafe_told(self) -> bool:
        """Whether a page before this one left out all that is unsafe, and so told of all of it: who
        goes from page to page adds up what they tell."""
        question = self.question
        ends = range(question.offset, 0, -question.k) if question.safe else ()
        for wanted in map(self._wanted, ends):
            num = _candidates(wanted)
            while num * LOOK_FURTHER <= MAX_UNSAFE_LOOK * wanted:
                num *= LOOK_FURTHER
            # What it looked at last are the first of what was looked at here.
            if num <= self._num_among_all and bisect_left(self._safe_places, num) < wanted:
                return True
        return False

    def _note(self, num_shown: int) -> None:
        question, shown = self.question, ~self._state.removed
        if question.where is not None:
            num = int((shown & self._state.select(question.where)).sum())
            self._notes.append(f"where: {num:,} of {int(shown.sum()):,} samples")
        if num_shown < question.k:
            self._notes.append(f"{num_shown:,} of the {question.k:,} asked for: there are no more")


def _candidates(num_wanted: int) -> int:
    """To begin with, where some of them will be passed over."""
    return 2 * num_wanted + 16
