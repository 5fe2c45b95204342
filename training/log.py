"""A run's logs: the metrics of every few steps, and what happened to the run.

    RUN/metrics.jsonl   averages since the line before: step, loss, grad_norm, lr, samples (a digest
                        of what was trained on), and the figures of training.watching.physics
    RUN/events.jsonl    starts, resumes, damaged checkpoints, losses that are not finite

training/lines.py says how they get there.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from infra import storage
from infra.errors import ShortfallError
from training.lines import GrowingFile, Line, publish_lines, read_lines

if TYPE_CHECKING:
    from training.watching.watch import Watch

NUM_NAMED = 3
"""Samples that an error of one line names."""

Metrics = Line
OnLog = Callable[[Metrics], None]


def metrics_url(run: str) -> str:
    return storage.join(run, "metrics.jsonl")


def events_url(run: str) -> str:
    return storage.join(run, "events.jsonl")


def read_metrics(run: str) -> list[Metrics]:
    return read_lines(metrics_url(run))


def read_events(run: str) -> list[Line]:
    return read_lines(events_url(run))


def add_event(run: str, event: str, **details: Any) -> None:
    publish_lines(events_url(run), [*read_events(run), {"event": event, **details}])


class Log:
    """Collects losses on the device and writes a line of metrics every few steps.

    Nothing is read back from the device in between. A loss or gradient that isn't finite is found
    at the next line, which always comes before a checkpoint, so none is saved with such weights.
    `with log:` around the training waits at its end for what is still being published.
    """

    def __init__(self, watch: "Watch", first_position: int, on_log: OnLog | None = None) -> None:
        """`first_position`: of this worker's part in the global batch."""
        self.run, self.watch, self.on_log = watch.config.run, watch, on_log
        self._first_position = first_position
        self._losses: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._uids: list[Sequence[str]] = []
        self._file = GrowingFile(metrics_url(self.run))

    def __enter__(self) -> "Log":
        self._file.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._file.__exit__(*failure)

    def resume(self, step: int) -> None:
        """Go on after this step: what an earlier attempt logged beyond it is dropped."""
        if self.watch.is_first:
            self._file.keep(lambda line: line["step"] <= step)
        self.watch.begin(step)

    def add(self, loss: Tensor, grad_norm: Tensor, uids: Sequence[str]) -> None:
        """Of a step: this worker's share of the loss, the gradient's norm and its samples."""
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        self._uids.append(uids)

    def flush(self, step: int, lr: float, publish: bool) -> None:
        with self.watch.clock.spent("logging"):
            losses, samples = self._of_all_workers(step)
            grad_norms = torch.stack(self._grad_norms)
            self._check_finite(losses, grad_norms, step)
        line = {
            "step": step,
            "loss": losses.mean().item(),
            "grad_norm": grad_norms.mean().item(),
            "lr": lr,
            "samples": samples,
        } | self.watch.figures(len(losses))
        for collected in (self._losses, self._grad_norms, self._uids):
            collected.clear()
        if self.watch.is_first:
            with self.watch.clock.spent("logging"):
                self._write(line, publish)

    def _of_all_workers(self, step: int) -> tuple[Tensor, str]:
        """The loss of every step, and the digest of the samples of all of them."""
        losses = torch.stack(self._losses)
        first = step - len(self._uids)
        digests = [
            samples_digest(uids, first + i, self._first_position)
            for i, uids in enumerate(self._uids)
        ]
        total = np.array(digests, np.uint64).sum(dtype=np.uint64).astype(np.int64)
        digest = torch.tensor(int(total), device=losses.device)
        if self.watch.num_workers > 1:
            dist.all_reduce(losses)
            dist.all_reduce(digest)  # modulo 2^64, as all of it
        return losses, f"{digest.item() % 2**64:016x}"

    def _check_finite(self, losses: Tensor, grad_norms: Tensor, last_step: int) -> None:
        for i, values in enumerate(zip(losses.tolist(), grad_norms.tolist(), strict=True)):
            for what, value in zip(("loss", "gradient's norm"), values, strict=True):
                if not math.isfinite(value):
                    self._stop(what, value, last_step - len(losses) + 1 + i, i)

    def _stop(self, what: str, value: float, step: int, i: int) -> NoReturn:
        """At the `i`-th of the steps collected; all workers find the same fault."""
        uids = self._uids_of_all_workers(i)
        if self.watch.is_first:
            add_event(self.run, "not finite", what=what, step=step, uids=uids)
        raise ShortfallError(
            f"{self.run}: the {what} is {value} at step {step}; the checkpoints before it are "
            f"kept; the batch is {', '.join(uids[:NUM_NAMED])}, ... (all of it in events.jsonl); "
            "lower learning_rate or clip_norm and train in another RUN"
        )

    def _uids_of_all_workers(self, step: int) -> list[str]:
        parts: list[Sequence[str]] = [()] * self.watch.num_workers
        if self.watch.num_workers > 1:
            dist.all_gather_object(parts, self._uids[step])
        else:
            parts = [self._uids[step]]
        return [uid for part in parts for uid in part]

    def _write(self, line: Metrics, publish: bool) -> None:
        if self.on_log is not None:
            self.on_log(line)
        self.watch.on_line(line)
        self._file.append(line)
        if publish:  # a checkpoint must not know of more steps than the log
            self._file.publish()
        else:
            self._file.publish_now_and_then()


def samples_digest(uids: Sequence[str], step: int, first_position: int) -> int:
    """Of samples at these places of a step, modulo 2^64: a sum over them, and so the same however
    many workers share them.

    A term is half of the uid, itself a sha256, times an odd number that depends on the place.
    """
    halves = np.frombuffer(bytes.fromhex("".join(uid[:16] for uid in uids)), ">u8")
    positions = np.arange(len(uids), dtype=np.uint64) + np.uint64(first_position)
    places = positions + (np.uint64(step) << np.uint64(32))
    return int((halves.astype(np.uint64) * (_mixed(places) | np.uint64(1))).sum(dtype=np.uint64))


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): neighbours get unlike numbers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
