import time

import pytest

from infra.cluster import Workers
from infra.progress import LINE_EVERY_S, track
from retrieval.embedding.embed_progress import (
    ASKED_EVERY_S,
    Progress,
    Tally,
    followed,
    said,
    tallied,
)


class Recorded:
    def __init__(self) -> None:
        self.num, self.notes = 0, list[str]()

    def advance(self, num: int, note: str = "") -> None:
        self.num += num
        self.notes.append(note)


def test_a_shard_that_is_done_again_counts_once() -> None:
    tally = Tally()
    tally.report("00000", 128, {"read": 1.0, "encode": 3.0})
    tally.report("00001", 50, {"decode": 2.0})
    tally.report("00000", 0, {})  # its worker was lost
    tally.report("00000", 200, {"encode": 4.0})
    progress = tally.progress()
    assert progress.num_done == 250
    assert progress.seconds == {"read": 0.0, "encode": 4.0, "decode": 2.0}


def test_the_step_that_workers_wait_for_most_is_what_bounds_them() -> None:
    progress = Progress(1, {"read": 1.0, "decode": 1.0, "encode": 7.0, "write": 1.0}, 10.0)
    assert progress.bound().startswith("bound by encode (encode 70%, ")
    assert "load" in Progress().bound()


def test_the_bar_follows_the_workers_within_their_shards() -> None:
    bar = Recorded()
    with tallied(Workers(local=True)) as (report, progress), followed(bar, progress):
        report("00000", 0, {})
        time.sleep(0.3)
        assert "load" in bar.notes[0]
        report("00000", 64, {"encode": 0.3})
        time.sleep(0.6)
        assert bar.num == 64
        report("00000", 70, {"encode": 0.3})
    assert bar.num == 70
    assert bar.notes[-1].endswith("bound by encode (encode 100%)")


def test_the_bar_waits_for_a_tally_that_began_anew() -> None:
    bar, told = Recorded(), [Progress(64, {"encode": 0.3}, 1.0)]
    with followed(bar, lambda: told[-1]):
        time.sleep(0.6)
        assert bar.num == 64
        told.append(Progress(0, {}, 0.0))  # its machine was lost, and it with it
        time.sleep(0.6)
        assert bar.num == 64
        told.append(Progress(70, {"encode": 0.1}, 1.0))
    assert bar.num == 70


def test_a_line_comes_within_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert LINE_EVERY_S + ASKED_EVERY_S < 2
    with said("embed: finding the encoder's weights"):
        time.sleep(2)
    assert "embed: finding the encoder's weights, " in capsys.readouterr().err
    # The same while no worker has told anything yet.
    with track("embed", 100, "images") as bar, followed(bar, Progress):
        time.sleep(2)
        assert "embed: 0/100 images" in capsys.readouterr().err
