"""Where a worker's time went between two lines of the log.

What a worker waits for by itself (data, a checkpoint, the log) is measured around it. On a GPU the
processor runs ahead: there the wait is the time for which the GPU had nothing to do, taken between
two CUDA events and read when the log waits for the GPU anyway, so that measuring costs no stop.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Wait = Literal["data", "checkpoint", "logging", "communication"]

SAMPLE_EVERY = 10
"""Steps between those that torch times the communication of."""


@dataclass(frozen=True)
class Lap:
    """What passed since the lap before."""

    seconds: float
    waits_s: dict[Wait, float]

    def percent(self, wait: Wait) -> float | None:
        """Of the time; None where it can't be told."""
        if wait not in self.waits_s:
            return None
        return round(min(100.0, 100 * self.waits_s[wait] / self.seconds), 2)


class _Event(Protocol):
    """torch's, whose own types say nothing."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end: "_Event") -> float: ...


class Clock:
    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._waits_s: defaultdict[Wait, float] = defaultdict(float)
        self._events: list[tuple[Wait, _Event, _Event]] = []
        self._since = time.perf_counter()

    @contextmanager
    def spent(self, wait: Wait) -> Iterator[None]:
        """What passes inside, nested in no other, is time spent on that."""
        if self._on_gpu:
            start, end = _event(), _event()
            start.record()
            yield
            end.record()
            self._events.append((wait, start, end))
        else:
            started = time.perf_counter()
            yield
            self.add(wait, time.perf_counter() - started)

    def add(self, wait: Wait, seconds: float) -> None:
        self._waits_s[wait] += seconds

    def restart(self) -> None:
        """Leave out what has passed so far."""
        self.lap()

    def lap(self) -> Lap:
        """Call it where the GPU has just been waited for."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        pending = []
        for wait, start, end in self._events:
            if end.query():
                self.add(wait, start.elapsed_time(end) / 1000)
            else:
                pending.append((wait, start, end))
        self._events = pending
        waits_s: dict[Wait, float] = {"data": 0.0, "checkpoint": 0.0, "logging": 0.0}
        waits_s.update(self._waits_s)
        self._waits_s.clear()
        return Lap(max(seconds, 1e-9), waits_s)


def _event() -> _Event:
    make: Any = torch.cuda.Event
    event: _Event = make(enable_timing=True)
    return event


class CommunicationTimer:
    """How long a step waits for the other workers' gradients, as DistributedDataParallel measures
    it: what of the communication does not overlap with the backward pass.

    Waiting for a slower worker counts as well. Alone there is nothing to wait for; how other ways
    to spread a network wait (FSDP) torch does not tell.
    """

    def __init__(self, network: nn.Module, num_workers: int) -> None:
        self._num_workers = num_workers
        self._spread = _spread(network)
        if self._spread is not None:
            self._spread._set_ddp_runtime_logging_sample_rate(SAMPLE_EVERY)

    def seconds_a_step(self) -> float | None:
        """In the step that was timed last; None where it can't be told."""
        if self._num_workers == 1:
            return 0.0
        if self._spread is None:
            return None
        times = self._spread._get_ddp_logging_data()
        if "backward_comm_time" not in times:
            return None
        exposed = times["backward_comm_time"] - times["backward_compute_comm_overlap_time"]
        return float(max(0, exposed)) / 1e9


def _spread(network: nn.Module) -> Any:
    """The network where torch spreads it, else None; Any, for what it tells by has no types."""
    return network if isinstance(network, DistributedDataParallel) else None
