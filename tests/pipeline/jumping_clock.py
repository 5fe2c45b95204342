"""Carrara's command line under a clock of which every look sees another year.

    python -m tests.pipeline.jumping_clock '[0, 1e9]' ARGUMENTS

adds these seconds to the wall clock, one after the other and over again. Deadlines and waits go by
the monotonic clock, which nobody sets.
"""

import datetime
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence

JUMPS = (0, 1e9, -1e9, 86400, -1e6)


def run(arguments: Sequence[str], jumps: Sequence[float] = JUMPS) -> None:
    """In a process of its own."""
    from tests.pipeline.downloads import REPOSITORY

    program = [sys.executable, "-m", "tests.pipeline.jumping_clock", json.dumps(jumps)]
    subprocess.run([*program, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)


def jump(jumps: Sequence[float]) -> None:
    """From here on."""
    import pandas  # noqa: F401 - its extensions are built around the real class

    real, offsets = time.time, itertools.cycle(jumps)

    class Jumping(datetime.datetime):
        __slots__ = ()  # extensions expect its size

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Jumping":
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: real() + next(offsets)
    datetime.datetime = Jumping  # type: ignore[misc]


if __name__ == "__main__":
    jump(json.loads(sys.argv[1]))
    import carrara

    carrara.main(sys.argv[2:])
