"""Packages against what carrara asks for and what was tested."""

import importlib.metadata
from pathlib import Path

import pytest

from infra.checks import versions
from infra.checks.finding import Subject


def test_this_environment_is_as_carrara_wants_it() -> None:
    findings = {one.check: one for one in versions.check(Subject(None, "", ""))}
    assert findings["python"].state == "ok"
    assert findings["packages"].state == "ok", findings["packages"]


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        (["numpy>=999"], "wanted >=999"),
        (["no-such-package"], "no-such-package is missing"),
    ],
)
def test_a_package_that_is_missing_or_too_old_is_named(
    requirements: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: requirements)
    packages = {one.check: one for one in versions.check(Subject(None, "", ""))}["packages"]
    assert packages.state == "broken"
    assert expected in packages.found


def test_another_version_than_the_tested_one_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"numpy==0.1\nray=={importlib.metadata.version('ray')}\nnot-there==1\n")
    monkeypatch.setattr(versions, "CONSTRAINTS", pins)
    pinned = {one.check: one for one in versions.check(Subject(None, "", ""))}["pinned versions"]
    assert pinned.state == "warning"
    assert pinned.found.startswith("1 as tested, 1 not: numpy is ")


def test_what_is_not_alike_is_named_from_both_sides() -> None:
    mine = versions.versions()
    other = {name: version for name, version in mine.items() if name != "torch"}
    other |= {"ray": "2.1.0", "cupy": "14"}
    assert versions.apart({"a": mine, "silent": {}, "b": other}, mine, "here") == [
        f"b has ray 2.1.0, here has ray {mine['ray']}",
        "b has cupy 14, here has no cupy",
        f"b has no torch, here has torch {mine['torch']}",
    ]
