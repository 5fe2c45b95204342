"""Decoder processes beside a worker, fed in bounded measure while the worker fetches.

A picture that crashes, hangs or exhausts a decoder costs itself alone, and only after a fresh
decoder has failed on it too: then its reason is "decoder crashed", "too slow to decode" or "too
much memory". Bytes that wait for a decoder are bounded; fetching pauses for as long as they are too
many. Reads and writes no files.
"""

import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.downloading.decoder import READY, TOO_MUCH_MEMORY, Decoded, DecodeJob, unpack_answer
from pipeline.fetching.fetch_settings import Failure, Fetched

DECODER_CRASHED = "decoder crashed"
TOO_SLOW = "too slow to decode"

NUM_TRIES = 2
"""Decoders that a picture may bring down before it is given up: one may have been unlucky."""
NUM_KILLS = 10
"""Decoders that may be killed from outside (spot loss, the kernel short of memory) at a picture."""
START_TIMEOUT_S = 120.0
HANG_FACTOR = 5
"""Times the CPU seconds that are allowed: a decoder silent so long waits for something."""

_ENVIRONMENT = {
    # A decoder decodes one picture at a time; threads that idle would still take address space.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    # glibc would give pixels back to the kernel after every picture, to be zeroed for the next.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


@dataclass(frozen=True)
class DecodedPicture:
    """A decoder's answer, and the bytes that the shard keeps; none where there is a reason."""

    facts: Decoded
    data: bytes = field(repr=False)


class _LostError(Exception):
    """A decoder gave no answer. `reason` is None where it was killed from outside."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Decoder:
    """One child process, started again when it was lost."""

    def __init__(self, job: DecodeJob, program: Sequence[str]) -> None:
        self._job, self._program = job, program
        self._spawn()

    def fileno(self) -> int:
        return self._connection.fileno()

    def wait_until_ready(self) -> None:
        for _ in range(NUM_KILLS):
            with suppress(EOFError, ConnectionError):
                if self._connection.poll(START_TIMEOUT_S):
                    assert self._connection.recv_bytes() == READY
                    return
            status = self.stop()
            if status not in _FROM_OUTSIDE:
                break
            self._spawn()
        raise RuntimeError(f"no decoder starts: the last ended with status {status}")

    def restart(self) -> None:
        self.stop()
        self._spawn()
        self.wait_until_ready()

    def stop(self) -> int:
        """Returns the status with which it ended, perhaps long before."""
        self._connection.close()
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return status

    def send(self, data: bytes) -> None:
        """One picture; `receive` when there is something to read. A dead one says so there."""
        with suppress(ConnectionError):
            self._connection.send_bytes(data)

    def receive(self) -> DecodedPicture:
        try:
            return DecodedPicture(*unpack_answer(self._connection.recv_bytes()))
        except (EOFError, ConnectionError):
            raise _LostError(_reason_of_end(self.stop())) from None

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fd, job = str(theirs.fileno()), self._job.model_dump_json()
            self._process = subprocess.Popen(
                [*self._program, fd, str(os.getpid()), job],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(_import_path())},
            )
        self._connection = Connection(ours.detach())


_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


def _reason_of_end(status: int) -> str | None:
    if status in _FROM_OUTSIDE:
        return None
    return TOO_SLOW if status == -signal.SIGXCPU else DECODER_CRASHED


def _import_path() -> list[str]:
    """This process's, which may have been given the program by Ray; the program itself first."""
    return [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]


@dataclass
class _Task:
    """A picture on its way through decoders."""

    place: int
    data: bytes
    num_tries: int = 0
    num_kills: int = 0
    deadline: float = 0.0

    def given_up(self, reason: str | None) -> DecodedPicture | None:
        """After one more decoder was lost on it: the last word on the picture, if it is that."""
        self.num_tries += reason is not None
        self.num_kills += reason is None
        if self.num_tries < NUM_TRIES and self.num_kills < NUM_KILLS:
            return None
        sha256 = hashlib.sha256(self.data).hexdigest()
        return DecodedPicture(Decoded(sha256, reason=reason or DECODER_CRASHED), b"")


_Answers = Iterator[tuple[int, Fetched | Failure]]


class _Feed:
    """Advances `answers` in a thread of its own, at most so many bytes ahead of what is done."""

    def __init__(self, answers: _Answers, max_waiting_bytes: int) -> None:
        self.answers: deque[tuple[int, Fetched | Failure]] = deque()
        self.error: BaseException | None = None
        self.is_awaited = False
        self.is_running = True
        self._source = answers
        self._limit, self._held = max_waiting_bytes, 0
        self._room = threading.Condition()
        self._is_abandoned = False
        self._bell, self._ringer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable after something came while `is_awaited`."""
        return self._bell.fileno()

    def hear(self) -> None:
        self._bell.recv(64)

    def done(self, num_bytes: int) -> None:
        with self._room:
            self._held -= num_bytes
            if self._held <= self._limit // 2:
                self._room.notify()

    def close(self) -> None:
        with self._room:
            self._is_abandoned = True
            self._room.notify()
        self._thread.join()
        self._bell.close()
        self._ringer.close()

    def _run(self) -> None:
        try:
            for place, answer in self._source:
                num_bytes = len(answer.data) if isinstance(answer, Fetched) else 0
                if not self._wait_for_room(num_bytes):
                    break
                self.answers.append((place, answer))
                if self.is_awaited:
                    self._ringer.send(b"!")
        except BaseException as error:  # whatever it is, it is the caller's to see
            self.error = error
        self.is_running = False  # before the bell, after which nobody listens for more
        self._ringer.send(b"!")

    def _wait_for_room(self, num_bytes: int) -> bool:
        """False where nobody wants it any more. One picture alone may be larger than the limit.

        Who has to wait waits until half is done: to be woken for each picture costs more than to
        fetch it.
        """
        with self._room:
            if self._held and num_bytes and self._held + num_bytes > self._limit:
                self._room.wait_for(lambda: self._is_abandoned or self._held <= self._limit // 2)
            self._held += num_bytes
            return not self._is_abandoned


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
        self, answers: _Answers
    ) -> Generator[tuple[int, DecodedPicture | Failure], None, None]:
        """What becomes of each answer, in no set order; failures are handed through.

        `answers` is advanced in another thread, which waits while too many bytes wait here.
        """
        idle = list(self._decoders)
        busy: dict[Decoder, _Task] = {}
        feed = _Feed(answers, self._max_waiting_bytes)
        try:
            while True:
                is_running = feed.is_running  # looked at before what it may have left
                while feed.answers and (idle or isinstance(feed.answers[0][1], Failure)):
                    place, answer = feed.answers.popleft()
                    if isinstance(answer, Failure):
                        yield place, answer
                    else:
                        self._begin(idle.pop(), _Task(place, answer.data), busy)
                if feed.error is not None:
                    raise feed.error
                if not (busy or feed.answers or is_running):
                    return
                for decoder in self._ready(feed, busy):
                    task = busy.pop(decoder)
                    outcome = self._outcome(decoder, task)
                    if outcome is None:
                        self._begin(decoder, task, busy)
                        continue
                    idle.append(decoder)
                    self._begin_next(feed, idle, busy)
                    feed.done(len(task.data))
                    yield task.place, outcome
        finally:
            feed.close()
            for decoder in busy:  # its answer is nobody's
                decoder.restart()

    def _begin_next(self, feed: _Feed, idle: list[Decoder], busy: dict[Decoder, _Task]) -> None:
        """A decoder need not wait until the caller is done with what it decoded last."""
        if feed.answers and isinstance(feed.answers[0][1], Fetched):
            place, answer = feed.answers.popleft()
            assert isinstance(answer, Fetched)
            self._begin(idle.pop(), _Task(place, answer.data), busy)

    def _begin(self, decoder: Decoder, task: _Task, busy: dict[Decoder, _Task]) -> None:
        task.deadline = time.monotonic() + self._hang_s
        busy[decoder] = task
        decoder.send(task.data)

    def _ready(self, feed: _Feed, busy: dict[Decoder, _Task]) -> list[Decoder]:
        """Decoders that have answered, died or been silent too long."""
        poller = select.poll()
        by_fd = {decoder.fileno(): decoder for decoder in busy}
        for fd in by_fd:
            poller.register(fd, select.POLLIN)
        is_full = len(busy) == len(self._decoders)
        feed.is_awaited = not is_full
        if not is_full:
            poller.register(feed.fileno(), select.POLLIN)
        now = time.monotonic()
        wait_s = min((task.deadline - now for task in busy.values()), default=self._hang_s)
        if feed.answers and not is_full:
            wait_s = 0.0  # it came before anybody listened
        found = [fd for fd, _ in poller.poll(max(0.0, wait_s) * 1000)]
        feed.is_awaited = False
        if feed.fileno() in found:
            feed.hear()
        ready = [by_fd[fd] for fd in found if fd in by_fd]
        return ready or [d for d, task in busy.items() if task.deadline <= time.monotonic()]

    def _outcome(self, decoder: Decoder, task: _Task) -> DecodedPicture | None:
        """None: to be tried again."""
        if task.deadline <= time.monotonic():
            decoder.restart()
            return task.given_up(TOO_SLOW)
        try:
            picture = decoder.receive()
        except _LostError as lost:
            decoder.restart()
            return task.given_up(lost.reason)
        if picture.facts.reason != TOO_MUCH_MEMORY:
            return picture
        decoder.restart()
        return task.given_up(TOO_MUCH_MEMORY)
