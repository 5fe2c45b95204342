"""What a run publishes, told to whoever started it, wherever its workers are.

Reads   RUN/events.jsonl, RUN/metrics.jsonl, each when it has changed
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from infra import storage
from infra.errors import StorageError
from infra.progress import Bar, repeated
from infra.watching.events import tell
from infra.watching.run import current
from training.lines import last_line, read_lines
from training.log import Metrics, events_url, metrics_url
from training.watching.console import note

Found = TypeVar("Found")

POLL_EVERY_S = 1.0
UNTOLD = ("start", "not finite")
"""Events that need no words of their own: nothing happened, or the error that ends the run says
it."""


@contextmanager
def events_told(run: str) -> Iterator[None]:
    """Every event of within is told, in one line."""
    with _repeated_to_the_end(_Events(run).look):
        yield


@contextmanager
def followed(run: str, bar: Bar, first_step: int) -> Iterator[None]:
    """The same; and the bar is moved by what the first worker publishes."""
    events, metrics = _Events(run), _Metrics(run, bar, first_step)

    def look() -> None:
        events.look()
        metrics.look()

    with _repeated_to_the_end(look):
        yield


def show(bar: Bar, line: Metrics, step: int) -> None:
    """A line of metrics; `step` is that of the line before."""
    if (watched := current()) is not None:
        watched.values |= {
            name: float(value) for name, value in line.items() if isinstance(value, int | float)
        }
    bar.advance(max(0, line["step"] - step), note=note(line))


@contextmanager
def _repeated_to_the_end(look: Callable[[], None]) -> Iterator[None]:
    def try_to_look() -> None:
        with suppress(StorageError):  # what can't be read now is read the next time
            look()

    try:
        with repeated(try_to_look, POLL_EVERY_S):
            yield
    finally:
        try_to_look()


class Changing:
    """A file that is read again when it is another."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._version: str | None = None

    def read(self, how: Callable[[str], Found]) -> Found | None:
        """None where nothing is new."""
        version = storage.version(self._url)
        if version is None or version == self._version:
            return None
        found = how(self._url)
        self._version = version
        return found


class _Events:
    def __init__(self, run: str) -> None:
        self._file = Changing(events_url(run))
        self._num_told = len(self._file.read(read_lines) or [])

    def look(self) -> None:
        events = self._file.read(read_lines)
        if events is None:
            return
        new, self._num_told = events[self._num_told :], len(events)
        for event in new:
            if event["event"] not in UNTOLD:
                told = event.get("message") or f"from step {event['step']}"
                tell(str(event["event"]), f"train: {event['event']}: {told}", of_run=event)


class _Metrics:
    def __init__(self, run: str, bar: Bar, step: int) -> None:
        self._file = Changing(metrics_url(run))
        self._bar, self._step = bar, step

    def look(self) -> None:
        line = self._file.read(last_line)
        if line is not None and line["step"] > self._step:
            show(self._bar, line, self._step)
            self._step = line["step"]
