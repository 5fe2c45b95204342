"""What a check of `carrara doctor` is given and what it says."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "broken", "skipped"]


@dataclass(frozen=True)
class Subject:
    """What the user means to work with."""

    root: str | None
    """A corpus's or a run's place, or any folder or bucket to write to."""
    encoder: str
    egress_url: str


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    check: str
    state: State
    found: str
    advice: str = ""
    """Never empty where something is wrong, or was not looked at."""

    def __post_init__(self) -> None:
        assert self.advice or self.state == "ok", self


Check = Callable[[Subject], Iterable[Finding]]


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warning", found, advice)


def broken(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "broken", found, advice)


def skipped(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "skipped", found, advice)
