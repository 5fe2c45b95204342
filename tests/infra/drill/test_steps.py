"""Nothing of a rehearsal is waited for without end, and what was is said."""

import json
import time

import pytest

from infra.drill.steps import Budget, OverdueError, step, wait_until


def test_a_step_gets_what_is_left_of_the_whole() -> None:
    assert Budget(100).of(7) == 7
    assert 1.9 < Budget(2).of(7) <= 2
    assert Budget(-1).of(7) == 0


def test_what_never_comes_is_named() -> None:
    started = time.monotonic()
    with pytest.raises(OverdueError, match="waited for the tide, 0 s in vain"):
        wait_until(lambda: False, "the tide", 0.2, 0.05)
    assert time.monotonic() - started >= 0.2
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), "the third answer", 60, 0.01)


def test_every_step_tells_its_length_or_why_it_was_given_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with step("a walk"):
        time.sleep(0.1)
    with pytest.raises(OverdueError), step("a swim"):
        raise OverdueError("waited for water, 3 s in vain")
    walk, swim = (json.loads(line)["told"] for line in capsys.readouterr().out.splitlines())
    assert walk == "a walk: 0.1 s"
    assert swim == "a swim: waited for water, 3 s in vain"
