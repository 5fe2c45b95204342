"""A command's record in HOME/runs: there once work began, current, and true of how it ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.config import StageConfig
from infra.errors import ConfigError, ShortfallError
from infra.progress import track
from infra.summary import Summary
from infra.watching import run as watching
from infra.watching.run import Run, State, at_work
from infra.watching.runs import finished_runs, iter_runs


class Config(StageConfig):
    size: int = 3


def test_a_command_that_refuses_its_input_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), at_work(Run("score", str(tmp_path), Config())):
        raise ConfigError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_record_follows_the_progress_and_ends_with_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PUBLISH_EVERY_S", 0.0)
    run = Run("score", str(tmp_path), Config())
    with at_work(run):
        with track("score", 10, "samples") as bar:
            bar.advance(4)
            (begun,) = iter_runs([str(tmp_path)])
        run.end(State.DONE, summary=Summary("score", 10, 9, details={"corpus_digest": "abc"}))
    assert (begun.standing, begun.progress[0].done, begun.progress[0].total) == ("running", 4, 10)
    (done,) = finished_runs([str(tmp_path)])
    assert (done.name, done.num_in, done.num_out) == (begun.name, 10, 9)
    assert done.digests == {"corpus": "abc", "config": Config().digest()}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ShortfallError("1 of 3 shards failed"), State.FAILED),
        (KeyboardInterrupt(), State.INTERRUPTED),
        (ZeroDivisionError("by zero"), State.FAILED),
    ],
)
def test_what_ended_a_run_is_in_its_record(
    error: BaseException, state: State, tmp_path: Path
) -> None:
    with (
        pytest.raises(type(error)),
        at_work(Run("score", str(tmp_path), Config())),
        track("score", 10, "samples"),
    ):
        raise error
    (run,) = iter_runs([str(tmp_path)])
    assert run.state is state
    assert run.error is not None
    assert str(error) in run.error
    assert finished_runs([str(tmp_path)]) == []


BEGIN = """
import sys, time
from infra.config import StageConfig
from infra.progress import track
from infra.watching.run import Run, at_work
with at_work(Run("score", sys.argv[1], StageConfig())), track("score", 10, "samples"):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_run_whose_process_was_killed_is_told_from_one_at_work(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(tmp_path)], cwd=root, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (at_its_work,) = iter_runs([str(tmp_path)])
        assert at_its_work.standing == "running"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    (killed,) = iter_runs([str(tmp_path)])
    assert killed.standing == "killed"


def test_a_record_of_an_earlier_version_is_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    summary = Summary("embed", 5, 5, seconds=2.5).as_json()
    (tmp_path / "runs" / "20260101T000000.000000-embed.json").write_text(json.dumps(summary))
    (run,) = finished_runs([str(tmp_path)])
    assert (run.stage, run.seconds, run.standing) == ("embed", 2.5, "done")
