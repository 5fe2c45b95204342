"""Files of JSON lines. Object stores can't append, so such a file is published whole; a reader
finds lines that are whole, all up to some moment.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from infra import storage

PUBLISH_EVERY_S = 5.0
"""A growing file is published at most this often between the times that it must be."""
MAX_BYTES_PER_S = 200_000
"""And less often once it is long: so many are sent in the mean, however long the run."""
TAIL_BYTES = 65_536
"""More than a line has."""

Line = dict[str, Any]


def read_lines(url: str) -> list[Line]:
    """None where the file isn't there."""
    try:
        text = storage.read_text(url)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def last_line(url: str) -> Line | None:
    """Without reading all of the file; None where it isn't there, or was replaced meanwhile."""
    try:
        size = storage.size_bytes(url)
        first = max(0, size - TAIL_BYTES)
        tail = storage.read_range(url, first, size)
    except FileNotFoundError:
        return None
    # Of another version than the size, the range may begin and end in the middle of a line.
    whole = tail[: tail.rfind(b"\n") + 1].splitlines()[1 if first else 0 :]
    return json.loads(whole[-1]) if whole else None


def publish_lines(url: str, lines: Sequence[Line]) -> None:
    storage.publish_text(url, "".join(map(_as_text, lines)))


class GrowingFile:
    """Lines that are added one at a time, by one writer.

    `with file:` around the writing waits at its end for what a thread still publishes.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._lines: list[str] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log")
        self._under_way: Future[None] | None = None
        self._due = time.monotonic() + PUBLISH_EVERY_S

    def __enter__(self) -> "GrowingFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._look()

    def keep(self, is_kept: Callable[[Line], bool]) -> None:
        """Go on after these of the lines that are there."""
        self._lines = [_as_text(line) for line in read_lines(self._url) if is_kept(line)]

    def append(self, line: Line) -> None:
        self._lines.append(_as_text(line))

    def publish(self) -> None:
        """All lines are there when it returns."""
        if self._under_way is not None:
            wait([self._under_way])
        self._look()
        storage.publish_text(self._url, self._text())

    def publish_now_and_then(self) -> None:
        """Begin to, where it is time again; raises what kept the last time from succeeding."""
        self._look()
        if self._under_way is None and time.monotonic() >= self._due:
            self._under_way = self._thread.submit(storage.publish_text, self._url, self._text())

    def _look(self) -> None:
        if self._under_way is not None and self._under_way.done():
            done, self._under_way = self._under_way, None
            done.result()

    def _text(self) -> str:
        text = "".join(self._lines)
        self._due = time.monotonic() + max(PUBLISH_EVERY_S, len(text) / MAX_BYTES_PER_S)
        return text


def _as_text(line: Line) -> str:
    return json.dumps(line) + "\n"
