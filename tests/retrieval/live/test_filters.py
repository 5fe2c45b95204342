"""Rows by an SQL expression that anybody may send."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ConfigError
from pipeline.corpus import write_columns
from retrieval import index
from retrieval.live import filters
from retrieval.live.filters import FUNCTIONS, parse_where, rows_where
from retrieval.search import Retriever

TABLE = pa.table(
    {"width": [1, None, 600], "caption": ["a cat", "it's", "ö"], "quality": [0.5, 0.25, None]}
)

HOSTILE = [
    "1) UNION SELECT 1 FROM duckdb_settings() --",
    "1=1; DROP TABLE samples",
    "1=1; ATTACH '/tmp/x.db'",
    "(SELECT count(*) FROM read_text('/etc/passwd')) > 0",
    "EXISTS (SELECT 1 FROM glob('/*'))",
    "width IN (SELECT 1)",
    "caption = getenv('HOME')",
    "caption = current_setting('home_directory')",
    "caption = getvariable('x')",
    "repeat(caption, 1000000000) = ''",
    "lpad(caption, 2000000000, 'x') = ''",
    "len(range(1000000000)) > 1",
    "length(format('{:1000000000}', width)) > 1",
    "list_aggregate([1], 'sum') > 0",
    "count(*) OVER () > 1",
    "columns('w.*') > 1",
    "* IS NULL",
    "list_transform([1], lambda x: x > 1) IS NULL",
    "[x FOR x IN [1, 2]] IS NULL",
    "width > $1",
    "width > ?",
    "nextval('s') > 1",
    "error('told')",
    "sleep_ms(100000) IS NULL",
    "pg_sleep(1) IS NULL",
    "read_blob('/etc/passwd') IS NULL",
    "query('SELECT 1') IS NULL",
    "main.lower(caption) = ''",
    "system.main.lower(caption) = ''",
    "lower(caption ORDER BY width) = 'a'",
    "width > 1) OR (1 = 1",
    "width > 1, caption = 'a'",
    "true] AND [true",
    "width > 1 LIMIT 1",
    "width > 1 GROUP BY ALL",
    "",
    " -- nothing",
    "/* nothing */",
    "width >",
    "'never closed",
    "random() > 0.5",
    "x" * 5000,
    "(" * 2000 + "1" + ")" * 2000,
    "\0",
    "width\0 > 1",
]


@pytest.mark.parametrize("where", HOSTILE)
def test_what_is_no_plain_expression_is_refused_in_one_line(where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_where(where)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("width > 512", [2]),
        ("not (width > 512)", [0]),
        ("width is null or caption ilike '%CAT%'", [0, 1]),
        ("caption = 'it''s' -- a comment", [1]),
        ("caption in ('ö', 'x') and coalesce(quality, 0) < 0.3", [2]),
        ("case when width > 1 then true else quality between 0.4 and 0.6 end", [0, 2]),
        ("Width::double / 2 > 1.5 and length(caption) <= 2", [2]),
        ("regexp_matches(caption, '^a .*t$')", [0]),
        ("width", [0, 2]),
    ],
)
def test_rows_where_it_is_true(where: str, expected: list[int]) -> None:
    parse_where(where)
    assert np.flatnonzero(rows_where(where, TABLE)).tolist() == expected


def test_what_fails_on_the_values_is_said_in_one_line() -> None:
    parse_where("caption::date < '2020-01-01'")
    with pytest.raises(ConfigError, match="invalid date") as refused:
        rows_where("caption::date < '2020-01-01'", TABLE)
    assert "\n" not in str(refused.value)


FRAGMENTS = "width caption ' \" ( ) [ ] ; -- /* */ , > = select from samples 1 'a' lower( or and in"
FRAGMENTS += " $$ :: ."


@settings(max_examples=30, deadline=None)
@given(
    where=st.text(max_size=40)
    | st.lists(st.sampled_from(FRAGMENTS.split(" ")), max_size=12).map(" ".join)
)
def test_no_text_brings_more_than_rows_or_a_line(where: str) -> None:
    with suppress(ConfigError):
        parse_where(where)
        assert rows_where(where, TABLE).shape == (3,)


def test_the_functions_that_pass_can_neither_read_nor_change_anything() -> None:
    """Even where one passed that should not: the connection that runs them has nothing to give."""
    with filters._sandbox() as connection:
        for query in (
            "SELECT * FROM read_text('/etc/passwd')",
            "COPY (SELECT 1) TO '/tmp/never.csv'",
            "ATTACH '/tmp/never.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "SET memory_limit = '100GB'",
        ):
            with pytest.raises(Exception, match=r"(?i)disabled|locked|cannot|not"):
                connection.execute(query)
    names = {"getenv", "read_text", "repeat", "lpad", "rpad", "range", "format", "printf", "error"}
    assert not FUNCTIONS & names


@pytest.mark.timeout(120)
def test_a_search_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "TIME_LIMIT_S", 0.2)
    table = pa.table({"caption": ["a" * 200] * 50_000})
    where = " or ".join(f"regexp_matches(caption, '(a|b|ab)+[{i}-9]c')" for i in range(9))
    parse_where(where)
    with pytest.raises(ConfigError, match=r"longer than 0\.2 s"):
        rows_where(where, table)


@pytest.fixture
def scored(tmp_path: Path, make_embedded: Callable[..., Any]) -> Any:
    corpus = make_embedded(tmp_path / "corpus", 6, 4)
    index.run(index.Config(root=corpus.root, num_queries=5))
    # Only the first shard is scored, in another order, and one of its samples is not.
    scores = pa.table({"uid": corpus.uids[4::-1], "quality": pa.array([4.0, 3, 2, 1, 0])})
    write_columns(corpus.root, "scores", "00000", scores)
    return corpus


def test_metadata_and_scores_are_joined_by_uid(scored: Any) -> None:
    retriever = Retriever.open(scored.root)
    assert np.flatnonzero(retriever.select("quality >= 3")).tolist() == [3, 4]
    assert np.flatnonzero(retriever.select("quality IS NULL")).tolist() == [5, 6, 7, 8, 9]
    both = "Quality < 2 and width > 0 and image_path like '00000%'"
    assert np.flatnonzero(retriever.select(both)).tolist() == [1]
    assert {"quality", "width", "caption", "uid"} <= set(retriever.state.columns.names)
    allowed = retriever.select("quality >= 3")
    _, rows = retriever.neighbours(scored.image[:1].astype(np.float32), 5, "image", allowed)
    assert sorted(rows[0].tolist()) == [-1, -1, -1, 3, 4]


def test_a_column_that_there_is_not_is_named_with_the_nearest(scored: Any) -> None:
    with pytest.raises(ConfigError, match=r"no column 'qualty'; did you mean 'quality'\?"):
        Retriever.open(scored.root).select("qualty > 1")


def test_scores_computed_anew_are_taken_up_by_refresh(scored: Any) -> None:
    retriever = Retriever.open(scored.root)
    assert retriever.select("quality > 100").sum() == 0
    scores = pa.table({"uid": scored.uids[:6], "quality": pa.array([200.0] * 6)})
    write_columns(scored.root, "scores", "00000", scores)
    manifest = Path(scored.root, "columns/scores/manifest.json")
    manifest.write_text(json.dumps({"config_digest": "1"}))
    assert retriever.refresh()
    assert retriever.select("quality > 100").sum() == 6
