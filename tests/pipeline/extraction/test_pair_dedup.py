"""Duplicates out: which one stays, and what memory it takes."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.extraction import pair_dedup
from pipeline.extraction.extract_records import Run
from pipeline.extraction.pair_dedup import (
    NUM_HIGH,
    RUN_SCHEMA,
    PairRow,
    Range,
    RunWriter,
    merge,
    merge_range,
    ranges,
)
from pipeline.sample import sample_uid

WHOLE = Range(0, NUM_HIGH)


def row(url: str, caption: str, archive: str = "a", offset: int = 0) -> PairRow:
    return (url, caption, "https://example.org/", "<urn:uuid:1>", "x.warc.gz", offset, archive)


def write(folder: Path, key: str, rows: Iterator[PairRow] | list[PairRow]) -> list[Run]:
    writer = RunWriter(str(folder), key)
    for one in rows:
        writer.add(one)
    writer.flush()
    return writer.runs


def test_the_first_of_equal_pairs_stays(tmp_path: Path) -> None:
    """In an archive the first one, of archives the first one's."""
    runs = write(tmp_path, "000", [row("u", "one", "a", 5), row("u", "one", "a", 9)])
    runs += write(tmp_path, "001", [row("u", "two", "b", 1), row("u", "one", "b", 1)])
    table = merge_range(str(tmp_path), runs, WHOLE, 1000)
    found = {(r["caption"], r["archive"], r["warc_offset"]) for r in table.to_pylist()}
    assert found == {("one", "a", 5), ("two", "b", 1)}


def test_pairs_are_the_same_as_samples_are(tmp_path: Path) -> None:
    """By the uid of the corpus: url and caption, each as a whole."""
    rows = [row("ab", "c"), row("a", "bc"), row("abc", ""), row("a", "bc")]
    (run,) = write(tmp_path, "000", rows)
    table = pq.read_table(tmp_path / run.name)
    uids = [
        f"{high:016x}{low:016x}"
        for high, low in zip(*(table[c].to_pylist() for c in ("uid_high", "uid_low")), strict=True)
    ]
    assert uids == sorted({sample_uid(one[0], one[1]) for one in rows})


@settings(max_examples=20, deadline=None)
@given(
    archives=st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=9),
    rows_a_range=st.integers(1, 50),
    fan_in=st.integers(2, 4),
)
def test_levels_of_merges_give_what_a_dictionary_would(
    archives: list[list[int]],
    rows_a_range: int,
    fan_in: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    expected: dict[str, str] = {}
    runs: list[Run] = []
    for index, numbers in enumerate(archives):
        rows = [row(f"u{number}", "a caption", f"{index}") for number in numbers]
        for one in rows:
            expected.setdefault(one[0], one[-1])
        runs += write(folder, f"{index:03d}", rows)
    for level in itertools.count():
        if len(runs) <= fan_in:
            break
        parts = [runs[i : i + fan_in] for i in range(0, len(runs), fan_in)]
        runs = [
            merge(str(folder), part, f"m{level}-{i}.parquet", rows_a_range)
            for i, part in enumerate(parts)
        ]
    parts_of_all = ranges(sum(run.num_rows for run in runs), rows_a_range)
    tables = [merge_range(str(folder), runs, part, rows_a_range) for part in parts_of_all]
    table = pa.concat_tables(tables)
    found = dict(zip(table["url"].to_pylist(), table["archive"].to_pylist(), strict=True))
    assert found == expected
    assert table.num_rows == len(expected)
    highs = table["uid_high"].to_pylist()
    assert highs == sorted(highs)


def test_no_pairs_are_an_empty_table(tmp_path: Path) -> None:
    assert write(tmp_path, "000", []) == []
    assert merge_range(str(tmp_path), [], WHOLE, 10).schema == RUN_SCHEMA
    assert ranges(0, 10) == [WHOLE]


def test_a_run_is_cut_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_dedup, "ROWS_A_RUN", 100)
    runs = write(tmp_path, "000", (row(f"u{i}", "a caption") for i in range(250)))
    assert [run.num_rows for run in runs] == [100, 100, 50]
    assert [run.name for run in runs] == ["000-000.parquet", "000-001.parquet", "000-002.parquet"]


def test_a_run_of_long_pairs_is_cut_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_dedup, "CHARACTERS_A_RUN", 10_000)
    runs = write(tmp_path, "000", (row(f"u{i}", "c" * 990) for i in range(25)))
    assert [run.num_rows for run in runs] == [10, 10, 5]


@pytest.mark.parametrize("share_of_duplicates", [0, 1])
def test_memory_follows_from_the_rows_of_a_range_not_from_the_rows_there_are(
    share_of_duplicates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the pairs, all new or all seen before: the same peak, and within its bound."""
    rows_a_range, rows_a_run, rows_a_group = 1_000, 2_000, 500
    monkeypatch.setattr(pair_dedup, "ROWS_A_GROUP", rows_a_group)
    peaks = []
    for num_runs in (4, 32):
        folder = tmp_path / str(num_runs)
        runs: list[Run] = []
        for index in range(num_runs):
            start = 0 if share_of_duplicates else index * rows_a_run
            numbers = range(start, start + rows_a_run)
            runs += write(folder, f"{index:03d}", (row(f"u{n}", "caption " * 8) for n in numbers))
        num_rows = sum(run.num_rows for run in runs)
        pool = pa.proxy_memory_pool(pa.system_memory_pool())
        before = pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            for part in ranges(num_rows, rows_a_range):
                merge_range(str(folder), runs, part, rows_a_range)
        finally:
            pa.set_memory_pool(before)
        peaks.append(pool.max_memory())
        row_bytes = pq.read_table(folder / runs[0].name).nbytes / rows_a_run
    assert peaks[1] < 1.5 * peaks[0]
    # Sorting copies what is held; a row group is read whole and filtered.
    assert peaks[1] < 3 * (2 * rows_a_range + rows_a_group) * row_bytes
