"""The service's state and its one way to an answer: check, fetch, batch, search, render.

Everything that computes runs in the lanes of admission.py; what is here only waits for them.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from infra.errors import InputError
from infra.summary import Stopwatch
from retrieval.asking.question import Answer, Question, Term
from retrieval.encoding.pictures import check_picture
from retrieval.serving.admission import Admission, Batcher, Lane
from retrieval.serving.copies import Copies
from retrieval.serving.indices import Indices, Served
from retrieval.serving.metrics import Metrics
from retrieval.serving.settings import ServeSettings
from retrieval.serving.thumbnails import Thumbnails

Result = TypeVar("Result")

NUM_FETCHES = 16
"""Strangers' pictures fetched at once; each is a thread that waits for a network."""

MAX_QUICK = 500
"""Hits; a question that reaches further would hold up the others of its batch."""

MAX_QUICK_AREA = 4_000_000
"""Pixels; a larger picture takes so long to decode that it would, too."""


class Service:
    """Everything that is served, and who works for it."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings.max_waiting)
        self.indices = Indices.open(settings)
        by_name = self.indices.by_name
        self.thumbnails = {name: Thumbnails(one.retriever) for name, one in by_name.items()}
        self.copies = {name: Copies(one.asker) for name, one in by_name.items()}

        def lane(name: str, num_threads: int) -> Lane:
            return Lane(name, num_threads, settings.max_wait_s, self.admission)

        self._quick = lane("batch", 2 * len(self.indices.by_name))
        self._slow = lane("single", settings.num_threads)
        self._fetches = lane("fetch", NUM_FETCHES)
        self._batchers = {
            name: Batcher(
                served.asker.answer_each,
                self._quick,
                settings.max_wait_s,
                self.metrics.batch_size.observe,
            )
            for name, served in self.indices.by_name.items()
        }

    async def prepared(self, served: Served, question: Question) -> Question:
        """Its pictures fetched, and all held against the limits before more is spent on it.

        Raises InputError for what can't be asked, BusyError where its turn did not come.
        """
        self._check(served, question)
        return await self._with_pictures(served, question)

    async def answer(self, served: Served, question: Question) -> Answer:
        """Of a question that is prepared; raises as that does."""
        if _is_quick(question):
            answer = await self._batchers[served.name].answer(question)
        else:
            answer = await self._slow.run(lambda: served.asker.answer(question))
        self.metrics.note_answer(answer.seconds)
        return answer

    async def compute(self, work: Callable[[], Result]) -> Result:
        """What reads or computes for more than a moment, off the event loop."""
        return await self._slow.run(work)

    def warm_up(self) -> None:
        """Load what the first questions would wait for."""
        for served in self.indices.by_name.values():
            served.asker.answer(Question(terms=[Term(text="a picture")], k=1))

    async def keep_fresh(self) -> None:
        """Until cancelled: take up new indices and takedowns."""
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            for served in self.indices.by_name.values():
                if await asyncio.to_thread(served.refresh):
                    self.metrics.refreshes.labels(served.name).inc()
                self.metrics.rows.labels(served.name).set(served.retriever.num_rows)

    def close(self) -> None:
        for lane in (self._quick, self._slow, self._fetches):
            lane.close()

    def _check(self, served: Served, question: Question) -> None:
        """What every question is held against before anything is spent on it."""
        reach = question.offset + question.k
        if reach > self.settings.max_results:
            raise InputError(
                f"k {question.k} from {question.offset}: reaches beyond the "
                f"{self.settings.max_results:,} hits that this service gives"
            )
        for term in question.terms:
            if term.image is not None:
                self._check_picture(term.image)
            dim = served.retriever.manifest.dim
            if term.embedding is not None and len(term.embedding) != dim:
                raise InputError(
                    f"embedding of {len(term.embedding)} numbers; this index takes {dim}"
                )

    def _check_picture(self, data: bytes) -> None:
        try:
            check_picture(data, self.settings.max_image_area)
        except InputError as error:
            raise InputError(f"image: {error}") from None

    async def _with_pictures(self, served: Served, question: Question) -> Question:
        """Those of the web fetched, in the lane for waiting; raises InputError where that fails."""
        if all(term.image_url is None for term in question.terms):
            return question

        def fetched() -> Question:
            with Stopwatch() as watch:
                (found,) = served.asker.with_pictures([question])
            self.metrics.note_answer({"fetch": watch.seconds})
            self._check(served, found)
            return found

        return await self._fetches.run(fetched)


def service_of(request: Request) -> Service:
    """That of the application which is asked."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _is_quick(question: Question) -> bool:
    headers = [check_picture(term.image) for term in question.terms if term.image is not None]
    area = sum(header.width * header.height for header in headers)
    reach = question.offset + question.k
    return area <= MAX_QUICK_AREA and question.where is None and reach <= MAX_QUICK
