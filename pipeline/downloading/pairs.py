"""A list of URLs and captions, read as a stream.

Reads parquet, csv, tsv, json, jsonl or txt (save parquet, also with .gz), or a folder of files of
one of them, at any fsspec URL. Gives tables of `url`, `caption`, `fault` and the additional columns
asked for; `fault` says why a row is no pair, so that every row of the list is accounted for. A txt
is a URL a line, its captions empty. Only .json, which has no end of a row to look for, is held in
memory whole, and is refused above MAX_JSON_BYTES.
"""

import codecs
import csv
import difflib
import gzip
import io
import itertools
import json
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from infra import storage
from infra.config import digest_of
from infra.errors import InputError
from pipeline.downloading.pair_rows import (
    NO_CAPTIONS,
    PairColumns,
    malformed_rows,
    object_table,
    pair_table,
)

ListFormat = Literal["parquet", "csv", "tsv", "json", "jsonl", "txt"]

FORMATS: dict[str, ListFormat] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
}
_FORMATS = frozenset(FORMATS.values())
_KINDS = "parquet, csv, tsv, json, jsonl or txt"
ROWS_A_BATCH = 10_000
BUFFER_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 30
"""Unpacked; Python holds JSON in ten times its bytes and more."""
NUM_NAMED = 20
"""Columns that a message spells out."""


@dataclass(frozen=True)
class PairList:
    """A list that exists, parses at its start and has the columns."""

    files: tuple[str, ...]
    format: str
    columns: PairColumns

    def tables(self) -> Iterator[pa.Table]:
        """Tables of url, caption, fault and the additional columns, rows in the list's order."""
        schema: pa.Schema | None = None
        for file in self.files:
            for table in _as_input_errors(file, _read(file, self)):
                schema = schema or _stored_schema(table, file)
                yield _conform(table, schema, file)

    def digest(self) -> str:
        """16 hex digits over the bytes of the files, wherever they are."""
        digests = [storage.sha256(file) for file in self.files]
        is_told_by_name = all(_format_of(file) == self.format for file in self.files)
        return digest_of(digests if is_told_by_name else [*digests, self.format])


def open_pairs(
    url_list: str, columns: PairColumns, input_format: ListFormat | None = None
) -> PairList:
    """Raises InputError for a list that is missing, of no known format, without the columns or
    empty."""
    files, name = _find_files(url_list, input_format)
    pairs = PairList(files=tuple(files), format=name, columns=columns)
    num_bytes = sum(map(storage.size_bytes, files))
    if num_bytes == 0 or not any(table.num_rows for table in pairs.tables()):
        raise InputError(f"list {url_list}: empty, expected rows of URLs and captions")
    return pairs


def _find_files(url_list: str, input_format: ListFormat | None) -> tuple[list[str], str]:
    if not storage.exists(url_list):
        raise InputError(
            f"list {url_list}: does not exist; expected a {_KINDS} file, or a folder of them"
        )
    names = storage.list_names(url_list)
    if not names and input_format:  # a single file, whatever its name
        return [url_list], input_format
    files = [storage.join(url_list, name) for name in names] if names else [url_list]
    files = [
        file for file in files if _format_of(file) in ([input_format] if input_format else _FORMATS)
    ]
    formats = sorted({_format_of(file) for file in files})
    if not formats:
        raise InputError(
            f"list {url_list}: of no known format, expected a name that ends in "
            f"{', '.join(FORMATS)} (or these with .gz, save parquet), or --input-format"
        )
    if len(formats) > 1:
        raise InputError(
            f"list {url_list}: a folder of {' and '.join(formats)} files, expected files of one "
            "format; keep one kind in it, or name one with --input-format"
        )
    return files, formats[0]


def _format_of(name: str) -> str:
    stem = name.removesuffix(".gz")
    found = FORMATS.get("." + stem.rsplit(".", 1)[-1].lower(), "")
    return "" if found == "parquet" and stem != name else found


# One reader a format


def _read(file: str, pairs: PairList) -> Iterator[pa.Table]:
    with _open(file) as stream:
        match pairs.format:
            case "parquet":
                yield from _read_parquet(stream, file, pairs)
            case "csv" | "tsv":
                yield from _read_csv(stream, file, pairs)
            case "jsonl":
                yield from _read_objects(_json_lines(stream), file, pairs)
            case "txt":
                yield from _read_lines(stream, file, pairs)
            case _:
                yield from _read_objects(_json_array(stream, file), file, pairs)


@contextmanager
def _open(file: str) -> Iterator[BinaryIO]:
    with storage.open_read(file) as stored:
        stream = cast(BinaryIO, io.BufferedReader(_Source(stored, file), BUFFER_BYTES))
        if file.endswith(".gz"):
            with gzip.open(stream) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield stream


class _Source(io.RawIOBase):
    """A stored file; what is wrong with the storage is not held to be wrong with the list."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        data = storage.read_block(self._file, self._url, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _read_parquet(stream: BinaryIO, file: str, pairs: PairList) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(stream)
    _check_columns(parquet.schema_arrow.names, file, pairs.columns)
    for batch in parquet.iter_batches(ROWS_A_BATCH, columns=pairs.columns.all):
        yield pair_table(pa.table(batch), pairs.columns)


def _read_csv(stream: BinaryIO, file: str, pairs: PairList) -> Iterator[pa.Table]:
    num_malformed = 0

    def skip(_row: Any) -> str:
        nonlocal num_malformed
        num_malformed += 1
        return "skip"

    delimiter = "\t" if pairs.format == "tsv" else ","
    first = stream.readline()
    stream.seek(0)
    _check_columns(
        next(csv.reader([first.decode("utf-8-sig")], delimiter=delimiter)), file, pairs.columns
    )
    text_columns = pairs.columns.texts
    reader = pyarrow.csv.open_csv(
        stream,
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            check_utf8=False,  # it would refuse the file for a field; `pair_table` looks at each
            column_types=dict.fromkeys(text_columns, pa.string()),
            include_columns=pairs.columns.all,
        ),
    )
    for batch in reader:
        yield pair_table(pa.table(batch), pairs.columns)
    if num_malformed:
        # They have no place left in the order of rows, so they come last.
        yield malformed_rows(num_malformed, reader.schema, pairs.columns)


def _read_lines(stream: BinaryIO, file: str, pairs: PairList) -> Iterator[pa.Table]:
    columns = replace(pairs.columns, caption=NO_CAPTIONS)
    _check_columns([columns.url], file, columns)
    lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in stream)
    urls = filter(None, lines)
    while batch := list(itertools.islice(urls, ROWS_A_BATCH)):
        column = pa.array(batch, pa.binary()).view(pa.string())
        yield pair_table(pa.table({columns.url: column}), columns)


def _json_lines(stream: BinaryIO) -> Iterator[object]:
    for line in stream:
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _json_array(stream: BinaryIO, file: str) -> Iterator[object]:
    text = stream.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise InputError(
            f"list {file}: more than {MAX_JSON_BYTES:,} bytes of JSON, which is held in memory; "
            "expected at most so many; write it as .jsonl or parquet"
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"list {file}: not JSON ({error}); expected an array of objects (one object a line is "
            "called .jsonl)"
        ) from None
    if isinstance(document, dict) and all(isinstance(v, dict) for v in document.values()):
        # pandas' default: {column: {row: value}}.
        rows = dict.fromkeys(row for column in document.values() for row in column)
        document = [{name: column.get(row) for name, column in document.items()} for row in rows]
    elif isinstance(document, dict) and all(isinstance(v, list) for v in document.values()):
        # {column: [values]}, as in SBU captions.
        columns = itertools.zip_longest(*document.values())
        document = [dict(zip(document, values, strict=True)) for values in columns]
    if not isinstance(document, list):
        raise InputError(f"list {file}: a JSON {type(document).__name__}, expected an array")
    yield from document


def _read_objects(rows: Iterator[object], file: str, pairs: PairList) -> Iterator[pa.Table]:
    checked = False
    while batch := list(itertools.islice(rows, ROWS_A_BATCH)):
        objects = [row if isinstance(row, dict) else None for row in batch]
        if not checked:
            names = dict.fromkeys(name for row in objects if row for name in row)
            _check_columns(list(names), file, pairs.columns)
            checked = True
        yield object_table(objects, pairs.columns)


def _check_columns(have: list[str], file: str, columns: PairColumns) -> None:
    for name, option in columns.options.items():
        if have.count(name) > 1:
            raise InputError(
                f"list {file}: has {have.count(name)} columns {name!r}, expected one; rename the "
                f"others, or name another with {option}"
            )
        if name not in have:
            by_lower_case = {column.lower(): column for column in have}
            near = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
            hint = f"; did you mean {option} {shlex.quote(by_lower_case[near[0]])}?" if near else ""
            shown = ", ".join(map(repr, have[:NUM_NAMED])) or "none"
            more = f" and {len(have) - NUM_NAMED} more" if len(have) > NUM_NAMED else ""
            raise InputError(
                f"list {file}: no column {name!r}, it has {shown}{more}; "
                f"name the right one with {option}{hint}"
            )


def _stored_schema(table: pa.Table, file: str) -> pa.Schema:
    """The first table's types, which all others must take; what JSON can't hold becomes text."""
    fields = []
    for column in table.schema:
        kind = column.type
        if not _can_be_stored(kind):
            raise InputError(
                f"list {file}: column {column.name!r} is {kind}, expected numbers, text or lists "
                "of them; leave it out of --save-additional-columns"
            )
        stays = pa.types.is_nested(kind) or _is_plain(kind)
        fields.append(pa.field(column.name, kind if stays else pa.string()))
    return pa.schema(fields)


def _is_plain(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _can_be_stored(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = kind.value_type
        return _is_plain(item) or bool(pa.types.is_string(item) or pa.types.is_large_string(item))
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind))


def _conform(table: pa.Table, schema: pa.Schema, file: str) -> pa.Table:
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"list {file}: a column changes its type on the way ({error}); make it one type or "
            "leave it out of --save-additional-columns"
        ) from None


def _as_input_errors(file: str, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """What a reader finds wrong with the file is the user's to know, in one line."""
    try:
        yield from tables
    except (pa.ArrowException, csv.Error, ValueError, EOFError, zlib.error, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        kind = file.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        raise InputError(
            f"list {file}: can't be read as {kind} ({reason}); expected what its name says"
        ) from None
