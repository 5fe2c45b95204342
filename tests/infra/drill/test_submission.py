"""A job is awaited for so long, and given up with all of its processes."""

from pathlib import Path

import pytest

from infra.drill import submission
from infra.drill.steps import wait_until
from infra.drill.submission import Submission


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of infra/submit.sh: takes the exit code, or lasts until it is ended."""
    file = tmp_path / "submit.sh"
    file.write_text(
        '#!/usr/bin/env bash\necho "$RAY_API_SERVER_ADDRESS"\n'
        '[[ $1 == last ]] || { echo "submitting it again, 2 of 5"; exit "$1"; }\n'
        f"sleep 600 & echo $! > {tmp_path}/follower\nwait\n"
    )
    file.chmod(0o755)
    monkeypatch.setattr(submission, "SUBMIT", file)
    return file


@pytest.mark.usefixtures("script")
def test_the_exit_code_is_the_jobs_own(tmp_path: Path) -> None:
    submitted = Submission(["3"], "http://head:8265", tmp_path / "log")
    assert submitted.wait(30) == 3
    assert not submitted.is_running
    assert submitted.num_tries == 2
    assert (tmp_path / "log").read_text().startswith("http://head:8265\n")


@pytest.mark.usefixtures("script")
def test_one_that_does_not_end_is_given_up_with_its_follower(tmp_path: Path) -> None:
    submitted = Submission(["last"], "http://head:8265", tmp_path / "log")
    follower = tmp_path / "follower"
    while not follower.exists() or not follower.read_text().strip():
        assert submitted.is_running
    assert submitted.wait(0.1) is None
    assert not submitted.is_running
    process = int(follower.read_text())
    wait_until(lambda: not lives(process), "the follower's end", 60, 0.05)


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
