"""Decoder processes beside a worker, fed in bounded measure while the worker fetches.

A picture that crashes, hangs or exhausts a decoder costs itself alone, and only after a fresh
decoder has failed on it too: then its reason is "decoder crashed", "too slow to decode" or "too
much memory". Bytes that wait for a decoder are bounded; fetching stops for as long as they are too
many. Reads and writes no files.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from pipeline.decoder import READY, TOO_MUCH_MEMORY, Decoded, DecodeJob
from pipeline.fetch_settings import Failure, Fetched

DECODER_CRASHED = "decoder crashed"
TOO_SLOW = "too slow to decode"

NUM_TRIES = 2
"""Decoders that a picture may bring down before it is given up: one may have been unlucky."""
NUM_KILLS = 10
"""Decoders that may be killed from outside (spot loss, the kernel short of memory) at a picture."""
START_TIMEOUT_S = 120.0
HANG_FACTOR = 5
"""Times the CPU seconds that are allowed: a decoder silent so long waits for something."""


@dataclass(frozen=True)
class DecodedPicture:
    """A decoder's answer, and the bytes that the shard keeps; none where there is a reason."""

    facts: Decoded
    data: bytes = field(repr=False)


class Decoder:
    """One child process, started again when it was lost."""

    def __init__(self, job: DecodeJob, program: Sequence[str]) -> None:
        self._job, self._program = job, program
        self._start()

    def __call__(self, data: bytes) -> DecodedPicture:
        num_tries = num_kills = 0
        while True:
            answer = self._ask(data)
            reason = answer.facts.reason if isinstance(answer, DecodedPicture) else answer
            if isinstance(answer, DecodedPicture) and reason != TOO_MUCH_MEMORY:
                return answer
            self.stop()
            self._start()
            num_tries += reason is not None
            num_kills += reason is None
            if num_tries >= NUM_TRIES or num_kills >= NUM_KILLS:
                return _given_up(data, reason or DECODER_CRASHED)

    def stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        for _ in range(NUM_KILLS):
            self._spawn()
            if self._says_ready():
                return
        raise RuntimeError(f"no decoder starts: the last ended with {self._process.returncode}")

    def _says_ready(self) -> bool:
        """False where it was killed from outside before it could."""
        try:
            if self._connection.poll(START_TIMEOUT_S):
                return self._connection.recv_bytes() == READY
        except (EOFError, ConnectionError):
            if _reason_of_end(self._process.wait()) is None:
                return False
        self.stop()
        raise RuntimeError(f"the decoder does not start (status {self._process.returncode})")

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

    def _ask(self, data: bytes) -> DecodedPicture | str | None:
        """The answer, or why there is none; None where the decoder was killed from outside."""
        connection = self._connection
        try:
            connection.send_bytes(data)
            if not connection.poll(HANG_FACTOR * self._job.max_seconds):
                return TOO_SLOW
            facts = Decoded(**json.loads(connection.recv_bytes()))
            return DecodedPicture(facts, connection.recv_bytes())
        except (EOFError, ConnectionError):
            return _reason_of_end(self._process.wait())


_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""A decoder decodes one picture at a time; threads that idle would still take address space."""


def _import_path() -> list[str]:
    """This process's, which may have been given the program by Ray; the program itself first."""
    return [str(Path(__file__).parents[1]), *(path for path in sys.path if path)]


def _reason_of_end(status: int) -> str | None:
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        return None
    return TOO_SLOW if status == -signal.SIGXCPU else DECODER_CRASHED


def _given_up(data: bytes, reason: str) -> DecodedPicture:
    return DecodedPicture(Decoded(hashlib.sha256(data).hexdigest(), reason=reason), b"")


class _Budget:
    """Bytes that may be held at once; one picture alone may be larger."""

    def __init__(self, num_bytes: int) -> None:
        self._limit, self._held = num_bytes, 0
        self._changed = threading.Condition()

    def take(self, num_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + num_bytes <= self._limit)
            self._held += num_bytes

    def give_back(self, num_bytes: int) -> None:
        with self._changed:
            self._held -= num_bytes
            self._changed.notify()

    def lift(self) -> None:
        """Nobody gives back any more, and nobody need wait."""
        with self._changed:
            self._limit = sys.maxsize
            self._changed.notify()


@dataclass(frozen=True)
class _Batch:
    """One call of `decode_all`: what its threads share."""

    budget: _Budget
    results: "SimpleQueue[_Result]" = field(default_factory=SimpleQueue)
    abandoned: threading.Event = field(default_factory=threading.Event)


class Decoders:
    """A worker's decoder processes; a thread attends to each, and dies after it."""

    def __init__(
        self,
        job: DecodeJob,
        num_decoders: int,
        max_waiting_bytes: int,
        program: Sequence[str] = (sys.executable, "-m", "pipeline.decoder"),
    ) -> None:
        self._max_waiting_bytes = max_waiting_bytes
        self._work: SimpleQueue[tuple[_Batch, int, bytes] | None] = SimpleQueue()
        started: SimpleQueue[BaseException | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._attend, args=(job, program, started), daemon=True)
            for _ in range(num_decoders)
        ]
        for thread in self._threads:
            thread.start()
        for error in [started.get() for _ in self._threads]:
            if error is not None:
                raise error

    def close(self) -> None:
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def decode_all(
        self, answers: Iterator[tuple[int, Fetched | Failure]]
    ) -> Generator[tuple[int, DecodedPicture | Failure], None, None]:
        """What becomes of each answer, in no set order; failures are handed through.

        `answers` is advanced in a thread of its own, which waits while too many bytes wait.
        """
        batch = _Batch(_Budget(self._max_waiting_bytes))
        feeder = threading.Thread(target=self._feed, args=(batch, answers), daemon=True)
        feeder.start()
        num_done, num_in_all = 0, None
        try:
            while num_done != num_in_all:
                result = batch.results.get()
                if isinstance(result, BaseException):
                    raise result
                if isinstance(result, int):
                    num_in_all = result
                    continue
                place, num_bytes, outcome = result
                batch.budget.give_back(num_bytes)
                num_done += 1
                yield place, outcome
        finally:
            batch.abandoned.set()
            batch.budget.lift()
            feeder.join()

    def _feed(self, batch: _Batch, answers: Iterator[tuple[int, Fetched | Failure]]) -> None:
        num_fed = 0
        try:
            for place, answer in answers:
                if batch.abandoned.is_set():
                    break
                num_fed += 1
                if isinstance(answer, Failure):
                    batch.results.put((place, 0, answer))
                    continue
                batch.budget.take(len(answer.data))
                self._work.put((batch, place, answer.data))
        except BaseException as error:  # whatever it is, it is the caller's to see
            batch.results.put(error)
        else:
            batch.results.put(num_fed)

    def _attend(
        self,
        job: DecodeJob,
        program: Sequence[str],
        started: "SimpleQueue[BaseException | None]",
    ) -> None:
        try:
            decoder = Decoder(job, program)
        except BaseException as error:  # whatever it is, it is the caller's to see
            started.put(error)
            return
        started.put(None)
        while (work := self._work.get()) is not None:
            batch, place, data = work
            if batch.abandoned.is_set():
                continue
            try:
                batch.results.put((place, len(data), decoder(data)))
            except BaseException as error:  # whatever it is, it is the caller's to see
                batch.results.put(error)
        decoder.stop()


_Result = tuple[int, int, DecodedPicture | Failure] | int | BaseException
"""Place, bytes held and outcome; or the number of all, after the last was fed; or what went wrong
in a thread."""
