"""What a stage did, for people as a short table and for programs as one JSON object."""

import time
from dataclasses import asdict, dataclass, field
from types import TracebackType


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

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Stopwatch:
    """`with Stopwatch() as watch: ...` then `watch.seconds`."""

    seconds: float = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
