"""Machines that are some processes of this one."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.drill.machines import Machine
from infra.drill.steps import wait_until

Make = Callable[..., Machine]


@pytest.fixture
def make_machine(tmp_path: Path) -> Iterator[Make]:
    """Its processes are some of this machine's, that bear the names which Ray gives to its own."""
    shells = []

    def make(*names: str) -> Machine:
        shell = subprocess.Popen(["bash"], stdin=subprocess.PIPE, start_new_session=True)
        shells.append(shell)
        assert shell.stdin is not None
        shell.stdin.writelines(f"(exec -a '{name}' sleep 600) &\n".encode() for name in names)
        shell.stdin.flush()
        machine = Machine("node", "", "", 1, tmp_path, {})
        machine._process = shell
        wait_until(lambda: are_there(machine, names), "its processes", 60, 0.02)
        return machine

    yield make
    for shell in shells:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def are_there(machine: Machine, names: tuple[str, ...]) -> bool:
    lines = machine.processes().values()
    return all(any(line.startswith(name) for line in lines) for name in names)
