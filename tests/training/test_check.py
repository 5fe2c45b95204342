"""The device is held to closed forms, and one that computes otherwise is found."""

import functools

import pytest

from infra.checks.finding import Subject
from training import check as checks
from training.samplers import ddpm

SUBJECT = Subject(None, encoder="", egress_url="")


def test_this_device_computes_what_the_closed_forms_say() -> None:
    findings = list(checks.check(SUBJECT))
    assert len(findings) == 5
    assert all(one.state == "ok" for one in findings), findings


def test_the_other_variance_is_told_from_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ddpm", functools.partial(ddpm, variance="large"))
    broken = [one.check.split()[0] for one in checks.check(SUBJECT) if one.state == "broken"]
    assert broken == ["sampling"]
