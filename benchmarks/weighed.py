"""One carrara command in a process of its own: how long it took and how much memory it held."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PROGRAM = """
import resource, sys
import carrara
code = carrara.run_command(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""
"""Prints its peak memory last; Linux counts it in KiB."""


@dataclass(frozen=True)
class Weighed:
    seconds: float
    """From the start of the process to its end."""
    peak_bytes: int
    summary: dict[str, Any]


def run_weighed(*arguments: str) -> Weighed:
    """Raises CalledProcessError where the command fails."""
    command = [sys.executable, "-c", PROGRAM, *arguments, "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - start
    summary, peak = done.stdout.splitlines()[-2:]
    return Weighed(seconds, int(peak), json.loads(summary))
