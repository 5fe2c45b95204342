"""Items over real Ray workers: all done once, failures named, lost workers replaced."""

import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from infra.cluster import ITEMS_QUEUED_A_WORKER, Workers, map_on_workers
from infra.errors import CarraraError, ConfigError, InputError, StorageError


def make_square() -> Callable[[int], int]:
    return lambda number: number * number


def make_refusing() -> Callable[[int], int]:
    def refuse_three(number: int) -> int:
        if number == 3:
            raise InputError("3: not wanted; leave it out")
        return number

    return refuse_three


def make_dying_once(folder: Path) -> Callable[[int], int]:
    def die_once(number: int) -> int:
        mark = folder / "died"
        if number == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return die_once


def make_marking(folder: Path) -> Callable[[int], None]:
    return lambda number: (folder / str(number)).touch()


def make_failing(folder: Path, num_times: int, kind: type[Exception]) -> Callable[[int], int]:
    def fail_at_first(number: int) -> int:
        """Leaves a mark a try."""
        num_tries = len(list(folder.iterdir()))
        (folder / f"{num_tries}").touch()
        if num_tries < num_times:
            raise kind(f"try {num_tries} failed")
        return number

    return fail_at_first


def make_slow(seconds: float) -> Callable[[int], int]:
    """For an odd number: two of these in a row take twice as long as one."""

    def wait_if_odd(number: int) -> int:
        time.sleep(seconds * (number % 2))
        return number

    return wait_if_odd


def make_nothing() -> Callable[[int], int]:
    raise InputError("no such model; name another")


def make_always_failing() -> Callable[[int], int]:
    def fail(number: int) -> int:
        raise RuntimeError(f"broken on {number}\nsecond line")

    return fail


@pytest.mark.parametrize("local", [True, False])
def test_every_item_comes_back_once(local: bool) -> None:
    workers = Workers(num_workers=2, local=local)
    outcomes = map_on_workers(
        make_square, range(20), workers=workers, description="square", unit="numbers"
    )
    results = {outcome.item: outcome.result for outcome in outcomes}
    assert results == {number: number * number for number in range(20)}


@pytest.mark.parametrize("local", [True, False])
def test_an_item_that_cannot_be_used_is_named_and_the_rest_goes_on(local: bool) -> None:
    workers = Workers(num_workers=2, local=local)
    outcomes = list(
        map_on_workers(
            make_refusing, range(6), workers=workers, description="refuse", unit="numbers"
        )
    )
    assert len(outcomes) == 6
    assert [(o.item, o.error) for o in outcomes if o.error] == [(3, "3: not wanted; leave it out")]


def test_an_item_whose_worker_is_killed_is_done_by_the_next(tmp_path: Path) -> None:
    outcomes = map_on_workers(
        partial(make_dying_once, tmp_path),
        range(8),
        workers=Workers(num_workers=2),
        description="die",
        unit="numbers",
    )
    assert sorted(outcome.result or 0 for outcome in outcomes) == list(range(8))
    assert (tmp_path / "died").exists()


def test_no_more_is_begun_than_workers_and_their_queues_hold(tmp_path: Path) -> None:
    outcomes = map_on_workers(
        partial(make_marking, tmp_path),
        range(20),
        workers=Workers(num_workers=2),
        description="mark",
        unit="numbers",
    )
    next(outcomes)
    time.sleep(1.0)  # nobody takes what is done
    assert len(list(tmp_path.iterdir())) <= 1 + 2 * ITEMS_QUEUED_A_WORKER
    assert len(list(outcomes)) == 19


def test_what_gives_no_answer_for_long_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two items of a worker is at work from the answer to the first on."""
    monkeypatch.setattr("infra.cluster.LOOK_EVERY_S", 0.2)
    monkeypatch.setattr("infra.watchdog.LONG_S", 3.0)
    outcomes = map_on_workers(
        partial(make_slow, 4.5),
        [0, 7, 2],
        workers=Workers(num_workers=1),
        description="slow",
        unit="numbers",
    )
    assert len(list(outcomes)) == 3
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "no answer" in line)
    assert re.match(r"slow: no answer from those at work on 7 for [34] s; ", line)


def test_an_item_that_keeps_failing_ends_as_an_error_in_one_line() -> None:
    (outcome,) = map_on_workers(
        make_always_failing, [1], workers=Workers(num_workers=1), description="x", unit="numbers"
    )
    assert outcome.error == "RuntimeError: broken on 1"


@pytest.mark.parametrize(
    ("kind", "num_times", "max_retries", "num_tries", "error"),
    [
        (OSError, 2, 2, 3, None),
        (StorageError, 2, 2, 3, None),
        (OSError, 9, 1, 2, "OSError: try 1 failed"),
        (StorageError, 9, 1, 2, "try 1 failed"),
        (InputError, 1, 5, 1, "try 0 failed"),  # the user has to mend it: no try changes that
        (CarraraError, 1, 5, 1, "try 0 failed"),
    ],
)
def test_what_may_pass_is_tried_as_often_as_asked_and_the_users_mistakes_once(
    tmp_path: Path,
    kind: type[Exception],
    num_times: int,
    max_retries: int,
    num_tries: int,
    error: str | None,
) -> None:
    (outcome,) = map_on_workers(
        partial(make_failing, tmp_path, num_times, kind),
        [7],
        workers=Workers(num_workers=1, max_retries=max_retries),
        description="fail",
        unit="numbers",
    )
    assert (outcome.result, outcome.error) == (None if error else 7, error)
    assert len(list(tmp_path.iterdir())) == num_tries


def test_a_worker_that_cannot_be_made_says_why() -> None:
    (outcome,) = map_on_workers(
        make_nothing, [1], workers=Workers(num_workers=1), description="x", unit="numbers"
    )
    assert outcome.error == "no such model; name another"


def test_workers_that_fit_nowhere_are_refused_with_both_ways_out() -> None:
    outcomes = map_on_workers(
        make_square, [1], workers=Workers(cpus_per_worker=1000), description="x", unit="numbers"
    )
    with pytest.raises(ConfigError, match="ask for less, or say --workers"):
        list(outcomes)
