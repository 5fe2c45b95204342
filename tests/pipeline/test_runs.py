"""`carrara runs`: every run with its state, cost and digests, as a table, as JSON, as a page."""

import json
from pathlib import Path

import pytest

import carrara
from infra.config import StageConfig
from infra.errors import ShortfallError
from infra.progress import track
from infra.summary import Summary
from infra.watching.run import Run, State, at_work


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where one run went well and one fell short."""
    home = tmp_path / "corpus"
    run = Run("embed", str(home), StageConfig())
    with at_work(run):
        details: dict[str, object] = {"corpus_digest": "0123456789abcdef"}
        summary = Summary("embed", 5, 4, counts={"damaged": 1}, seconds=7200, details=details)
        run.end(State.DONE, summary=summary)
    with pytest.raises(ShortfallError):
        fall_short(home)
    return home


def fall_short(home: Path) -> None:
    with (
        at_work(Run("index", str(home), StageConfig())),
        track("index: build", 8, "parts") as bar,
    ):
        bar.advance(3)
        raise ShortfallError("2 parts <failed>")


def test_runs_are_listed_with_state_cost_and_digests(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["runs", str(root), "--dollars-per-hour", "1.5", "--json"]
    assert carrara.run_command(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"done": 1, "failed": 1}
    embed, index = told["details"]["runs"]
    assert embed["dollars"] == 3.0
    assert embed["details"]["corpus_digest"] == "0123456789abcdef"
    assert (index["standing"], index["error"]) == ("failed", "2 parts <failed>")
    assert index["progress"][0]["total"] == 8


def test_the_page_stands_alone_and_shows_what_went_wrong(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "runs.html"
    argv = ["runs", str(root), "--output", str(page), "--dashboard", "http://head:8265"]
    assert carrara.run_command(argv) == 0
    html = page.read_text()
    assert "2 parts &lt;failed&gt;" in html
    assert "0123456789abcdef" in html
    assert 'href="http://head:8265"' in html
    assert "<script" not in html
    assert "src=" not in html


def test_a_place_where_nothing_ran_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command(["runs", str(tmp_path)]) == 2
    assert "nothing ran here" in capsys.readouterr().err
