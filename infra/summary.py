"""What a stage did, for people as a short table and for programs as one JSON object."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PIPED_WIDTH = 200
"""Columns of a table that goes to a file or a pipe, where nothing need be cut."""


@dataclass
class Summary:
    """Returned by every stage's `run`; `carrara.py` prints it."""

    stage: str
    num_in: int
    """Rows, samples or shards that the stage was given; `unit` says which."""
    num_out: int
    unit: str = "samples"
    counts: dict[str, int] = field(default_factory=dict)
    """What became of them, by status or reason."""
    seconds: float = 0.0
    outputs: dict[str, str] = field(default_factory=dict)
    """What was written, by name."""
    details: dict[str, object] = field(default_factory=dict)
    """Whatever else the stage measured; JSON-able."""
    table: list[dict[str, object]] = field(default_factory=list)
    """Rows to show people in place of the counts, such as a query's hits."""
    shortfall: str = ""
    """What is wrong with what the table tells: one line, printed after it; exit code 1."""
    draw: Callable[[], str | None] | None = None
    """In place of the table where a terminal can show more; None: it can't."""

    def as_json(self) -> dict[str, object]:
        fields = asdict(self)
        del fields["draw"]
        return fields


class Stopwatch:
    """`with Stopwatch() as watch: ...` then `watch.seconds`."""

    seconds: float = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


def print_summary(summary: Summary, *, as_json: bool) -> None:
    """One JSON object on stdout, or a short table for people."""
    if as_json:
        print(json.dumps(summary.as_json(), ensure_ascii=False))
        return
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    drawing = summary.draw() if summary.draw is not None and console.is_terminal else None
    if drawing is not None:
        sys.stdout.write(drawing)  # rich would count its escape sequences as text
    elif summary.table:
        console.print(table_of(summary.table))
    counts = ", ".join(f"{num:,} {reason}" for reason, num in summary.counts.items())
    line = (
        f"[bold]{summary.stage}[/]: {summary.num_in:,} {summary.unit} in, {summary.num_out:,} out"
    )
    console.print(f"{line} in {summary.seconds:,.1f} s" + (f" ({counts})" if counts else ""))
    for name, url in summary.outputs.items():
        console.print(f"  {name}: {escape(url)}", soft_wrap=True)


def table_of(rows: list[dict[str, object]]) -> Table:
    """Rows with the same keys as a table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape(f"{value:,}" if isinstance(value, int) else str(value))
