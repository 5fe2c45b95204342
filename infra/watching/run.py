"""A run: one command at work on a corpus or a training, and what can be told of it meanwhile.

Writes  HOME/runs/<time>-<stage>.json   state, settings, progress while it runs, summary at its end

HOME is the corpus or training that the command writes to. The record appears with the first
progress, so that a command which refuses its input leaves nothing; then it is published anew every
few seconds, and whoever was killed is known by a record that went silent.
"""

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from infra import storage
from infra.config import StageConfig
from infra.errors import CarraraError, StorageError
from infra.summary import Summary

PUBLISH_EVERY_S = 10.0


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass
class Task:
    """A part of a stage's work that is counted."""

    name: str
    unit: str
    total: int | None
    done: int = 0
    note: str = ""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        if self.total is None or not self.rate:
            return None
        return max(self.total - self.done, 0) / self.rate


class Run:
    """One command's execution. `home` None: nothing is recorded."""

    def __init__(self, stage: str, home: str | None, config: StageConfig) -> None:
        self.stage, self.home = stage, home
        self._started = now()
        self.name = f"{self._started.strftime('%Y%m%dT%H%M%S.%f')}-{stage}"
        self._config, self._published = config, 0.0
        self.state = State.RUNNING
        self.error: str | None = None
        self.summary: Summary | None = None
        self.tasks: list[Task] = []
        self.values: dict[str, float] = {}
        """The latest of what the stage measures of itself, by name."""
        self.num_failed = 0
        """Items that failed for good."""
        self.dashboard: str | None = None
        """Ray's, of the cluster that works for it, as the cluster tells it."""

    @property
    def has_begun(self) -> bool:
        return bool(self.tasks)

    def begin(self, task: Task) -> None:
        self.tasks.append(task)
        self._try_to_publish()

    def advanced(self) -> None:
        if time.monotonic() - self._published >= PUBLISH_EVERY_S:
            self._try_to_publish()

    def end(
        self, state: State, *, summary: Summary | None = None, error: str | None = None
    ) -> None:
        self.state, self.summary, self.error = state, summary, error
        if summary is not None or self.has_begun:
            self._publish()

    def record(self) -> dict[str, Any]:
        told = {} if self.summary is None else self.summary.as_json()
        return {
            "stage": self.stage,
            **told,
            "state": self.state.value,
            "error": self.error,
            "started": self._started.isoformat(),
            "updated": now().isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "config_digest": self._config.digest(),
            "progress": [asdict(task) for task in self.tasks],
            "values": self.values,
            "dashboard": self.dashboard,
        }

    def _try_to_publish(self) -> None:
        """What can't be recorded now is recorded the next time."""
        with suppress(StorageError):
            self._publish()

    def _publish(self) -> None:
        self._published = time.monotonic()
        if self.home is not None:
            text = json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n"
            storage.publish_text(record_url(self.home, self.name), text)


def record_url(home: str, name: str) -> str:
    return storage.join(home, "runs", f"{name}.json")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


_current: Run | None = None


def current() -> Run | None:
    """The run of this process, if a command is at work."""
    return _current


@contextmanager
def at_work(run: Run) -> Iterator[Run]:
    """`run` is the current one within; how it ended is recorded where an error ends it."""
    global _current
    outer, _current = _current, run
    try:
        yield run
    except KeyboardInterrupt:
        _end(run, State.INTERRUPTED, "interrupted")
        raise
    except CarraraError as error:
        _end(run, State.FAILED, str(error))
        raise
    except Exception as error:  # recorded, then raised on
        _end(run, State.FAILED, f"{type(error).__name__}: {error}")
        raise
    finally:
        _current = outer


def _end(run: Run, state: State, error: str) -> None:
    # What ended it is what the user must hear of, not that the record can't be written.
    with suppress(StorageError):
        run.end(state, error=error)
