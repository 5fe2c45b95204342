"""One job of the rehearsal: struck while it works, given again by its user where that is needed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.drill import submission
from infra.drill.faults import FAULTS, Fault
from infra.drill.inside import _Rehearsal
from infra.drill.jobs import Place
from infra.drill.machines import Machine
from infra.drill.steps import Budget

HEAD = "python carrara.py index"
Make = Callable[..., Machine]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Is there while the disk is full, which ends the command that stands in place of `index`."""
    file = tmp_path / "full"
    begin, end = (lambda _: file.touch()), (lambda _: file.unlink())
    monkeypatch.setitem(FAULTS, "disk filled", Fault("disk filled", False, begin, end, 60, True))
    script = tmp_path / "submit.sh"
    script.write_text(
        "#!/usr/bin/env bash\n"
        'mkdir -p "$2/index" "$2/runs"; echo rows > "$2/index/image.index"\n'
        '[[ -e "$2/at-once" || -e "$2/runs/1-index.json" ]] && exit 0\n'
        'touch "$2/runs/1-index.json"\n'
        f"for i in $(seq 600); do [[ -e {file} ]] && exit 2; sleep 0.05; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(submission, "SUBMIT", script)
    return file


def rehearsal(folder: Path, machine: Machine) -> tuple[_Rehearsal, Place, Place]:
    place, undisturbed = (Place(str(folder / "bucket"), name) for name in ("chain0", "undisturbed"))
    for one in (place, undisturbed):
        (Path(one.root) / "index").mkdir(parents=True)
    (Path(undisturbed.root) / "index" / "image.index").write_text("rows\n")
    return _Rehearsal(folder, [machine], Budget(120)), place, undisturbed


def test_a_command_that_a_full_disk_ended_is_given_again(
    full: Path, tmp_path: Path, make_machine: Make
) -> None:
    rehearsed, place, undisturbed = rehearsal(tmp_path, make_machine(HEAD))
    outcome = rehearsed._job(place, "index", "disk filled", undisturbed)
    assert (outcome.exit_code, outcome.submitted, outcome.same) == (0, 2, True), outcome
    assert (outcome.machine, outcome.outcome) == (
        "node",
        "1 files, the same, given again by its user",
    )
    assert not full.exists()


def test_a_job_that_was_over_before_counts_as_not_struck(
    full: Path, tmp_path: Path, make_machine: Make
) -> None:
    rehearsed, place, undisturbed = rehearsal(tmp_path, make_machine(HEAD))
    (Path(place.root) / "at-once").touch()
    outcome = rehearsed._job(place, "index", "disk filled", undisturbed)
    assert (outcome.exit_code, outcome.submitted, outcome.same) == (0, 1, False), outcome
    assert (outcome.machine, outcome.outcome) == ("", "ended before it was struck")
    assert not full.exists()


def test_other_bytes_are_named(tmp_path: Path, full: Path, make_machine: Make) -> None:
    rehearsed, place, undisturbed = rehearsal(tmp_path, make_machine(HEAD))
    (Path(undisturbed.root) / "index" / "image.index").write_text("other rows\n")
    outcome = rehearsed._job(place, "index", "disk filled", undisturbed)
    assert not outcome.same
    assert outcome.outcome.startswith("other bytes: image.index")
    assert not full.exists()
