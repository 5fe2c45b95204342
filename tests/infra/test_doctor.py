"""`carrara doctor`: a line a check, exit code 1 where one is broken, the same on every node."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import carrara
from infra import doctor
from infra.checks.finding import Finding, Subject, broken, ok, warning
from infra.cluster import Workers, connect
from infra.doctor import Config, load, run

BUCKET = {"infra": ("infra.checks.bucket:check",)}


def sound(_subject: Subject) -> Iterator[Finding]:
    yield ok("rock", "solid")


def doubtful(_subject: Subject) -> Iterator[Finding]:
    yield warning("ice", "thin", "walk slowly")


def cracked(_subject: Subject) -> Iterator[Finding]:
    yield broken("bridge", "fallen", "swim")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the real ones, by name."""
    ours = {"x:sound": sound, "x:doubtful": doubtful, "x:cracked": cracked}
    monkeypatch.setattr(doctor, "load", ours.__getitem__)


@pytest.mark.usefixtures("checks")
def test_warnings_are_no_failure() -> None:
    summary = run(Config(), checks={"a": ("x:sound",), "b": ("x:doubtful",)})
    assert summary.shortfall == ""
    assert summary.counts == {"ok": 1, "warning": 1}
    assert summary.table[1] == {
        "check": "ice",
        "": "warning",
        "found": "thin",
        "what to do": "walk slowly",
    }


@pytest.mark.usefixtures("checks")
def test_what_is_broken_is_named() -> None:
    summary = run(Config(), checks={"a": ("x:sound", "x:cracked")})
    assert "1 of 2 checks: broken: bridge" in summary.shortfall


def test_every_check_in_the_table_of_contents_can_be_loaded() -> None:
    assert carrara.CHECKS.keys() == {"infra", "retrieval", "training"}
    for names in carrara.CHECKS.values():
        assert all(callable(load(name)) for name in names)


def test_the_command_prints_its_table_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(carrara, "CHECKS", BUCKET)
    stage = carrara.Stage("infra.doctor", "", False, {"checks": BUCKET})
    monkeypatch.setitem(carrara.STAGES, "doctor", stage)
    (tmp_path / "file").write_text("in the way")
    assert carrara.run_command(["doctor", str(tmp_path / "file"), "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["table"][0]["check"] == "storage write"
    assert "broken: storage write" in told.err
    assert carrara.run_command(["doctor", str(tmp_path / "new")]) == 0


def test_on_a_cluster_every_node_is_looked_at(tmp_path: Path) -> None:
    connect(Workers())
    config = Config(root=str(tmp_path), workers=Workers(address="auto"))
    summary = run(config, checks=BUCKET)
    assert summary.shortfall == ""
    by_node: dict[object, list[object]] = {}
    for row in summary.table:
        by_node.setdefault(row["node"], []).append(row["check"])
    together, (_, of_node) = by_node.pop("all"), by_node.popitem()
    assert together == ["cluster", "alike"]
    assert "storage rename" in of_node
