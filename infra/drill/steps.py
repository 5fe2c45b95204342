"""The rehearsal's steps: what each may take, and what it took. Nothing is waited for without end.

Prints  {"told": "..."} a step, which `infra.drill.drill` passes on
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class OverdueError(Exception):
    """What was waited for, and for how long."""


class Budget:
    """The time of a whole rehearsal, of which every step gets what is left at most."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def of(self, at_most_s: float) -> float:
        return max(0.0, min(at_most_s, self._until - time.monotonic()))


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float, every_s: float) -> None:
    """Raises OverdueError, saying `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise OverdueError(f"waited for {what}, {timeout_s:.0f} s in vain")
        time.sleep(every_s)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Tells how long it took, and how it ended where it was given up."""
    started = time.monotonic()
    try:
        yield
    except OverdueError as error:
        tell(f"{what}: {error}")
        raise
    tell(f"{what}: {time.monotonic() - started:.1f} s")


def tell(what: str) -> None:
    print(json.dumps({"told": what}), flush=True)
