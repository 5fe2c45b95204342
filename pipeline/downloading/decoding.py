"""Decoder processes beside a worker, fed in bounded measure while the worker fetches.

A picture that crashes, hangs or exhausts a decoder costs itself alone, and only after a fresh
decoder has failed on it too: then its reason is "decoder crashed", "too slow to decode" or "too
much memory". Bytes that wait for a decoder are bounded; fetching pauses for as long as they are too
many.

One thread fetches and hands out: two would hand Python's lock to each other at every picture, which
takes more than either does for one. Reads and writes no files.
"""

import hashlib
import select
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from pipeline.downloading.decoder import TOO_MUCH_MEMORY, Decoded, DecodeJob
from pipeline.downloading.decoder_process import (
    DECODER_CRASHED,
    NUM_KILLS,
    SEND_BUFFER_BYTES,
    TOO_SLOW,
    DecodedPicture,
    Decoder,
    LostError,
)
from pipeline.fetching.fetch_settings import Failure, Fetched

Answers = Iterator[tuple[int, Fetched | Failure] | None]
"""None: nothing came yet, and perhaps a decoder has spoken."""

NUM_TRIES = 2
"""Decoders that a picture may bring down before it is given up: one may have been unlucky."""
HANG_FACTOR = 5
"""Times the CPU seconds that are allowed: a decoder silent so long waits for something."""
NUM_AHEAD = 2
"""Pictures that a decoder has at once: with a second one at hand it goes on by itself while the
worker, which has much else to do, comes round to the first one's answer."""
MAX_AHEAD_BYTES = SEND_BUFFER_BYTES // 2
"""Of such a second picture: it must fit the socket, headers of the kernel's own included, while the
decoder is at an answer that does not. Else the two would wait for each other for good."""


@dataclass
class _Task:
    """A picture on its way through decoders."""

    place: int
    data: bytes
    num_tries: int = 0
    num_kills: int = 0

    def given_up(self, reason: str | None) -> DecodedPicture | None:
        """After one more decoder was lost on it: the last word on the picture, if it is that."""
        self.num_tries += reason is not None
        self.num_kills += reason is None
        if self.num_tries < NUM_TRIES and self.num_kills < NUM_KILLS:
            return None
        sha256 = hashlib.sha256(self.data).hexdigest()
        return DecodedPicture(Decoded(sha256, reason=reason or DECODER_CRASHED), b"")


_Outcome = tuple[_Task, DecodedPicture]


class _Queue:
    """A decoder and the pictures that it has: the one under way, and perhaps the next."""

    def __init__(self, decoder: Decoder, hang_s: float, epoll: select.epoll) -> None:
        self.decoder, self._hang_s, self._epoll = decoder, hang_s, epoll
        self.tasks: deque[_Task] = deque()
        self.deadline = float("inf")
        """By when the first of them is to be answered."""
        epoll.register(decoder, select.EPOLLIN)

    def has_room(self, num_bytes: int) -> bool:
        return not self.tasks or (len(self.tasks) < NUM_AHEAD and num_bytes <= MAX_AHEAD_BYTES)

    def put(self, task: _Task) -> None:
        self.tasks.append(task)
        if len(self.tasks) == 1:
            self._begin()
        self.decoder.send(task.data)

    def take(self) -> _Outcome | None:
        """The first picture and what became of it; None: it is to be tried again.

        To be called when the decoder has spoken, or hung up.
        """
        if not self.tasks:  # killed while it had nothing to do
            self.restart()
            return None
        task = self.tasks[0]
        try:
            picture = self.decoder.receive()
        except LostError as lost:
            return self._lost(task, lost.reason)
        if picture.facts.reason == TOO_MUCH_MEMORY:
            return self._lost(task, TOO_MUCH_MEMORY)
        self.tasks.popleft()
        self._begin()
        return task, picture

    def take_late(self) -> _Outcome | None:
        """As `take`, of a decoder that has been silent beyond the deadline."""
        return self._lost(self.tasks[0], TOO_SLOW)

    def restart(self) -> None:
        self.decoder.restart()
        self._epoll.register(self.decoder, select.EPOLLIN)  # a closed socket has left by itself

    def clear(self) -> None:
        if self.tasks:  # its answers are nobody's
            self.tasks.clear()
            self._begin()
            self.restart()

    def _lost(self, task: _Task, reason: str | None) -> _Outcome | None:
        """The first picture alone is to blame: a decoder answers it before it begins the next."""
        last_word = task.given_up(reason)
        if last_word:
            self.tasks.popleft()
        self.restart()
        self._begin()
        for waiting in self.tasks:
            self.decoder.send(waiting.data)
        return (task, last_word) if last_word else None

    def _begin(self) -> None:
        self.deadline = time.monotonic() + self._hang_s if self.tasks else float("inf")


class Decoders:
    """A worker's decoder processes; one batch at a time uses them."""

    def __init__(
        self,
        job: DecodeJob,
        num_decoders: int,
        max_waiting_bytes: int,
        program: Sequence[str] = (sys.executable, "-m", "pipeline.downloading.decoder"),
    ) -> None:
        self._max_waiting_bytes = max_waiting_bytes
        self._epoll = select.epoll()
        decoders = [Decoder(job, program) for _ in range(num_decoders)]
        for decoder in decoders:
            decoder.wait_until_ready()
        hang_s = HANG_FACTOR * job.max_seconds
        self._queues = [_Queue(decoder, hang_s, self._epoll) for decoder in decoders]

    def fileno(self) -> int:
        """Readable when a decoder has spoken: then `answers` of `decode_all` is to yield None."""
        return self._epoll.fileno()

    def close(self) -> None:
        for queue in self._queues:
            queue.decoder.stop()
        self._epoll.close()

    def decode_all(
        self, answers: Answers
    ) -> Generator[tuple[int, DecodedPicture | Failure], None, None]:
        """What becomes of each answer, in no set order; failures are handed through.

        `answers` is not advanced while too many bytes wait here, until half of them are done: to
        change over at each picture would cost more.
        """
        waiting: deque[_Task] = deque()
        num_bytes = 0  # of what waits and of what decoders have
        is_open, is_full = True, False
        try:
            while is_open or any(queue.tasks for queue in self._queues):
                if is_open and not is_full:
                    try:
                        answer = next(answers)
                    except StopIteration:
                        is_open = False
                        continue
                    if answer is not None:
                        place, what = answer
                        if isinstance(what, Failure):
                            yield place, what
                        else:
                            waiting.append(_Task(place, what.data))
                            num_bytes += len(what.data)
                            is_full = num_bytes > self._max_waiting_bytes
                            self._hand_out(waiting)
                        continue
                for task, picture in self._outcomes(may_wait=is_full or not is_open):
                    num_bytes -= len(task.data)
                    is_full = is_full and num_bytes > self._max_waiting_bytes // 2
                    self._hand_out(waiting)  # first: decoders work while the caller does
                    yield task.place, picture
        finally:
            for queue in self._queues:
                queue.clear()

    def _hand_out(self, waiting: deque[_Task]) -> None:
        while waiting:
            queue = min(self._queues, key=lambda queue: len(queue.tasks))
            if not queue.has_room(len(waiting[0].data)):
                return
            queue.put(waiting.popleft())

    def _outcomes(self, *, may_wait: bool) -> list[_Outcome]:
        """Of decoders that have answered, died or been silent too long; perhaps none."""
        deadline = min(queue.deadline for queue in self._queues)
        wait_s = max(0.0, deadline - time.monotonic()) if may_wait else 0.0
        spoken = {fd for fd, _ in self._epoll.poll(wait_s)}
        now = time.monotonic()
        outcomes = []
        for queue in self._queues:
            if queue.decoder.fileno() in spoken:
                outcomes.append(queue.take())
            elif queue.deadline <= now:
                outcomes.append(queue.take_late())
        return [outcome for outcome in outcomes if outcome is not None]
