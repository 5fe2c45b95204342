"""The runs that a corpus or a training remembers, and how each stands now.

Reads   HOME/runs/*.json
"""

import datetime
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, Field

from infra import storage
from infra.records import read_record
from infra.watching.run import PUBLISH_EVERY_S, State, Task, now

SILENT_AFTER_S = 30 * PUBLISH_EVERY_S
"""A long item, or a slow store, may keep a record waiting; a run that lives says more by then."""


class RecordedRun(BaseModel):
    """A record in runs/; those of earlier versions have the summary alone."""

    name: str
    home: str
    stage: str
    state: State = State.DONE
    error: str | None = None
    started: datetime.datetime | None = None
    updated: datetime.datetime | None = None
    host: str = ""
    pid: int = 0
    config_digest: str = ""
    progress: list[Task] = []
    dashboard: str | None = Field(default=None, pattern="^https?://")
    num_in: int = 0
    num_out: int = 0
    unit: str = ""
    counts: dict[str, int] = {}
    seconds_told: float = Field(default=0.0, alias="seconds")
    outputs: dict[str, str] = {}
    details: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """The summary's, or for a run without one from its start to its last sign of life."""
        if self.state is State.DONE or self.started is None or self.updated is None:
            return self.seconds_told
        return (self.updated - self.started).total_seconds()

    @property
    def standing(self) -> str:
        """`state`, or of a run that should be at work "killed" or "silent" if it isn't."""
        if self.state is not State.RUNNING:
            return self.state.value
        if self.host == socket.gethostname() and not _lives(self.pid):
            return "killed"
        is_silent = self.updated is None or (now() - self.updated).total_seconds() > SILENT_AFTER_S
        return "silent" if is_silent else self.state.value

    @property
    def digests(self) -> dict[str, str]:
        """Of what it made and of its settings."""
        told = {
            name.removesuffix("_digest").removesuffix(" digest"): value
            for name, value in self.details.items()
            if name.endswith("digest") and isinstance(value, str)
        }
        return told | ({"config": self.config_digest} if self.config_digest else {})


def iter_runs(homes: Iterable[str]) -> Iterator[RecordedRun]:
    """Oldest first; raises DamagedError for a record that isn't one."""
    found = []
    for home in homes:
        folder = storage.join(home, "runs")
        names = [name for name in storage.list_names(folder) if name.endswith(".json")]
        found += [(name, home, storage.join(folder, name)) for name in names]
    for name, home, url in sorted(found):
        stem = name.removesuffix(".json")
        yield read_record(url, RecordedRun, name=stem, home=home)


def finished_runs(homes: Iterable[str]) -> list[RecordedRun]:
    return [run for run in iter_runs(homes) if run.state is State.DONE]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
