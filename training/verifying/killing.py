"""SIGKILL for a process by its host and number: of this machine, or of another of the cluster."""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from infra.cluster import Workers, address_of, connect

GONE_PATIENCE_S = 120.0


def kill_process(host: str, pid: int, workers: Workers) -> bool:
    """Whether it was there."""
    return _on_host(host, workers, partial(_kill, pid))


def wait_until_gone(who: Sequence[dict[str, Any]], workers: Workers) -> None:
    """Until none of a killed job's workers runs: they must not write beside the next ones."""
    deadline = time.monotonic() + GONE_PATIENCE_S
    for worker in who:
        pid = int(worker["pid"])
        while time.monotonic() < deadline:
            if not _on_host(str(worker["host"]), workers, partial(_is_there, pid)):
                break
            time.sleep(0.2)


def _on_host(host: str, workers: Workers, call: Callable[[], bool]) -> bool:
    if host == socket.gethostname():
        return call()
    if address_of(workers) is None:
        return False
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect(workers)

    def is_true_there() -> bool:
        return socket.gethostname() == host and call()

    there = ray.remote(num_cpus=0)(is_true_there)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return any(ray.get([there.options(scheduling_strategy=one).remote() for one in strategies]))


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _is_there(pid: int) -> bool:
    """And no zombie, where that can be told."""
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
