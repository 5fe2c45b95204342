"""Decoder processes beside a worker, fed in bounded measure while the worker fetches.

A picture that crashes, hangs or exhausts a decoder costs itself alone, and only after a fresh
decoder has failed on it too: then its reason is "decoder crashed", "too slow to decode" or "too
much memory". Bytes that wait for a decoder are bounded; fetching pauses for as long as they are too
many. Reads and writes no files.
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
from pipeline.downloading.feed import Answers, Feed
from pipeline.fetching.fetch_settings import Failure

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

    def __init__(self, decoder: Decoder, hang_s: float) -> None:
        self.decoder, self._hang_s = decoder, hang_s
        self.tasks: deque[_Task] = deque()
        self.deadline = 0.0
        """By when the first of them is to be answered."""

    def has_room(self, num_bytes: int) -> bool:
        return not self.tasks or (len(self.tasks) < NUM_AHEAD and num_bytes <= MAX_AHEAD_BYTES)

    def put(self, task: _Task) -> None:
        self.tasks.append(task)
        if len(self.tasks) == 1:
            self._begin()
        self.decoder.send(task.data)

    def take(self) -> _Outcome | None:
        """The first picture and what became of it; None: it is to be tried again."""
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

    def _lost(self, task: _Task, reason: str | None) -> _Outcome | None:
        """The first picture alone is to blame: a decoder answers it before it begins the next."""
        last_word = task.given_up(reason)
        if last_word:
            self.tasks.popleft()
        self.decoder.restart()
        self._begin()
        for waiting in self.tasks:
            self.decoder.send(waiting.data)
        return (task, last_word) if last_word else None

    def _begin(self) -> None:
        self.deadline = time.monotonic() + self._hang_s


class Decoders:
    """A worker's decoder processes; one thread at a time uses them."""

    def __init__(
        self,
        job: DecodeJob,
        num_decoders: int,
        max_waiting_bytes: int,
        program: Sequence[str] = (sys.executable, "-m", "pipeline.downloading.decoder"),
    ) -> None:
        self._hang_s = HANG_FACTOR * job.max_seconds
        self._max_waiting_bytes = max_waiting_bytes
        self._decoders = [Decoder(job, program) for _ in range(num_decoders)]
        for decoder in self._decoders:
            decoder.wait_until_ready()

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.stop()

    def decode_all(
        self, answers: Answers
    ) -> Generator[tuple[int, DecodedPicture | Failure], None, None]:
        """What becomes of each answer, in no set order; failures are handed through.

        `answers` is advanced in another thread, which waits while too many bytes wait here.
        """
        queues = [_Queue(decoder, self._hang_s) for decoder in self._decoders]
        feed = Feed(answers, self._max_waiting_bytes)
        try:
            while True:
                is_running = feed.is_running  # looked at before what it may have left
                yield from _hand_out(feed, queues)
                if feed.error is not None:
                    raise feed.error
                busy = [queue for queue in queues if queue.tasks]
                if not (busy or feed.answers or is_running):
                    return
                for task, picture in self._outcomes(feed, busy):
                    feed.done(len(task.data))
                    yield from _hand_out(feed, queues)  # first: decoders work while the caller does
                    yield task.place, picture
        finally:
            feed.close()
            for queue in queues:
                if queue.tasks:  # its answers are nobody's
                    queue.decoder.restart()

    def _outcomes(self, feed: Feed, busy: list[_Queue]) -> list[_Outcome]:
        """Of decoders that have answered, died or been silent too long; perhaps none."""
        if answered := self._wait(feed, busy):
            outcomes = [queue.take() for queue in answered]
        else:
            now = time.monotonic()
            outcomes = [queue.take_late() for queue in busy if queue.deadline <= now]
        return [outcome for outcome in outcomes if outcome is not None]

    def _wait(self, feed: Feed, busy: list[_Queue]) -> list[_Queue]:
        """Those with something to read, as soon as there are any or a picture for an idle one."""
        poller = select.poll()
        by_fd = {queue.decoder.fileno(): queue for queue in busy}
        for fd in by_fd:
            poller.register(fd, select.POLLIN)
        feed.is_awaited = len(busy) < len(self._decoders)
        if feed.is_awaited:
            poller.register(feed.fileno(), select.POLLIN)
        deadline = min((queue.deadline for queue in busy), default=float("inf"))
        wait_s = max(0.0, min(self._hang_s, deadline - time.monotonic()))
        if feed.is_awaited and feed.answers:
            wait_s = 0.0  # it came before anybody listened
        found = [fd for fd, _ in poller.poll(wait_s * 1000)]
        feed.is_awaited = False
        if feed.fileno() in found:
            feed.hear()
        return [by_fd[fd] for fd in found if fd in by_fd]


def _hand_out(feed: Feed, queues: list[_Queue]) -> Iterator[tuple[int, Failure]]:
    """Pictures go to decoders with room for them, failures on."""
    while feed.answers:
        place, answer = feed.answers[0]
        if isinstance(answer, Failure):
            feed.answers.popleft()
            yield place, answer
            continue
        queue = min(queues, key=lambda queue: len(queue.tasks))
        if not queue.has_room(len(answer.data)):
            return
        feed.answers.popleft()
        queue.put(_Task(place, answer.data))
