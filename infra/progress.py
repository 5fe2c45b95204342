"""Progress on stderr: a bar on a terminal, elsewhere a plain line every few seconds, with
`--log json` one for programs. The run's record and its metrics follow it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from infra.watching.events import logs_json, tell
from infra.watching.run import Run, Task, current

LINE_EVERY_S = 1.5


class Bar(Protocol):
    def advance(self, num: int, note: str = "") -> None:
        """Say that `num` more units are done, and perhaps a word on how it goes."""


@contextmanager
def track(description: str, total: int | None, unit: str) -> Iterator[Bar]:
    """A bar over `total` units, if it is known how many, for the length of the `with`."""
    task = Task(description, unit, total)
    run = current()
    if run is not None:
        run.begin(task)
    with _shown(task) as shown:
        yield _Counted(task, shown, run)


@contextmanager
def repeated(call: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls it again and again from a thread, for as long as the `with` takes."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_s):
            call()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Shown(Protocol):
    """Where progress is drawn or written."""

    def update(self) -> None:
        """The task has gone on."""


class _Counted:
    """Keeps the task's count, and tells the run and whoever shows it."""

    def __init__(self, task: Task, shown: _Shown, run: Run | None) -> None:
        self._task, self._shown, self._run = task, shown, run
        self._start = time.monotonic()

    def advance(self, num: int, note: str = "") -> None:
        task = self._task
        task.done += num
        task.note = note or task.note
        task.seconds = time.monotonic() - self._start
        self._shown.update()
        if self._run is not None:
            self._run.advanced()


@contextmanager
def _shown(task: Task) -> Iterator[_Shown]:
    console = Console(stderr=True)
    if logs_json() or not console.is_terminal:
        lines = _Lines(task)
        yield lines
        lines.close()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{task.unit} {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task(task.name, total=task.total, rate="", note="")
        yield _Drawn(task, progress, bar)


class _Drawn:
    def __init__(self, task: Task, progress: Progress, bar: TaskID) -> None:
        self._task, self._progress, self._bar = task, progress, bar

    def update(self) -> None:
        task = self._task
        rate = f"{task.rate:,.0f}/s" if task.rate else ""
        self._progress.update(self._bar, completed=task.done, rate=rate, note=task.note)


class _Lines:
    def __init__(self, task: Task) -> None:
        self._task, self._written = task, 0
        self._start = self._last = time.monotonic()

    def update(self) -> None:
        if time.monotonic() - self._last >= LINE_EVERY_S:
            self._write()

    def close(self) -> None:
        if self._written != self._task.done and time.monotonic() - self._start >= 2:
            self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        task, self._written = self._task, self._task.done
        of_total = "" if task.total is None else f"/{task.total:,}"
        eta = "" if task.seconds_left is None else f", {task.seconds_left:,.0f} s to go"
        note = f", {task.note}" if task.note else ""
        line = f"{task.name}: {task.done:,}{of_total} {task.unit}, {task.rate:,.1f}/s{eta}{note}"
        fields = asdict(task) | {"eta_s": task.seconds_left}
        tell("progress", line, **fields)
