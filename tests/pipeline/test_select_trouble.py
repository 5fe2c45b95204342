"""A full disk: what `select` says, and what it leaves."""

import shutil
from pathlib import Path

import pytest

from pipeline import select
from pipeline.corpus import selection_url
from tests.pipeline import full_disk

SPILLING = "(SELECT count(DISTINCT md5(i::VARCHAR)) FROM range(3000000) numbers(i)) = 3000000"
"""True, and more than fits into MEMORY: DuckDB spills some 200 MB of it."""
MEMORY = ("--memory-limit", "40MB")


def test_a_full_disk_for_what_duckdb_spills_is_one_line(
    small_corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    arguments = ["select", small_corpus, "--name", "all", "--where", SPILLING, *MEMORY]
    attempts = full_disk.fill(tmp_path, 64 << 20, arguments)
    assert len(attempts) > 1
    for attempt in attempts[:-1]:
        assert attempt.code == 2
        (line,) = (line for line in attempt.said.splitlines() if line.startswith("carrara: "))
        assert f"{tmp_path / 'disk'}: no room for DuckDB's temporary files" in line
        assert "Traceback" not in attempt.said
        assert attempt.files == {}
    assert Path(selection_url(small_corpus, "all", ".toml")).exists()


def test_a_full_disk_for_the_selection_is_named(small_corpus: str, tmp_path: Path) -> None:
    shutil.copytree(small_corpus, tmp_path / "held")
    select.run(select.Config(root=small_corpus, name="all", where="true"))
    whole = full_disk.digests(Path(small_corpus))
    arguments = ["select", str(tmp_path / "disk"), "--name", "all", "--where", "true"]
    attempts = full_disk.fill(tmp_path, 12 << 10, arguments)
    full_disk.check_told_and_kept(attempts, whole, besides=("runs/",))
    done = full_disk.digests(tmp_path / "done")
    assert {path: done[path] for path in done if not path.startswith("runs/")} == whole
