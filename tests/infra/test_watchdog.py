"""What takes long is told by name, rarely."""

import pytest

from infra.watchdog import LONG_S, NUM_NAMED, Watchdog


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_what_takes_long_is_named_with_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog("download")
    watchdog.look({"00003": LONG_S - 1, "00004": 0.0})
    assert said(capsys) == []
    watchdog.look({"00003": LONG_S, "00004": 2 * LONG_S, "00005": 0.0})
    (line,) = said(capsys)
    assert line.startswith(
        "download: no answer from those at work on 00004 for 30 min, 00003 for 15 min; "
    )


def test_it_is_told_again_when_it_took_twice_as_long(capsys: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog("download")
    for _ in range(10):
        watchdog.look({"00003": LONG_S})
    assert len(said(capsys)) == 1
    watchdog.look({"00003": 2 * LONG_S})
    assert len(said(capsys)) == 1


def test_what_is_tried_again_is_waited_for_anew(capsys: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog("download")
    for seconds in ({"00003": LONG_S}, {}, {"00003": LONG_S}):
        watchdog.look(seconds)
    assert len(said(capsys)) == 2


def test_of_many_a_few_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Watchdog("download").look({f"{i:05d}": LONG_S for i in range(NUM_NAMED + 7)})
    (line,) = said(capsys)
    assert line.count(" for 15 min") == NUM_NAMED
    assert "00004 for 15 min and 7 more; " in line
