"""What others' shards and lists may hold: each is read, or refused in one line; nothing else."""

from pathlib import Path

from benchmarks.malformed_files import read_lists, read_parquets, read_tars

NUM = 400
"""`python -m benchmarks.malformed_files` takes 20,000."""


def test_malformed_tars_are_read_or_named(tmp_path: Path) -> None:
    assert read_tars(tmp_path, NUM).keys() == {"read", "refused"}


def test_malformed_parquets_are_read_or_named(tmp_path: Path) -> None:
    assert read_parquets(tmp_path, NUM).keys() == {"read", "refused"}


def test_malformed_lists_are_read_or_named(tmp_path: Path) -> None:
    assert read_lists(tmp_path, NUM).keys() == {"read", "refused"}
