"""What is told of a run while it goes on."""

from pathlib import Path

import pytest

from training.lines import publish_lines, read_lines
from training.log import add_event, metrics_url
from training.watching.following import Changing, events_told, followed

FIGURES = {"loss": 1.0, "images_per_s": 8.0, "stall_percent": 0.0}


class CountingBar:
    def __init__(self) -> None:
        self.num = 0

    def advance(self, num: int, note: str = "") -> None:
        assert "images/s" in note
        self.num += num


def test_events_of_within_are_told_in_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path)
    add_event(run, "notice", message="of an earlier attempt")
    with events_told(run):
        add_event(run, "start", step=0)
        add_event(run, "resume", step=4)
        add_event(run, "sink failed", message="wandb is no longer written to")
    assert capsys.readouterr().err.splitlines() == [
        "train: resume: from step 4",
        "train: sink failed: wandb is no longer written to",
    ]


def test_the_bar_goes_as_far_as_the_log_and_never_back(tmp_path: Path) -> None:
    run, bar = str(tmp_path), CountingBar()
    with followed(run, bar, 4):
        publish_lines(metrics_url(run), [{"step": step} | FIGURES for step in (2, 4, 6, 8)])
    assert bar.num == 4
    with followed(run, bar, 8):
        publish_lines(metrics_url(run), [{"step": step} | FIGURES for step in (2, 4, 6)])
    assert bar.num == 4


def test_a_file_is_read_when_it_has_changed(tmp_path: Path) -> None:
    url = str(tmp_path / "lines.jsonl")
    file = Changing(url)
    assert file.read(read_lines) is None
    for step in (1, 2):
        publish_lines(url, [{"step": step}])
        assert file.read(read_lines) == [{"step": step}]
        assert file.read(read_lines) is None
