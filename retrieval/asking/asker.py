"""Questions in, answers out: encode the terms, add them up, search, hide, fold and rank.

    asker = Asker(Retriever.open("corpus"))
    answer = asker.answer(Question(terms=parse_algebra("cat - cartoon"), k=40, dedup=True))

A question's vector is the sum of its terms' unit vectors times their weights, made a unit vector
again. Words and pictures are added as they are: see docs/query.md for what else was tried. There
are exactly k hits where the corpus has them: what was hidden or folded is made up for by looking
further. An Asker may be used from any number of threads.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.fetching.fetch_settings import FetchSettings
from retrieval.asking.aesthetics import rating_vector
from retrieval.asking.clock import Seconds, timed
from retrieval.asking.encoding import TermEncoder, unit
from retrieval.asking.question import Answer, Question, Term
from retrieval.asking.ranking import UNSAFE, Ranking, rank
from retrieval.asking.safety import no_safety, safety_rule

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.live.snapshot import Hit, Snapshot
    from retrieval.search import Retriever

POOL = 5
"""So many times k candidates are put in order at once for diversity."""
LOOK_FURTHER = 4
"""By so much the candidates grow where too few of them may be shown."""
MAX_UNSAFE_LOOK = 50
"""Where 50 k candidates hold too few safe ones, only safe ones are searched."""


class Asker:
    """Answers questions from one index."""

    def __init__(
        self,
        retriever: "Retriever",
        *,
        encoder: "Encoder | None" = None,
        fetch: FetchSettings | None = None,
        device: str = "cpu",
    ) -> None:
        self.retriever = retriever
        self._terms = TermEncoder(
            retriever.encoder, encoder=encoder, fetch=fetch or FetchSettings(), device=device
        )

    @property
    def safety(self) -> str | None:
        """The SQL that safe mode goes by; None: the corpus has no safety columns."""
        return safety_rule(self.retriever.root)

    def answer(self, question: Question) -> Answer:
        (answer,) = self.answer_many([question])
        return answer

    def answer_many(self, questions: Sequence[Question]) -> list[Answer]:
        """The terms of all questions are encoded in one batch.

        Raises InputError and ConfigError for what can't be asked.
        """
        state = self.retriever.state  # one state for all steps: row numbers are its own
        seconds = Seconds(float)
        vectors = self._vectors(questions, state, seconds)
        share = {step: spent / max(len(questions), 1) for step, spent in seconds.items()}
        return [
            _Search(question, vector, state, Seconds(float, share)).answer()
            for question, vector in zip(questions, vectors, strict=True)
        ]

    def embed(self, term: Term) -> np.ndarray:
        """The unit vector [d] of one term, whatever its weight."""
        (vector,) = self._terms.vectors([term], self.retriever.state, False, Seconds(float))
        return np.asarray(vector)

    def _vectors(
        self, questions: Sequence[Question], state: "Snapshot", seconds: Seconds
    ) -> list[np.ndarray]:
        """Each question's unit vector [d]."""
        sums = [np.zeros(state.manifest.dim, np.float64) for _ in questions]
        for multilingual in (False, True):
            terms = [
                (number, term)
                for number, question in enumerate(questions)
                if question.multilingual == multilingual
                for term in question.terms
            ]
            found = self._terms.vectors([one for _, one in terms], state, multilingual, seconds)
            for (number, term), vector in zip(terms, found, strict=True):
                sums[number] += term.weight * vector
        return [unit(total, "query: its terms cancel each other out") for total in sums]


class _Search:
    """One question's way through the index."""

    def __init__(
        self, question: Question, vector: np.ndarray, state: "Snapshot", seconds: Seconds
    ) -> None:
        self._question, self._vector, self._state, self._seconds = question, vector, state, seconds
        self._notes: list[str] = []

    def answer(self) -> Answer:
        question = self._question
        self._move_to_rating()
        with timed(self._seconds, "filter"):
            self._allowed = self._where()
            self._is_safe = self._safe()
        self._look()
        with timed(self._seconds, "fold"):
            order = self._order()
        page = order[question.offset :][: question.k]
        self._note_shortage(len(order))
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
        return Answer(hits, folded, self._hidden(order), self._notes, dict(self._seconds))

    def _move_to_rating(self) -> None:
        question = self._question
        if question.aesthetic_score is None or not question.aesthetic_weight:
            return
        with timed(self._seconds, "filter"):
            towards, note = rating_vector(self._state, question.aesthetic_score)
        self._notes.append(note)
        if towards is not None:
            moved = self._vector + question.aesthetic_weight * towards
            self._vector = unit(moved, "query: aesthetic_weight takes all of it away")

    def _where(self) -> np.ndarray | None:
        """Which rows to look among, bool [num_rows]; None: all."""
        if self._question.where is None:
            return None
        allowed = self._state.select(self._question.where)
        num, num_all = ((rows & ~self._state.removed).sum() for rows in (allowed, ~allowed))
        self._notes.append(f"where: {num:,} of {num + num_all:,} samples")
        return allowed

    def _safe(self) -> np.ndarray | None:
        """Which rows may be shown, bool [num_rows]; None: all."""
        if not self._question.safe:
            return None
        rule = safety_rule(self._state.root)
        if rule is None:
            raise no_safety(self._state.root)
        return self._state.select(rule)

    # Candidates: ever more of them, until enough may be shown or there are no more.

    def _look(self) -> None:
        question = self._question
        wanted = self._num_wanted()
        folds = question.dedup or question.unique_urls or question.safe
        num = 2 * wanted + 16 if folds else wanted
        self._num_hidden_by_search = 0
        while True:
            self._search(num)
            with timed(self._seconds, "fold"):
                self._ranking = self._rank()
            is_all = len(self._rows) < num
            if is_all or len(self._ranking.shown) >= wanted:
                return
            num *= LOOK_FURTHER
            if self._is_safe is not None and num > MAX_UNSAFE_LOOK * wanted:
                self._search_safe_only()

    def _num_wanted(self) -> int:
        question = self._question
        need = question.offset + question.k
        if not question.diversify:
            return need
        return math.ceil(need / (POOL * question.k)) * POOL * question.k

    def _search(self, num: int) -> None:
        with timed(self._seconds, "search"):
            (similarities,), (rows,) = self._state.neighbours(
                self._vector[None], num, self._question.modality, self._allowed
            )
        self._rows, self._similarities = rows[rows >= 0], similarities[rows >= 0]

    def _rank(self) -> Ranking:
        question, rows = self._question, self._rows
        urls = None
        if question.unique_urls:
            urls = [hit.url for hit in self._state.hits(rows, self._similarities)]
        return rank(
            len(rows),
            is_safe=None if self._is_safe is None else self._is_safe[rows],
            urls=urls,
            groups=self._state.groups[rows] if question.dedup else None,
        )

    def _search_safe_only(self) -> None:
        assert self._is_safe is not None
        among = ~self._state.removed if self._allowed is None else self._allowed
        self._num_hidden_by_search = int((among & ~self._state.removed & ~self._is_safe).sum())
        self._allowed, self._is_safe = among & self._is_safe, None

    # The answer

    def _order(self) -> list[int]:
        """Places of the candidates that may be shown, as they are shown."""
        shown, question = self._ranking.shown, self._question
        if not question.diversify:
            return shown
        from retrieval.asking.diversity import diversified

        order: list[int] = []
        # Pool after pool: a later page goes on where the one before it ended.
        for start in range(0, len(shown), POOL * question.k):
            pool = np.array(shown[start : start + POOL * question.k])
            vectors = self._state.vectors(self._rows[pool], question.modality)
            places = diversified(self._similarities[pool], vectors, question.diversify)
            order += pool[places].tolist()
        return order

    def _hits(self, places: Sequence[int]) -> list["Hit"]:
        at = np.array(places, np.int64)
        return self._state.hits(self._rows[at], self._similarities[at])

    def _hidden(self, order: list[int]) -> dict[str, int]:
        """What was passed over between the page before and this one's end."""
        end = self._question.offset + self._question.k
        before = max(order[: self._question.offset], default=-1)
        last = max(order[:end]) if len(order) >= end else math.inf
        hidden = self._ranking.num_hidden(before, last)
        if self._num_hidden_by_search:
            hidden[UNSAFE] = self._num_hidden_by_search
        return hidden

    def _note_shortage(self, num_shown: int) -> None:
        question = self._question
        if num_shown < question.offset + question.k:
            num = max(num_shown - question.offset, 0)
            self._notes.append(f"{num:,} of the {question.k:,} asked for: there are no more")
