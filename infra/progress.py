"""Progress on stderr: a bar on a terminal, elsewhere a plain line every few seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

LINE_EVERY_S = 1.5


class Bar(Protocol):
    def advance(self, num: int, note: str = "") -> None:
        """Say that `num` more units are done, and perhaps a word on how it goes."""


@contextmanager
def track(description: str, total: int | None, unit: str) -> Iterator[Bar]:
    """A bar over `total` units, if it is known how many, for the length of the `with`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        bar = _Lines(description, total, unit)
        yield bar
        bar.close()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(description, total=total, rate="", note="")
        yield _Drawn(progress, task)


class _Drawn:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, num: int, note: str = "") -> None:
        self._progress.advance(self._task, num)
        task = self._progress.tasks[self._task]
        rate = f"{task.completed / task.elapsed:,.0f}/s" if task.elapsed else ""
        self._progress.update(self._task, rate=rate, note=note or task.fields["note"])


class _Lines:
    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._written, self._note = 0, 0, ""
        self._start = self._last = time.monotonic()

    def advance(self, num: int, note: str = "") -> None:
        self._done += num
        self._note = note or self._note
        if time.monotonic() - self._last >= LINE_EVERY_S:
            self._write()

    def close(self) -> None:
        if self._written != self._done and time.monotonic() - self._start >= 2:
            self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        self._written = self._done
        elapsed_s = max(self._last - self._start, 1e-9)
        rate = self._done / elapsed_s
        eta = of_total = ""
        if self._total is not None:
            eta = f", {max(self._total - self._done, 0) / rate:,.0f} s to go" if rate else ""
            of_total = f"/{self._total:,}"
        note = f", {self._note}" if self._note else ""
        line = f"{self._description}: {self._done:,}{of_total} {self._unit}"
        print(f"{line}, {rate:,.1f}/s{eta}{note}", file=sys.stderr, flush=True)
