"""The rehearsal, small: three machines, five jobs, every fault; the same bytes in the end."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.drill import drill
from infra.drill.drill import REPOSITORY, SMALL, namespaces, rehearse
from infra.drill.faults import FAULTS
from infra.drill.jobs import JOBS
from infra.errors import ConfigError


@pytest.mark.drill
@pytest.mark.timeout(1000)
def test_every_job_ends_as_if_nothing_had_befallen_it() -> None:
    summary = rehearse(small=True, folder=None)
    assert summary.shortfall == ""
    struck = {row["job"]: row for row in summary.table if row["fault"] != "none"}
    assert struck.keys() == set(JOBS)
    assert {row["fault"] for row in struck.values()} == FAULTS.keys()
    for row in struck.values():
        assert row["machine"], row  # it was under way when it was struck
        assert row["exit code"] == 0, row
        assert str(row["outcome"]).endswith("files, the same"), row
    for job in ("index", "sample"):  # with the head, where they run, their command was lost
        assert struck[job]["machine"] == "node0", struck[job]
        assert int(str(struck[job]["submitted"])) >= 2, struck[job]


def test_small_and_full_rehearse_every_fault_and_every_job() -> None:
    assert {fault for _, fault in SMALL[0]} == FAULTS.keys()
    assert [job for job, _ in SMALL[0]] == list(JOBS)


def test_when_its_time_is_over_there_is_still_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in ("A_JOB_S", "A_STRUCK_JOB_S"):
        monkeypatch.setattr(drill, limit, 0.01)
    summary = rehearse(small=True, folder=str(tmp_path / "logs"))
    assert [(row["job"], row["fault"]) for row in summary.table] == SMALL[0]
    assert {row["outcome"] for row in summary.table} == {"not carried out"}
    assert "download, disk filled; embed, node cut off" in summary.shortfall
    assert "in vain" in capsys.readouterr().err  # what was waited for last


def test_a_folder_that_holds_something_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="holds something"):
        rehearse(small=True, folder=str(tmp_path))


def test_all_of_it_ends_when_the_command_does(tmp_path: Path) -> None:
    rehearsal = subprocess.Popen(
        [*namespaces(), sys.executable, "-m", "infra.drill.inside", str(tmp_path), "[]", "60"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert rehearsal.stdin is not None
    rehearsal.stdin.close()  # as the system does for a command that was killed
    assert rehearsal.wait(timeout=60) != 0
