"""What a container lets its processes have, by their control group: memory and cores.

Reads   /sys/fs/cgroup, as version 2 lays it out or version 1
"""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def memory_bytes() -> tuple[int, int] | None:
    """The limit and what is left of it; None where there is no limit.

    What files take of it is given up when memory is wanted: as `kubectl top` does, those that were
    not read of late are not counted.
    """
    for folder, limit_name, used_name in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            return limit, max(0, limit - max(0, used - _inactive_file_bytes(folder)))
    return None


def num_cores() -> float | None:
    """None where there is no limit."""
    words = _words(CGROUP / "cpu.max")
    if not words:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [word for name in names for word in _words(CGROUP / "cpu" / name)]
    if len(words) != 2 or not words[0].isdecimal():  # "max", or -1
        return None
    return int(words[0]) / int(words[1])


def _inactive_file_bytes(folder: Path) -> int:
    """Of version 1 the children's as well, which its usage counts."""
    words = _words(folder / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=False))
    return int(stat.get("total_inactive_file") or stat.get("inactive_file", "0"))


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if words and words[0].isdecimal() else None


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []
