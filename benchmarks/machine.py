"""What a benchmark says of the machine that it ran on, and of its own process there."""

import os
import platform
from pathlib import Path


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def address_space_bytes() -> int:
    """Of this process."""
    return _pages(0)


def resident_bytes() -> int:
    """Of this process, what is in memory now."""
    return _pages(1)


def _pages(field: int) -> int:
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[field]) * os.sysconf("SC_PAGE_SIZE")
