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


def test_the_page_links_the_dashboard_that_the_cluster_told_of(tmp_path: Path) -> None:
    home, page = tmp_path / "corpus", tmp_path / "runs.html"
    run = Run("embed", str(home), StageConfig())
    run.dashboard = "http://10.0.0.1:8265"
    run.end(State.DONE, summary=Summary("embed", 5, 5))
    assert carrara.run_command(["runs", str(home), "--output", str(page)]) == 0
    assert '<a href="http://10.0.0.1:8265">' in page.read_text()


@pytest.mark.parametrize("address", ["javascript:alert(1)", "10.0.0.1"])
def test_a_record_with_another_kind_of_address_is_damaged(
    root: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = next((root / "runs").glob("*-embed.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"dashboard": address}))
    assert carrara.run_command(["runs", str(root)]) == 2
    assert "damaged (dashboard" in capsys.readouterr().err


def test_a_place_where_nothing_ran_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carrara.run_command(["runs", str(tmp_path)]) == 2
    assert "nothing ran here" in capsys.readouterr().err
