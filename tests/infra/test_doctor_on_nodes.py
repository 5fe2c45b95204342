"""`infra/submit.sh doctor` on a cluster of two real Ray nodes: each looks at itself."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.checks.versions import versions
from infra.drill.steps import wait_until

REPOSITORY = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]


@pytest.fixture
def dashboard(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """Of a head and another node, both on this machine."""
    port, dashboard_port, *agents = free_ports(4)
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard_port}"]
    nodes = [start(tmp_path, "head", *head, f"--dashboard-agent-listen-port={agents[0]}")]
    url = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_until(lambda: answers(f"{url}/api/version"), "the dashboard", 90, 0.5)
        other = [f"--address=127.0.0.1:{port}", f"--dashboard-agent-listen-port={agents[1]}"]
        nodes.append(start(tmp_path, "other", *other))
        log = tmp_path / "other.log"
        wait_until(lambda: "Ray runtime started" in log.read_text(), "the other node", 90, 0.5)
        yield url
    finally:
        for node in reversed(nodes):
            os.killpg(node.pid, signal.SIGTERM)
            try:
                node.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()


@pytest.mark.timeout(300)
def test_every_node_says_how_it_is(dashboard: str, tmp_path: Path) -> None:
    summary = doctor(dashboard, tmp_path)
    by_node: dict[str, dict[str, str]] = {}
    for row in summary["table"]:
        by_node.setdefault(row["node"], {})[row["check"]] = row[""]
    together = by_node.pop("all")
    assert together == {"cluster": "ok", "alike": "ok"}
    assert summary["table"][0]["found"].startswith("2 nodes, 3 CPUs")
    assert len(by_node) == 2
    for checks in by_node.values():
        assert checks["python"] == checks["storage write"] == checks["encoder"] == "ok"
        assert "host name" in checks
    assert len(summary["details"]["versions"]) == 3
    assert all(told == versions() for told in summary["details"]["versions"].values())


def doctor(dashboard: str, home: Path) -> dict[str, Any]:
    """What it prints, once both nodes are there; its exit code is checked: a machine whose disk is
    nearly full is rightly told of, and no fault of this test's."""
    deadline = time.monotonic() + 120
    command = [str(REPOSITORY / "infra/submit.sh"), "doctor", str(home / "root"), "--json"]
    while True:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment(home) | {"RAY_API_SERVER_ADDRESS": dashboard},
            timeout=200,
            check=False,
        )
        said = done.stdout[-3000:] + done.stderr[-3000:]
        if "No available agent" not in said:  # the head takes no jobs yet
            lines = [line for line in done.stdout.splitlines() if line.startswith('{"stage"')]
            assert len(lines) == 1, said
            summary: dict[str, Any] = json.loads(lines[0])
            broken = {row["check"] for row in summary["table"] if row[""] == "broken"}
            assert broken <= {"disk"}, said
            assert done.returncode == bool(broken), said
            return summary
        assert time.monotonic() < deadline, said
        time.sleep(1)


def start(home: Path, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
    num_cpus = {"head": 2, "other": 1}[name]
    with (home / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [*RAY, *arguments, f"--num-cpus={num_cpus}"],
            stdout=log,
            stderr=log,
            env=environment(home),
            start_new_session=True,
        )


def environment(home: Path) -> dict[str, str]:
    """A user's of their own, with Ray's token; a node that joins sends it only when told to."""
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(exist_ok=True)
    token.write_text("0123456789abcdef" * 4)
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # What still runs on a node that is to end would be waited for.
    theirs["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    return theirs | {"HOME": str(home), "PATH": path, "RAY_AUTH_MODE": "token"}


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it asks for Ray's token
    except OSError:
        return False
    return True
