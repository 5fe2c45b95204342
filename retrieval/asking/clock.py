"""Seconds by step of an answer, for people and for metrics."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

Seconds = defaultdict[str, float]


@contextmanager
def timed(seconds: Seconds, step: str) -> Iterator[None]:
    """Adds the length of the `with` to its step."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] += time.perf_counter() - start
