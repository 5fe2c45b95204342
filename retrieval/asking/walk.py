"""One question's way through an index: ever more of the nearest rows, until enough may be shown.

There are exactly k hits where the corpus has them: what was hidden or folded is made up for by
looking further.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrieval.asking.clock import Seconds, timed
from retrieval.asking.diversity import diversified
from retrieval.asking.question import Answer, Question
from retrieval.asking.ranking import Ranking, rank
from retrieval.asking.safety import no_safety, safety_rule

if TYPE_CHECKING:
    from retrieval.live.snapshot import Hit, Snapshot

POOL = 5
"""So many times k candidates are put in order at once for diversity."""
MAX_POOL = 2000
"""But no more than these: each is held against each, which takes 16 MB."""
LOOK_FURTHER = 4
"""By so much the candidates grow where too few of them may be shown."""
MAX_LOOK = 50
"""Where 50 k candidates hold too few that may be shown, the others are left out of the search."""
MAX_FOLDED = 100
"""Copies listed under one hit; all are counted."""
MAX_LISTED = 1000
"""Copies listed in one answer; in one of more hits as many as hits."""


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
        rule = safety_rule(state)
        if rule is None:
            raise no_safety(state.root)
        return cls(allowed, state.select(rule))

    def notes(self, state: "Snapshot") -> list[str]:
        """How many of the samples that were not taken down each of the two leaves."""

        def told(kept: np.ndarray) -> str:
            shown = ~state.removed
            return f"{int((shown & kept).sum()):,} of {int(shown.sum()):,} samples"

        notes = [] if self.allowed is None else [f"where: {told(self.allowed)}"]
        if self.is_safe is not None:
            notes.append(f"safe mode: {told(self.is_safe)} are known to be safe")
        return notes


@dataclasses.dataclass(frozen=True)
class Copies:
    """Of one row that is shown."""

    rows: np.ndarray
    """Nearest first; the first of them, where there are many."""
    similarities: np.ndarray
    num: int
    """All of them."""


class Walk:
    """From a question's vector to its answer."""

    _rows: np.ndarray
    """The candidates that may be looked at, nearest first."""
    _similarities: np.ndarray
    _ranking: Ranking
    """Of the candidates, by their places."""

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
        self._scope = scope
        self._state = state
        self._seconds = seconds
        self._notes = list(notes)
        self._left_out: dict[int, Copies] = {}
        """By the row that is shown: its copies that are no longer searched."""
        self._pool = min(POOL * question.k, MAX_POOL)
        self._num_wanted = self._wanted(question.offset + question.k)
        passes_over = question.dedup or question.unique_urls or question.safe
        # To begin with more, where some will be passed over.
        self.num_first = 2 * self._num_wanted + 16 if passes_over else self._num_wanted

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
                for hit in self._state.hits(self._rows[page], self._similarities[page])
            ]
            copies = {
                hit.uid: one
                for hit, place in zip(hits, page, strict=True)
                if (one := self._copies_of(place)).num
            }
            folded = self._listed(copies)
        return Answer(
            hits,
            folded,
            {uid: one.num for uid, one in copies.items()},
            self._hidden(order),
            self._notes,
            seconds=dict(self._seconds),
        )

    def _wanted(self, reach: int) -> int:
        """How many may be shown up to a page's end: of whole pools, where it is diverse."""
        return math.ceil(reach / self._pool) * self._pool if self.question.diversify else reach

    # Looking

    def _look(self, similarities: np.ndarray, rows: np.ndarray) -> None:
        num = self.num_first
        while True:
            is_there = rows >= 0
            is_all = np.count_nonzero(is_there) < num
            if self._scope.is_safe is not None:
                is_there &= self._scope.is_safe[rows]
            self._similarities, self._rows = similarities[is_there], rows[is_there]
            with timed(self._seconds, "fold"):
                self._rank()
            if is_all or len(self._ranking.shown) >= self._num_wanted:
                return
            num *= LOOK_FURTHER
            if num > MAX_LOOK * self._num_wanted:
                with timed(self._seconds, "filter"):
                    num = self.num_first if self._leave_out() else num
            with timed(self._seconds, "search"):
                question, vectors = self.question, self.vector[None]
                (similarities,), (rows,) = self._state.neighbours(
                    vectors, num, question.modality, self.allowed, question.asked_by
                )

    def _rank(self) -> None:
        self._ranking = rank(
            len(self._rows),
            urls=self._state.urls(self._rows) if self.question.unique_urls else None,
            groups=self._state.groups[self._rows] if self.question.dedup else None,
        )

    def _leave_out(self) -> bool:
        """From now on search neither what is unsafe nor copies of what is shown; whether there was
        any of these."""
        before = ~self._state.removed
        if self.allowed is not None:
            before &= self.allowed
        allowed = before if self._scope.is_safe is None else before & self._scope.is_safe
        is_copy = self._count_copies(allowed)
        self.allowed = allowed & ~is_copy
        return bool((self.allowed != before).any())

    def _count_copies(self, allowed: np.ndarray) -> np.ndarray:
        """bool [num_rows]: of a group that has some folded, but not shown. They are counted, and
        the nearest remembered."""
        groups, folded = self._state.groups, self._ranking.folded
        shown = self._rows[list(folded)]
        is_copy: np.ndarray = allowed & np.isin(groups, groups[shown])
        is_copy[shown] = False
        numbers, counts = np.unique(groups[is_copy], return_counts=True)
        num_of = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        for row, places in zip(shown.tolist(), folded.values(), strict=True):
            some = places[:MAX_FOLDED]
            num = num_of[int(groups[row])]
            self._left_out[row] = Copies(self._rows[some], self._similarities[some], num)
        return is_copy

    # Telling

    def _order(self) -> list[int]:
        """Places of the candidates that may be shown, as they are shown."""
        shown, question = self._ranking.shown[: self._num_wanted], self.question
        if not question.diversify:
            return shown
        order: list[int] = []
        # Pool after pool: a later page goes on where the one before it ended.
        for start in range(0, len(shown), self._pool):
            pool = np.array(shown[start : start + self._pool])
            vectors = self._state.vectors(self._rows[pool], question.modality)
            places = diversified(self._similarities[pool], vectors, question.diversify)
            order += pool[places].tolist()
        return order

    def _copies_of(self, place: int) -> Copies:
        """Those that were left out of the search, else those among the candidates."""
        row = int(self._rows[place])
        if row in self._left_out:
            return self._left_out[row]
        copies = self._ranking.folded.get(place, [])
        return Copies(self._rows[copies], self._similarities[copies], len(copies))

    def _listed(self, copies: dict[str, Copies]) -> "dict[str, list[Hit]]":
        """By uid of the hit; the first hits have theirs, where there are too many in all."""
        listed: dict[str, list[Hit]] = {}
        num_left = max(MAX_LISTED, self.question.k)
        for uid, one in copies.items():
            num = min(len(one.rows), MAX_FOLDED, num_left)
            if num:
                listed[uid] = self._state.hits(one.rows[:num], one.similarities[:num])
            num_left -= num
        return listed

    def _hidden(self, order: Sequence[int]) -> dict[str, int]:
        """What was passed over between the end of the page before and the end of this one."""
        end = self.question.offset + self.question.k
        before = max(order[: self.question.offset], default=-1)
        last = max(order[:end]) if len(order) >= end else math.inf
        return self._ranking.num_hidden(before, last)

    def _note(self, num_shown: int) -> None:
        k = self.question.k
        self._notes += self._scope.notes(self._state)
        if num_shown < k:
            self._notes.append(f"{num_shown:,} of the {k:,} asked for: there are no more")
