import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from infra.errors import InputError, StorageError
from pipeline.downloading.pair_rows import (
    CAPTION_NOT_TEXT,
    MALFORMED_ROW,
    NULL_CAPTION,
    NULL_URL,
    URL_NOT_TEXT,
    PairColumns,
)
from pipeline.downloading.pairs import ROWS_A_BATCH, ListFormat, open_pairs

if TYPE_CHECKING:
    from tests.pipeline.conftest import Script

    Scripted = Callable[[Script], str]

Row = dict[str, Any]
ROWS: list[Row] = [
    {"url": "http://a/1.jpg", "caption": "a cat, asleep", "similarity": 0.25},
    {"url": "http://a/2.jpg", "caption": 'a "quoted" dog\non two lines', "similarity": 0.5},
    {"url": "http://a/ü.jpg", "caption": "un été à Paris 🗼", "similarity": 0.75},
]


def write_parquet(path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_delimited(path: Path, rows: list[Row]) -> None:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_json_by_column(path: Path, rows: list[Row]) -> None:
    columns = {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}
    path.write_text(json.dumps(columns), encoding="utf-8")


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")


def read(path: Path, additional: list[str] | None = None) -> list[Row]:
    pairs = open_pairs(str(path), PairColumns("url", "caption", tuple(additional or ())))
    return [row for table in pairs.tables() for row in table.to_pylist()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("list.parquet", write_parquet),
        ("list.csv", write_delimited),
        ("list.tsv", write_delimited),
        ("list.json", write_json),
        ("list.json", write_json_by_column),
        ("list.jsonl", write_lines),
        ("LIST.NDJSON", write_lines),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path, list[Row]], None], packed: bool
) -> None:
    path = tmp_path / name
    write(path, ROWS)
    if packed and path.suffix != ".parquet":
        packed_path = tmp_path / f"{name}.gz"
        packed_path.write_bytes(gzip.compress(path.read_bytes()))
        path = packed_path
    assert read(path, ["similarity"]) == [row | {"fault": None} for row in ROWS]


def test_json_of_columns_of_lists_is_rows(tmp_path: Path) -> None:
    columns = {"url": ["http://a/1.jpg", "http://a/2.jpg"], "caption": ["one", "two"]}
    (tmp_path / "list.json").write_text(json.dumps(columns))
    assert [(row["url"], row["caption"]) for row in read(tmp_path / "list.json")] == [
        ("http://a/1.jpg", "one"),
        ("http://a/2.jpg", "two"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_a_txt_is_a_url_a_line_with_empty_captions(tmp_path: Path, packed: bool) -> None:
    lines = [b"\xef\xbb\xbfhttp://a/1.jpg", b"", b" http://a/2,3.jpg\r", "http://a/ü.jpg".encode()]
    text = b"\n".join([*lines, b"http://a/\xff.jpg"])
    path = tmp_path / ("list.txt.gz" if packed else "list.txt")
    path.write_bytes(gzip.compress(text) if packed else text)
    rows = read(path)
    assert [row["url"] for row in rows] == [
        "http://a/1.jpg",
        "http://a/2,3.jpg",
        "http://a/ü.jpg",
        None,
    ]
    assert [row["fault"] for row in rows] == [None, None, None, URL_NOT_TEXT]
    assert {row["caption"] for row in rows} == {""}


def test_a_list_without_captions_has_empty_ones(tmp_path: Path) -> None:
    for name, write in {"l.parquet": write_parquet, "l.csv": write_delimited}.items():
        write(tmp_path / name, [{"url": "http://a/1.jpg"}])
        pairs = open_pairs(str(tmp_path / name), PairColumns("url", ""))
        assert [row for table in pairs.tables() for row in table.to_pylist()] == [
            {"url": "http://a/1.jpg", "caption": "", "fault": None}
        ]


def test_the_format_may_be_told(tmp_path: Path) -> None:
    write_lines(tmp_path / "list.jsonl", ROWS)
    write_parquet(tmp_path / "list.parquet", ROWS[:1])
    pairs = open_pairs(str(tmp_path), PairColumns("url", "caption"), "parquet")
    assert pairs.files == (str(tmp_path / "list.parquet"),)
    (tmp_path / "urls").write_text("http://a/1.jpg\n")
    told = open_pairs(str(tmp_path / "urls"), PairColumns("url", "caption"), "txt")
    assert [table.num_rows for table in told.tables()] == [1]


def test_columns_of_lists_are_kept(tmp_path: Path) -> None:
    rows = [{"url": "http://a/1.jpg", "caption": "a", "all": ["x", "y"], "scores": [0.5, 0.25]}]
    write_parquet(tmp_path / "list.parquet", rows)
    (row,) = read(tmp_path / "list.parquet", ["all", "scores"])
    assert (row["all"], row["scores"]) == (["x", "y"], [0.5, 0.25])


def test_json_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.json"
    write_json(path, ROWS * 100)
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    packed_size = (tmp_path / "list.json.gz").stat().st_size
    assert packed_size < 1000 < path.stat().st_size
    monkeypatch.setattr("pipeline.downloading.pairs.MAX_JSON_BYTES", 1000)
    for name in ("list.json", "list.json.gz"):
        with pytest.raises(InputError, match=r"more than 1,000 bytes .* write it as"):
            read(tmp_path / name)
    monkeypatch.setattr("pipeline.downloading.pairs.MAX_JSON_BYTES", path.stat().st_size)
    assert len(read(path)) == 300


def test_a_folder_is_read_file_by_file_in_order_of_names(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        write_parquet(tmp_path / f"part-{i}.parquet", [row])
    (tmp_path / "_SUCCESS").touch()
    assert [row["url"] for row in read(tmp_path)] == [row["url"] for row in ROWS]


def test_long_lists_come_in_batches(tmp_path: Path) -> None:
    rows = [{"url": f"http://a/{i}.jpg", "caption": str(i)} for i in range(2 * ROWS_A_BATCH + 1)]
    for name, write in {"l.parquet": write_parquet, "l.jsonl": write_lines}.items():
        write(tmp_path / name, rows)
        tables = list(open_pairs(str(tmp_path / name), PairColumns("url", "caption")).tables())
        assert len(tables) == 3
        assert pa.concat_tables(tables)["url"].to_pylist() == [row["url"] for row in rows]


def test_rows_that_are_no_pair_are_kept_with_their_fault(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    lines = [
        '{"url": null, "caption": "a"}',
        '{"url": "  ", "caption": "a"}',
        '{"url": 7, "caption": "a"}',
        '{"url": "http://a/1.jpg", "caption": null}',
        '{"url": "http://a/1.jpg"}',
        '{"url": "http://a/1.jpg", "caption": 7}',
        '{"url": "http://a/1.jpg", "caption": ["a"]}',
        '{"url": "http://a/1.jpg", "caption": "half a pair: \\ud83d"}',
        '{"url": "http://a/1.jpg", "caption": ""}',
        "[1, 2]",
        '{"url": ',
    ]
    path.write_text("\n".join(lines))
    assert [row["fault"] for row in read(path)] == [
        NULL_URL,
        NULL_URL,
        URL_NOT_TEXT,
        NULL_CAPTION,
        NULL_CAPTION,
        CAPTION_NOT_TEXT,
        CAPTION_NOT_TEXT,
        CAPTION_NOT_TEXT,
        None,
        MALFORMED_ROW,
        MALFORMED_ROW,
    ]


def test_a_parquet_column_of_numbers_is_no_column_of_captions(tmp_path: Path) -> None:
    write_parquet(tmp_path / "list.parquet", [{"url": "http://a/1.jpg", "caption": 7}])
    assert [row["fault"] for row in read(tmp_path / "list.parquet")] == [CAPTION_NOT_TEXT]


def test_other_string_types_are_strings(tmp_path: Path) -> None:
    texts = pa.array(["http://a/1.jpg", None, "http://a/1.jpg"])
    table = pa.table({"url": texts.dictionary_encode(), "caption": texts.cast(pa.large_string())})
    pq.write_table(table, tmp_path / "list.parquet")
    rows = read(tmp_path / "list.parquet")
    assert [row["fault"] for row in rows] == [None, NULL_URL, None]
    assert rows[2]["caption"] == "http://a/1.jpg"


def test_a_caption_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9", b"caf\xc3\xa9"]).view(pa.string())
    pq.write_table(
        pa.table({"url": ["http://a/1.jpg"] * 2, "caption": bad}), tmp_path / "list.parquet"
    )
    rows = read(tmp_path / "list.parquet")
    assert [(row["caption"], row["fault"]) for row in rows] == [
        (None, CAPTION_NOT_TEXT),
        ("café", None),
    ]


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_a_byte_that_is_not_utf8_costs_a_csv_its_field_alone(tmp_path: Path, name: str) -> None:
    lines = [
        b"url,caption,place",
        b"http://a/1.jpg,caf\xe9,here",
        b"http://a/2.jpg,a,Orl\xe9ans",
        b"http://a/\xe9.jpg,b,",
        "http://a/4.jpg,café,Orléans".encode(),
    ]
    text = b"\n".join(lines)
    (tmp_path / name).write_bytes(text.replace(b",", b"\t") if name == "list.tsv" else text)
    rows = read(tmp_path / name, ["place"])
    assert [(row["url"], row["caption"], row["place"], row["fault"]) for row in rows] == [
        ("http://a/1.jpg", None, "here", CAPTION_NOT_TEXT),
        ("http://a/2.jpg", "a", "Orl\ufffdans", None),
        (None, "b", "", URL_NOT_TEXT),
        ("http://a/4.jpg", "café", "Orléans", None),
    ]


def test_additional_text_that_is_not_utf8_can_be_read(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9", None, b"caf\xc3\xa9"]).view(pa.string())
    table = pa.table({"url": ["http://a/1.jpg"] * 3, "caption": ["a"] * 3, "place": bad})
    pq.write_table(table, tmp_path / "list.parquet")
    rows = read(tmp_path / "list.parquet", ["place"])
    assert [row["place"] for row in rows] == ["caf\ufffd", None, "café"]


def test_csv_rows_with_too_many_fields_are_counted_not_fatal(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("url,caption\nhttp://a/1.jpg,one\nhttp://a/2.jpg,two, and more\nhttp://a/3,x\n")
    rows = read(path)
    assert [row["fault"] for row in rows] == [None, None, MALFORMED_ROW]
    assert [row["url"] for row in rows] == ["http://a/1.jpg", "http://a/3", None]


def test_csv_captions_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("url,caption\nhttp://a/1.jpg,007\nhttp://a/2.jpg,\nhttp://a/3.jpg,NA\n")
    assert [row["caption"] for row in read(path)] == ["007", "", "NA"]


def test_the_digest_is_of_the_bytes_not_the_place(tmp_path: Path) -> None:
    def digest(name: str, rows: list[Row]) -> str:
        write_lines(tmp_path / name, rows)
        return open_pairs(str(tmp_path / name), PairColumns("url", "caption")).digest()

    def digest_as(input_format: ListFormat | None) -> str:
        place = str(tmp_path / "one.jsonl")
        return open_pairs(place, PairColumns("url", ""), input_format).digest()

    assert digest("one.jsonl", ROWS) == digest("two.jsonl", ROWS)
    assert digest_as(None) == digest_as("jsonl") != digest_as("txt")
    assert digest("one.jsonl", ROWS) != digest("two.jsonl", ROWS[:2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "does not exist"),
        ("list.xml", b"<list/>", "of no known format"),
        ("list.parquet.gz", b"", "of no known format"),
        ("list.csv", b"", "empty"),
        ("list.csv", b"url,caption\n", "empty"),
        ("list.jsonl", b"", "empty"),
        ("list.json", b"[]", "empty"),
        ("list.json", b"{", "not JSON"),
        ("list.json", b'"text"', "expected an array"),
        ("list.parquet", b"url,caption\n", "can't be read as parquet"),
        ("list.csv", b"URL,TEXT\nhttp://a,b\n", "did you mean --url-column URL?"),
        ("list.csv", b"url,captions\nhttp://a,b\n", "it has 'url', 'captions'"),
        ("list.csv", b"url,caf\xe9\nhttp://a,b\n", "can't be read as csv"),
        ("list.csv", b"url,caption" + b"x" * 200_000 + b"\nhttp://a,b\n", "can't be read as csv"),
        ("list.csv.gz", b"url,caption\nhttp://a,b\n", "can't be read as csv"),
    ],
)
def test_a_bad_list_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^list ") as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_hangs_up_is_not_blamed_on_the_list(scripted: "Scripted") -> None:
    def answer(head: bytes) -> Iterator[bytes]:
        if b"Range:" not in head:  # asked whether it is there, and how large
            body = b"" if head.startswith(b"HEAD") else bytes(1000)
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nAccept-Ranges: bytes\r\n\r\n" + body

    url = f"{scripted(answer)}/list.parquet"
    with pytest.raises(StorageError, match="can't be read") as caught:
        open_pairs(url, PairColumns("url", "caption"))
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_a_store_that_have_no_text_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fsspec's FSTimeoutError."""

    class Slow(MemoryFile):  # type: ignore[misc]  # fsspec has no types
        def read(self, *_: object) -> bytes:
            raise FSTimeoutError

    with fsspec.open("memory://slow.csv", "wb") as file:
        file.write(b"url,caption")
    monkeypatch.setattr(MemoryFileSystem, "_open", lambda *_, **__: Slow())
    with pytest.raises(StorageError, match="FSTimeoutError"):
        open_pairs("memory://slow.csv", PairColumns("url", "caption"))


def test_a_missing_additional_column_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "list.jsonl", ROWS)
    with pytest.raises(InputError, match="did you mean --save-additional-columns similarity"):
        read(tmp_path / "list.jsonl", ["similarty"])


def test_a_folder_of_mixed_formats_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "list.jsonl", ROWS)
    write_parquet(tmp_path / "list.parquet", ROWS)
    with pytest.raises(InputError, match="jsonl and parquet"):
        read(tmp_path)


def test_numbers_of_additional_columns_stay_numbers_and_dates_become_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": ["http://a/1.jpg"],
            "caption": ["one"],
            "count": pa.array([3], pa.int16()),
            "day": pa.array([0], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    (row,) = read(tmp_path / "list.parquet", ["count", "day"])
    assert (row["count"], row["day"]) == (3, "1970-01-01")
