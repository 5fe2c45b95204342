"""The cluster's door: `infra/submit.sh train` on a cluster that `ray start --head` made."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import storage
from infra.watching.runs import iter_runs

ROOT = Path(__file__).parents[1]
TINY = "tests/tiny.toml"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster of its own, with its dashboard; yields the dashboard's URL."""
    port, dashboard_port = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", f"--dashboard-port={dashboard_port}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(tmp_path), start_new_session=True
        )
    url = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_until_it_answers(f"{url}/api/version")
        yield url
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def test_a_submitted_training_succeeds(cluster: str, tmp_path: Path, small_corpus: str) -> None:
    run = tmp_path / "run"
    config = tmp_path / "tiny.toml"
    config.write_text((ROOT / TINY).read_text())
    done = submit(cluster, tmp_path, "train", small_corpus, str(run), "--config", str(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout.lower()
    assert storage.list_names(str(run / "checkpoints"))
    assert (run / "metrics.jsonl").read_text().count("\n") == 6
    (record,) = iter_runs([str(run)])
    assert record.dashboard == cluster

    # The command's own exit code comes back, not that of `ray job submit`.
    mistaken = submit(cluster, tmp_path, "verify", str(tmp_path / "nowhere"))
    assert mistaken.returncode == 2, mistaken.stdout[-3000:] + mistaken.stderr[-3000:]
    assert "no corpus here" in mistaken.stdout


def test_a_command_that_the_system_kills_is_not_lost(cluster: str, tmp_path: Path) -> None:
    python = ["env", "RAY_AUTH_MODE=token", sys.executable, "-m"]
    ray_job = [*python, "ray.scripts.scripts", "job", "submit", "--no-wait"]
    kill = ["--submission-id", "killed", "--", "bash", "-c", "kill -9 $$"]
    done = until_an_agent_is_there(cluster, tmp_path, [*ray_job, *kill])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    followed = until_an_agent_is_there(cluster, tmp_path, [*python, "infra.job", "killed"])
    assert followed.returncode == 128 + signal.SIGKILL, followed.stdout + followed.stderr
    assert "ended by SIGKILL on a machine that lives on" in followed.stdout


def submit(cluster: str, home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return until_an_agent_is_there(cluster, home, [str(ROOT / "infra/submit.sh"), *argv])


def until_an_agent_is_there(
    cluster: str, home: Path, command: list[str]
) -> subprocess.CompletedProcess[str]:
    """A cluster just started takes a moment until it can take jobs."""
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment(home) | {"RAY_API_SERVER_ADDRESS": cluster},
            timeout=300,
            check=False,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def environment(home: Path) -> dict[str, str]:
    """A user's who has a token in ~/.ray, as Ray makes one sooner or later."""
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(exist_ok=True)
    token.write_text("0123456789abcdef" * 4)
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return theirs | {"HOME": str(home), "PATH": path}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:
            return  # it asks for Ray's token, which `ray job submit` knows
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{url} does not answer")
