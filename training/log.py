"""A run's logs: the metrics of every few steps, and what happened to the run.

    RUN/metrics.jsonl   step, loss, grad_norm, lr, images_per_s, stall_percent; averages since the
                        line before
    RUN/events.jsonl    starts, resumes, damaged checkpoints

Object stores can't append, so a log is republished whole.
"""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infra import storage
from infra.errors import ShortfallError

PUBLISH_EVERY_S = 5.0
"""Metrics are published at most this often between checkpoints."""

Metrics = dict[str, Any]
OnLog = Callable[[Metrics], None]


def read_metrics(run: str) -> list[Metrics]:
    return _read_lines(storage.join(run, "metrics.jsonl"))


def read_events(run: str) -> list[dict[str, Any]]:
    return _read_lines(storage.join(run, "events.jsonl"))


def add_event(run: str, event: str, **details: Any) -> None:
    events = [*read_events(run), {"event": event, **details}]
    storage.publish_text(storage.join(run, "events.jsonl"), _to_lines(events))


class Log:
    """Collects losses on the device and writes a line of metrics every few steps.

    Nothing is read back from the device in between. A loss or gradient that isn't finite is found
    at the next line, which always comes before a checkpoint, so none is saved with such weights.
    """

    def __init__(
        self, run: str, batch_size: int, rank: int, num_workers: int, on_log: OnLog | None
    ) -> None:
        self.run, self.batch_size = run, batch_size
        self.rank, self.num_workers, self.on_log = rank, num_workers, on_log
        self.stalled_s = 0.0
        self._losses: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._lines: list[Metrics] = []
        self._since = self._published = time.perf_counter()

    def resume(self, step: int) -> None:
        """Go on after this step: what an earlier attempt logged beyond it is dropped."""
        self._lines = [line for line in read_metrics(self.run) if line["step"] <= step]
        self._since = time.perf_counter()

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)

    def flush(self, step: int, lr: float, publish: bool) -> None:
        losses = torch.stack(self._losses)
        if self.num_workers > 1:
            dist.all_reduce(losses)
            losses /= self.num_workers
        grad_norms = torch.stack(self._grad_norms)
        self._check_finite("loss", losses, step)
        self._check_finite("gradient's norm", grad_norms, step)
        now = time.perf_counter()
        elapsed_s = now - self._since
        line = {
            "step": step,
            "loss": losses.mean().item(),
            "grad_norm": grad_norms.mean().item(),
            "lr": lr,
            "images_per_s": round(self.batch_size * len(losses) / elapsed_s, 1),
            "stall_percent": round(100 * self.stalled_s / elapsed_s, 2),
        }
        self._since, self.stalled_s = now, 0.0
        self._losses.clear()
        self._grad_norms.clear()
        self._lines.append(line)
        if self.rank == 0:
            self._write(line, publish)

    def _check_finite(self, name: str, values: Tensor, last_step: int) -> None:
        for step, value in enumerate(values.tolist(), last_step - len(values) + 1):
            if not math.isfinite(value):
                raise ShortfallError(
                    f"{self.run}: the {name} is {value} at step {step}; the checkpoints before it "
                    "are kept; lower learning_rate or clip_norm and train in another RUN"
                )

    def _write(self, line: Metrics, publish: bool) -> None:
        if self.on_log is not None:
            self.on_log(line)
        if publish or time.perf_counter() - self._published > PUBLISH_EVERY_S:
            url = storage.join(self.run, "metrics.jsonl")
            storage.publish_text(url, _to_lines(self._lines))
            self._published = time.perf_counter()


def _read_lines(url: str) -> list[dict[str, Any]]:
    try:
        text = storage.read_text(url)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _to_lines(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
