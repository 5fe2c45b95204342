"""Answers of the network, advanced by a thread of its own at most so many bytes ahead.

Reads and writes no files.
"""

import socket
import threading
from collections import deque
from collections.abc import Iterator

from pipeline.fetching.fetch_settings import Failure, Fetched

Answers = Iterator[tuple[int, Fetched | Failure]]


class Feed:
    """Advances `answers` in a thread of its own, at most so many bytes ahead of what is done."""

    def __init__(self, answers: Answers, max_waiting_bytes: int) -> None:
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
