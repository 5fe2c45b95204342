"""Two runs, line by line: the samples, the losses, and the weights that they end in."""

from dataclasses import dataclass
from typing import Any

from infra import storage
from infra.records import read_mapping
from training.log import read_events, read_metrics


@dataclass(frozen=True)
class Trace:
    """What a run left, of every step."""

    samples: list[str]
    """Digests over (step, position, uid), the same for any number of workers."""
    losses: list[tuple[float, float]]
    """And the gradients' norms."""
    weights: dict[str, str]
    """sha256 of the files of the last checkpoint."""
    num_workers: int
    resumed_at: list[int]


def read_trace(run: str, num_steps: int) -> Trace:
    lines = read_metrics(run)
    events = [event for event in read_events(run) if event["event"] in {"start", "resume"}]
    last = storage.join(run, "checkpoints", f"step-{num_steps:06d}", "checkpoint.json")
    return Trace(
        samples=[line["samples"] for line in lines],
        losses=[(line["loss"], line["grad_norm"]) for line in lines],
        weights=dict(read_mapping(last)["sha256"]),
        num_workers=events[-1]["num_workers"],
        resumed_at=[event["step"] for event in events if event["event"] == "resume"],
    )


@dataclass(frozen=True)
class Comparison:
    trace: Trace
    same_samples: bool
    same_losses: bool
    same_weights: bool
    largest_difference: float
    """Of a loss, relative."""
    faults: list[str]

    def row(self) -> dict[str, Any]:
        """For people."""
        return {
            "workers": self.trace.num_workers,
            "resumed at": ", ".join(map(str, self.trace.resumed_at)) or "-",
            "steps": len(self.trace.samples),
            "samples": "same" if self.same_samples else "OTHER",
            "losses": "same bits" if self.same_losses else f"to {self.largest_difference:.0e}",
            "weights": "same bytes" if self.same_weights else "other",
        }


def compare(trace: Trace, other: Trace, same_count: bool) -> Comparison:
    """`same_count`: of workers; only then must the arithmetic be the same to the last bit."""
    faults = []
    if trace.samples != other.samples:
        faults.append(f"other samples from step {_first(trace.samples, other.samples)} on")
    if same_count and trace.losses != other.losses:
        faults.append(f"other losses from step {_first(trace.losses, other.losses)} on")
    if same_count and trace.weights != other.weights:
        names = [name for name in other.weights if trace.weights.get(name) != other.weights[name]]
        faults.append(f"other bytes at the end in {', '.join(names)}")
    pairs = zip(trace.losses, other.losses, strict=False)
    return Comparison(
        trace=trace,
        same_samples=trace.samples == other.samples,
        same_losses=trace.losses == other.losses,
        same_weights=trace.weights == other.weights,
        largest_difference=max((abs(a - b) / abs(b) for (a, _), (b, _) in pairs), default=0.0),
        faults=faults,
    )


def _first(one: list[Any], other: list[Any]) -> int:
    """The step, from 1, at which they begin to differ."""
    pairs = zip(one, other, strict=False)
    differing = (i for i, (a, b) in enumerate(pairs, 1) if a != b)
    return next(differing, min(len(one), len(other)) + 1)
