"""stderr for programs: every line one JSON object that says which run and stage it is of."""

import json
from pathlib import Path

import pytest

import carrara
from examples.emoji.server import serve, write_list
from pipeline.corpus import read_manifest


@pytest.mark.usefixtures("_text_again")
def test_a_command_s_lines_are_objects_of_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.progress.LINE_EVERY_S", 0.0)
    pairs, root = tmp_path / "pairs.parquet", tmp_path / "corpus"
    settings = ["--allow-hosts", "127.0.0.1", "--workers.local", "--log", "json"]
    with serve() as base_url:
        write_list(pairs, base_url, num_pictures=30)
        assert carrara.run_command(["download", str(pairs), str(root), *settings]) == 0
    assert carrara.run_command(["verify", str(tmp_path / "nowhere"), "--log", "json"]) == 2
    *lines, error = map(json.loads, capsys.readouterr().err.splitlines())
    assert {line["stage"] for line in lines} == {"download"}
    assert len({line["run"] for line in lines}) == 1
    progress = [line for line in lines if line["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] > 0
    items = [line for line in lines if line["event"] == "item"]
    shards = [shard.name for shard in read_manifest(str(root)).shards]
    assert sorted(item["shard"] for item in items) == shards
    assert {item["error"] for item in items} == {None}
    assert (error["event"], error["exit_code"]) == ("error", 2)
    assert "nowhere: no corpus here" in error["message"]
