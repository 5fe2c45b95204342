"""Questions in, answers out: encode the terms, add them up, search, hide, fold and rank.

    asker = Asker(Retriever.open("corpus"))
    answer = asker.answer(Question(terms=parse_algebra("cat - cartoon"), k=40, dedup=True))

A question's vector is the sum of its terms' unit vectors times their weights, made a unit vector
again. Words and pictures are added as they are: docs/query.md says what else was tried. An Asker
may be used from any number of threads.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.fetching.fetch_settings import FetchSettings
from retrieval.asking.aesthetics import rating_vector
from retrieval.asking.clock import Seconds, timed
from retrieval.asking.encoding import TermEncoder, unit
from retrieval.asking.question import Answer, Question, Term
from retrieval.asking.safety import safety_rule
from retrieval.asking.walk import Scope, Walk

if TYPE_CHECKING:
    from retrieval.encoding.encoder import Encoder
    from retrieval.live.snapshot import Snapshot
    from retrieval.search import Retriever


class Asker:
    """Answers questions from one index."""

    def __init__(
        self,
        retriever: "Retriever",
        *,
        encoder: "Encoder | None" = None,
        fetch: FetchSettings | None = None,
        device: str = "cpu",
        quick_start: bool = False,
    ) -> None:
        """`quick_start`: for who asks once; the encoder is left out where a few words need none."""
        self.retriever = retriever
        self._terms = TermEncoder(
            retriever.encoder,
            encoder=encoder,
            fetch=fetch or FetchSettings(),
            device=device,
            quick_start=quick_start,
        )

    @property
    def safety(self) -> str | None:
        """The SQL that safe mode goes by; None: the corpus has no safety columns."""
        return safety_rule(self.retriever.root)

    @property
    def multilingual(self) -> str | None:
        """The text tower for other languages that shares the index's space; None: there is none."""
        from retrieval.encoding.towers import multilingual_of

        return multilingual_of(self.retriever.encoder)

    def answer(self, question: Question) -> Answer:
        (answer,) = self.answer_many([question])
        return answer

    def answer_many(self, questions: Sequence[Question]) -> list[Answer]:
        """The terms of all questions are encoded in one batch, and searched for in one.

        Raises InputError and ConfigError for what can't be asked.
        """
        state = self.retriever.state  # one state for all steps: row numbers are its own
        shared = Seconds(float)
        # Before the encoder, which may take seconds to load: most mistakes are found here.
        with timed(shared, "filter"):
            scopes = [Scope.of(question, state) for question in questions]
        vectors = self._vectors(questions, state, shared)
        walks = []
        for question, scope, vector in zip(questions, scopes, vectors, strict=True):
            seconds = Seconds(float)
            with timed(seconds, "filter"):
                moved, notes = _moved_to_rating(question, vector, state)
            walks.append(Walk(question, scope, moved, state, seconds, notes))
        with timed(shared, "search"):
            found = _search_together(walks, state)
        share = {step: spent / max(len(questions), 1) for step, spent in shared.items()}
        answers = [walk.answer(*candidates) for walk, candidates in zip(walks, found, strict=True)]
        for answer in answers:
            steps = {**share, **answer.seconds}
            answer.seconds = {
                step: share.get(step, 0) + answer.seconds.get(step, 0) for step in steps
            }
        return answers

    def with_pictures(self, questions: Sequence[Question]) -> list[Question]:
        """The same questions, their pictures of the web fetched; for who shows them, too."""
        terms = [term for question in questions for term in question.terms]
        fetched = iter(self._terms.with_pictures(terms, Seconds(float)))
        return [
            question.model_copy(update={"terms": [next(fetched) for _ in question.terms]})
            for question in questions
        ]

    def embed(self, term: Term) -> np.ndarray:
        """The unit vector [d] of one term, whatever its weight."""
        (vector,) = self._terms.vectors([term], self.retriever.state, False, Seconds(float))
        return np.asarray(vector)

    def _vectors(
        self, questions: Sequence[Question], state: "Snapshot", seconds: Seconds
    ) -> list[np.ndarray]:
        """Each question's unit vector [d]."""
        sums = [np.zeros(state.manifest.dim) for _ in questions]
        for multilingual in (False, True):
            owned = [
                (number, term)
                for number, question in enumerate(questions)
                if question.multilingual == multilingual
                for term in question.terms
            ]
            terms = [term for _, term in owned]
            vectors = self._terms.vectors(terms, state, multilingual, seconds)
            for (number, term), vector in zip(owned, vectors, strict=True):
                sums[number] += term.weight * vector
        return [unit(total, "query: its terms cancel each other out") for total in sums]


def _moved_to_rating(
    question: Question, vector: np.ndarray, state: "Snapshot"
) -> tuple[np.ndarray, list[str]]:
    if question.aesthetic_score is None or not question.aesthetic_weight:
        return vector, []
    towards, note = rating_vector(state, question.aesthetic_score)
    if towards is None:
        return vector, [note]
    moved = vector + question.aesthetic_weight * towards
    return unit(moved, "query: aesthetic_weight takes all of it away"), [note]


def _search_together(
    walks: Sequence[Walk], state: "Snapshot"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each walk's first candidates: similarities and rows; one search for those that look alike."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, walk in enumerate(walks):
        question = walk.question
        alike.setdefault((question.modality, question.where, walk.num_first), []).append(place)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for places in alike.values():
        first = walks[places[0]]
        vectors = np.stack([walks[place].vector for place in places])
        similarities, rows = state.neighbours(
            vectors, first.num_first, first.question.modality, first.allowed
        )
        found |= dict(zip(places, zip(similarities, rows, strict=True), strict=True))
    return [found[place] for place in range(len(walks))]
