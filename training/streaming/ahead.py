"""Batches made ahead of the step that asks for them.

Writes  RUN/ledger/, where samples were taken down while the run went on
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from training.streaming.batch import Batch
from training.streaming.feeding import Feeder, Pending, feeder
from training.streaming.reading import TakenDownError
from training.streaming.takedowns import note_takedowns

if TYPE_CHECKING:
    from training.data import SampleStream


@contextmanager
def prefetched(
    stream: "SampleStream", steps: range, positions: range, depth: int = 4
) -> Iterator[Iterator[Batch]]:
    """The batches of these steps in order, made ahead."""
    with feeder(stream, positions) as maker:
        ahead = _Ahead(stream, maker, steps, positions, depth)
        try:
            yield ahead.batches()
        finally:
            ahead.stop()


class _Ahead:
    """A thread that begins batches, `depth` of them before they are asked for."""

    def __init__(
        self, stream: "SampleStream", maker: Feeder, steps: range, positions: range, depth: int
    ) -> None:
        self._stream, self._maker, self._steps, self._positions = stream, maker, steps, positions
        self._ready: queue.Queue[Pending | BaseException] = queue.Queue(maxsize=depth)
        self._is_stopped = threading.Event()
        self._noted: list[str] | None = None
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[Batch]:
        for step in self._steps:
            outcome = self._ready.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield self._checked(step, outcome)

    def stop(self) -> None:
        self._is_stopped.set()
        self._thread.join()

    def _checked(self, step: int, pending: Pending) -> Batch:
        """Made anew as long as it has anything that was taken down since it was begun."""
        while True:
            try:
                batch = pending.result()
            except TakenDownError:
                pending = self._maker.begin(step, follow=True)
                continue
            gone = self._stream.gone
            if gone:
                self._note(step)
            if not gone or gone.isdisjoint(batch.uids):
                return batch
            pending = self._maker.begin(step, follow=True)

    def _note(self, step: int) -> None:
        """In the ledger, once for every state of the corpora."""
        digests = self._stream.digests
        if digests != self._noted and self._stream.settings.run:
            note_takedowns(self._stream.settings.run, step, self._positions, digests)
        self._noted = digests

    def _produce(self) -> None:
        try:
            for step in self._steps:
                if not self._put(self._begun(step)):
                    return
        except BaseException as error:  # carried to the consumer, which raises it
            self._put(error)

    def _begun(self, step: int) -> Pending:
        """A corpus that goes to the device is read at the first step, and may lose samples then."""
        while True:
            try:
                return self._maker.begin(step)
            except TakenDownError:
                self._stream.follow()

    def _put(self, outcome: Pending | BaseException) -> bool:
        while not self._is_stopped.is_set():
            self._stream.follow_now_and_then()
            try:
                self._ready.put(outcome, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
