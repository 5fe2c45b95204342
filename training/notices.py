"""Notices that the machine is about to be taken away, at which a checkpoint is due."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class Notice:
    name: str
    """Of what gave it; a notice of the same name is the same one."""
    ends_run: bool
    """Whether to end after the checkpoint, rather than train until the machine is gone."""


Notices = Callable[[], Notice | None]


def no_notices() -> Notice | None:
    return None


@contextmanager
def of_termination() -> Iterator[Notices]:
    """SIGTERM to this process, as schedulers send it before they kill."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield no_notices
        return
    is_given = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_given
        is_given = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: Notice("SIGTERM", ends_run=True) if is_given else None
    finally:
        signal.signal(signal.SIGTERM, before)


def of_preemption() -> Notice | None:
    """Ray's word that machines of this run's workers will be taken. All workers have to ask."""
    import ray.train

    info = ray.train.get_preemption_info()
    if info is None:
        return None
    return Notice(f"preemption of {', '.join(info.preempted_node_ids)}", ends_run=False)
