"""Who is let in and who works: bounded queues, batches and threads, so that load can't end it.

The event loop reads and writes. Questions wait together and are answered in batches, as many as
have come while the last batch was under way; those with filters, large pictures or very many hits
have threads of their own, and so have the fetches of a stranger's pictures, which take seconds.
What waited too long is refused rather than answered to nobody, and beyond a number of requests the
next is refused at once: 503 with Retry-After, from how fast answers go out now.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import CarraraError
from retrieval.asking.question import Answer, Question
from retrieval.serving.errors import BusyError

Result = TypeVar("Result")

MAX_BATCH = 32
"""Questions encoded and searched at once: more would make the first of them wait for the last."""

NUM_BATCHES_AT_ONCE = 2
"""One is encoded while the other's samples are looked up."""

NUM_RECENT = 256
"""Answers that the present speed is told by."""

MAX_RETRY_AFTER_S = 60.0


class Admission:
    """Counts requests in and out."""

    def __init__(self, max_waiting: int) -> None:
        self.num_inside = 0
        self._max_waiting = max_waiting
        self._ends: deque[float] = deque(maxlen=NUM_RECENT)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Raises BusyError where too many are inside."""
        if self.num_inside >= self._max_waiting:
            raise self.busy(f"{self.num_inside} requests are waiting already")
        self.num_inside += 1
        try:
            yield
        finally:
            self.num_inside -= 1
            self._ends.append(time.monotonic())

    def busy(self, reason: str) -> BusyError:
        return BusyError(self._retry_after_s(), reason)

    def _retry_after_s(self) -> float:
        """When those inside will be out, as fast as it goes now."""
        if len(self._ends) < 2:
            return 1.0
        seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(MAX_RETRY_AFTER_S, max(1.0, seconds * self.num_inside))


class Lane:
    """Threads for one kind of work; those who wait too long for one are sent away."""

    def __init__(self, name: str, num_threads: int, max_wait_s: float, admission: Admission):
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._max_wait_s = max_wait_s
        self._admission = admission

    async def run(self, work: Callable[[], Result]) -> Result:
        due = time.monotonic() + self._max_wait_s

        def begin() -> Result:
            if time.monotonic() > due:
                raise self.late()
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, begin)

    def late(self) -> BusyError:
        return self._admission.busy(f"waited {self._max_wait_s:g} s for its turn")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class _Waiting:
    question: Question
    answer: "asyncio.Future[Answer]"
    due: float


class Batcher:
    """Questions to one index that come at about the same time, answered together."""

    def __init__(
        self,
        answer_each: Callable[[Sequence[Question]], Sequence[Answer | CarraraError]],
        lane: Lane,
        max_wait_s: float,
        on_batch: Callable[[int], None],
    ) -> None:
        self._answer_each = answer_each
        self._lane = lane
        self._max_wait_s = max_wait_s
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._drains: set[asyncio.Task[None]] = set()

    async def answer(self, question: Question) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(question, future, time.monotonic() + self._max_wait_s))
        if len(self._drains) < NUM_BATCHES_AT_ONCE:
            drain = asyncio.create_task(self._drain())
            self._drains.add(drain)
            drain.add_done_callback(self._drains.discard)
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            await self._answer(self._in_time(batch))

    def _in_time(self, batch: list[_Waiting]) -> list[_Waiting]:
        now = time.monotonic()
        for one in batch:
            if one.due < now and not one.answer.done():
                one.answer.set_exception(self._lane.late())
        return [one for one in batch if not one.answer.done()]

    async def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        self._on_batch(len(batch))
        questions = [one.question for one in batch]
        try:
            answers = await self._lane.run(lambda: self._answer_each(questions))
        except Exception as error:  # raised by the requests that wait
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, CarraraError):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
