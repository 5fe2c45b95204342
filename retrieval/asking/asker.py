"""Questions in, answers out: encode the terms, add them up, search, hide, fold and rank.

    asker = Asker(Retriever.open("corpus"))
    answer = asker.answer(Question(terms=parse_algebra("cat - cartoon"), k=40, dedup=True))

A question's vector is the sum of its terms' unit vectors times their weights, made a unit vector
again. Words and pictures are added as they are: docs/query.md says what else was tried. An Asker
may be used from any number of threads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from infra.errors import CarraraError
from pipeline.fetching.fetch_settings import FetchSettings
from retrieval.asking.aesthetics import rating_vector
from retrieval.asking.clock import Seconds, timed
from retrieval.asking.encoding import TermEncoder, unit
from retrieval.asking.faults import Faults
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
        return safety_rule(self.retriever.state)

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
        answers = self._answers(questions, Faults(is_strict=True))
        return [answers[place] for place in range(len(questions))]

    def answer_each(self, questions: Sequence[Question]) -> list[Answer | CarraraError]:
        """The same, but what can't be asked has its error in its place and holds up no other.

        Pictures of the web were fetched before: one that can't be ends it for all.
        """
        faults = Faults(is_strict=False)
        answers = self._answers(questions, faults)
        return [answers.get(place) or faults[place] for place in range(len(questions))]

    def _answers(self, questions: Sequence[Question], faults: Faults) -> dict[int, Answer]:
        """By place, of those without a fault."""
        state = self.retriever.state  # one state for all steps: row numbers are its own
        shared = Seconds(float)
        scopes: dict[int, Scope] = {}
        # Before the encoder, which may take seconds to load: most mistakes are found here.
        with timed(shared, "filter"):
            for place, question in enumerate(questions):
                with faults.noted(place):
                    scopes[place] = Scope.of(question, state)
        asked = {place: questions[place] for place in scopes}
        walks: dict[int, Walk] = {}
        for place, vector in self._vectors(asked, state, shared, faults).items():
            question, seconds = questions[place], Seconds(float)
            with faults.noted(place), timed(seconds, "filter"):
                moved, notes = _moved_to_rating(question, vector, state)
                walks[place] = Walk(question, scopes[place], moved, state, seconds, notes)
        with timed(shared, "search"):
            found = _search_together(walks, state)
        answers: dict[int, Answer] = {}
        for place, walk in walks.items():
            with faults.noted(place):
                answers[place] = walk.answer(*found[place])
        share = {step: spent / max(len(questions), 1) for step, spent in shared.items()}
        for answer in answers.values():
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
        state, strict = self.retriever.state, Faults(is_strict=True)
        (vector,) = self._terms.vectors([term], [0], state, False, Seconds(float), strict)
        return np.asarray(vector)

    def _vectors(
        self,
        questions: Mapping[int, Question],
        state: "Snapshot",
        seconds: Seconds,
        faults: Faults,
    ) -> dict[int, np.ndarray]:
        """The unit vectors [d] of those without a fault, by place."""
        sums = {place: np.zeros(state.manifest.dim) for place in questions}
        for multilingual in (False, True):
            owned = [
                (place, term)
                for place, question in questions.items()
                if question.multilingual == multilingual
                for term in question.terms
            ]
            places, terms = [place for place, _ in owned], [term for _, term in owned]
            vectors = self._terms.vectors(terms, places, state, multilingual, seconds, faults)
            for place, term, vector in zip(places, terms, vectors, strict=True):
                sums[place] += term.weight * vector
        units = {}
        for place, total in sums.items():
            if place not in faults:
                with faults.noted(place):
                    units[place] = unit(total, "query: its terms cancel each other out")
        return units


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
    walks: Mapping[int, Walk], state: "Snapshot"
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Each walk's first candidates: similarities and rows; one search for those that look alike."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, walk in walks.items():
        question = walk.question
        kind = (question.modality, question.where, walk.num_first, question.asked_by)
        alike.setdefault(kind, []).append(place)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for places in alike.values():
        first = walks[places[0]]
        question, vectors = first.question, np.stack([walks[place].vector for place in places])
        similarities, rows = state.neighbours(
            vectors, first.num_first, question.modality, first.allowed, question.asked_by
        )
        found |= dict(zip(places, zip(similarities, rows, strict=True), strict=True))
    return found
