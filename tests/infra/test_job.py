"""A job is followed: what its end says to do next, and what is said while nothing is heard."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.job_submission import JobInfo, JobStatus

from infra import job
from infra.job import LOST, _Follower

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [
        (None, LOST, "was lost: Job supervisor actor died"),
        (143, LOST, "was lost: ended by SIGTERM"),  # as by a machine that shuts down
        (2, 2, "failed with exit code 2"),
        (130, 130, "failed: ended by SIGINT, interrupted"),
        (137, 137, "failed: ended by SIGKILL on a machine that lives on, for want of memory"),
        (-9, 137, "failed: ended by SIGKILL"),
        (-11, 139, "failed: ended by SIGSEGV"),
        (255, 255, "failed with exit code 255"),
    ],
)
def test_only_what_was_lost_is_to_be_submitted_again(
    code: int | None, exit_code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "Job supervisor actor died"
    info = JobInfo(JobStatus.FAILED, "python carrara.py", message, driver_exit_code=code)
    assert _Follower("j")._exit_code(info) == exit_code
    assert capsys.readouterr().out.startswith(f"job j {told}")


def test_a_cluster_that_does_not_answer_is_told_of_at_once(
    free_ports: Callable[[int], list[int]],
) -> None:
    (nobody,) = free_ports(1)
    follower = subprocess.Popen(
        [sys.executable, "-m", "infra.job", "j"],
        cwd=REPOSITORY,
        env=os.environ | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{nobody}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    line = follower.stdout.readline()
    follower.kill()
    follower.communicate()
    assert line.startswith("job j is out of sight: the cluster has not answered for ")
    assert str(nobody) in line


def test_silence_is_told_of_every_minute_until_patience_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = _Follower("j")
    follower._unheard("no route")
    follower._unheard("no route")
    assert capsys.readouterr().out.count("(no route)") == 1
    monkeypatch.setattr(job, "TELL_EVERY_S", 0.0)
    follower._unheard("no route")
    assert capsys.readouterr().out.count("(no route)") == 1
    follower._heard()
    follower._heard()
    assert capsys.readouterr().out.count("is in sight again") == 1
    monkeypatch.setattr(job, "PATIENCE_S", -1.0)
    with pytest.raises(SystemExit, match=r"not answered .* \(no route\); the job may still run"):
        follower._unheard("no route")
